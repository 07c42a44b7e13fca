"""A time limit for many tasks at once, as `asyncio.timeout` for each, at a fraction of what its timers cost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_LOOKS = 20
"""How often time is looked at within the limit: it is kept to a twentieth."""


class _Entry(msgspec.Struct, eq=False):
    task: asyncio.Task[Any] | None
    deadline: float
    is_over: bool = False


class Deadlines:
    """All have the same limit, so the first to begin is the first to be over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._entries: deque[_Entry] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def within(self, work: Awaitable[T]) -> T:
        """The result of `work`. Raises: TimeoutError once its time is over; it is cancelled then."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        entry = _Entry(task, loop.time() + self._seconds)
        self._entries.append(entry)
        if self._timer is None:
            self._timer = loop.call_later(self._seconds / _LOOKS, self._look, loop)
        try:
            return await work
        except asyncio.CancelledError:
            if entry.is_over and task.uncancel() <= 0:
                raise TimeoutError from None
            raise
        finally:
            entry.task = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        entries, now = self._entries, loop.time()
        while entries and (entries[0].task is None or entries[0].deadline <= now):
            entry = entries.popleft()
            if entry.task is not None:
                entry.is_over = True
                entry.task.cancel()
        self._timer = loop.call_later(self._seconds / _LOOKS, self._look, loop) if entries else None
