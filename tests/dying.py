"""A process that ends at a point that the test says, as by kill -9: nothing after it is done."""

from __future__ import annotations

import asyncio
from typing import Any


class Killed(BaseException):
    """No `except Exception` sees it."""


class Dying:
    """Stands for something; the process dies at its so many-th point, which are before and after each call.

    `points`: how many there are yet to come, in a list that several things share.
    """

    def __init__(self, thing: Any, points: list[int]) -> None:
        self._thing = thing
        self._points = points

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._thing, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            self._pass()
            result = await found(*arguments, **named)
            self._pass()
            return result

        return call

    def _pass(self) -> None:
        self._points[0] -= 1
        if self._points[0] == 0:
            raise Killed
