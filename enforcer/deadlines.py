"""A time limit for many answers at once, as `asyncio.timeout` around each, at a fraction of what its timers cost."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

_LOOKS: Final = 20
"""How often time is looked at within the limit: it is kept to a twentieth."""


class Deadlines:
    """All have the same limit, so the first to begin is the first to be over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._entries: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, answer: asyncio.Future[Any], since: float) -> None:
        """One that has not come when its time, from `since` on the loop's clock, is over is a TimeoutError then."""
        self._entries.append((since + self._seconds, answer))
        if self._timer is None:
            loop = answer.get_loop()
            self._timer = loop.call_later(self._seconds / _LOOKS, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        entries, now = self._entries, loop.time()
        while entries and (entries[0][1].done() or entries[0][0] <= now):
            answer = entries.popleft()[1]
            if not answer.done():
                answer.set_exception(TimeoutError())
        self._timer = loop.call_later(self._seconds / _LOOKS, self._look, loop) if entries else None
