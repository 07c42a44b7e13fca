"""A value read from a file that admins edit while it is in use: the last good one stays in force."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Final, Generic, TypeVar

from watchfiles import awatch

from config.problems import ConfigError
from config.yaml_nodes import read_bytes
from ledger.clock import Clock, now_us

T = TypeVar("T")
_LINKS_MAX: Final = 40
_SETTLE_TRIES: Final = 50
log = logging.getLogger(__name__)


class Reloader(Generic[T]):
    """Keeps `value` up to date with a file; a new value counts only once `on_change` has taken it.

    Editors write in place or rename a new file over the old one, Kubernetes swaps a symlink: what is looked at is
    the content, and the watch only says when. `poll_seconds` is how soon a change is seen where there is no watch
    (network file systems), and how soon `on_change` is asked again after a failure. Content counts when it
    has not changed for `settle_seconds`, so that a file is not read while it is written.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes, str], T],
        on_change: Callable[[T], Awaitable[None]],
        *,
        clock: Clock = now_us,
        poll_seconds: float = 5.0,
        settle_seconds: float = 0.1,
        fallback: T | None = None,
    ) -> None:
        """Reads the file; a bad one leaves `fallback` in force. Raises: ConfigError where there is none."""
        self._path = path
        self._parse = parse
        self._on_change = on_change
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._settle_seconds = settle_seconds
        self._lock = asyncio.Lock()
        self._seen: bytes | None = None
        """The content that the last outcome is about; None: it has to be looked at again."""
        self.last_reload_successful = True
        self.last_success_us = clock()
        """0: the file was never good since the start."""
        self.last_error: str | None = None
        try:
            self._seen = read_bytes(path)
            self.value = parse(self._seen, str(path))
        except ConfigError as error:
            if fallback is None:
                raise
            self.value = fallback
            self.last_success_us = 0
            self._fail(str(error))

    async def reload(self) -> bool:
        """Reads the file now, changed or not. Returns whether it is good and in force."""
        async with self._lock:
            self._seen = None
            await self._look()
            return self.last_reload_successful

    async def run(self) -> None:
        """Follows the file until cancelled."""
        while True:
            await self._follow()
            places = watched_directories(self._path)
            wakes = awatch(
                *places,
                watch_filter=None,
                recursive=False,
                rust_timeout=int(self._poll_seconds * 1000),
                yield_on_timeout=True,
            )
            try:
                async with aclosing(wakes):
                    async for _ in wakes:
                        await self._follow()
                        if watched_directories(self._path) != places:
                            break
            # The directory is gone, or the system has no watches left.
            except (OSError, RuntimeError) as error:
                log.debug("%s cannot be watched: %s", self._path, error)
                await asyncio.sleep(self._poll_seconds)

    async def _follow(self) -> None:
        async with self._lock:
            await self._look()

    async def _look(self) -> None:
        """Takes over what is in the file unless it was looked at already."""
        try:
            content = await self._settled()
        except ConfigError as error:
            self._seen = None
            self._fail(str(error))
            return
        if content == self._seen:
            return
        self._seen = content
        try:
            value = await asyncio.to_thread(self._parse, content, str(self._path))
        except ConfigError as error:
            self._fail(str(error))
            return
        if value != self.value:
            try:
                await self._on_change(value)
            except Exception as error:
                self._seen = None
                self._fail(f"{self._path}: good, but it could not be put in force: {error}", error)
                return
            self.value = value
            log.info("%s: in force as it is now", self._path)
        self.last_reload_successful = True
        self.last_success_us = self._clock()
        self.last_error = None

    def _fail(self, error: str, cause: Exception | None = None) -> None:
        # The same fault at every look would fill the log.
        if error != self.last_error:
            log.error("The last good version stays in force. %s", error, exc_info=cause)
        self.last_reload_successful = False
        self.last_error = error

    async def _settled(self) -> bytes:
        """What is in the file once it has stopped changing. Raises: ConfigError when it cannot be read."""
        content = read_bytes(self._path)
        for _ in range(_SETTLE_TRIES):
            if content == self._seen:
                break
            await asyncio.sleep(self._settle_seconds)
            before, content = content, read_bytes(self._path)
            if content == before:
                break
        return content


def watched_directories(path: Path) -> list[Path]:
    """The directories in which something changes when the content at `path` does: its own, and those of links."""
    places = []
    step = path.absolute()
    for _ in range(_LINKS_MAX):
        places.append(step.parent.resolve())
        if not step.is_symlink():
            break
        step = step.parent / os.readlink(step)
    return sorted(set(places))
