"""List and watch: keeps a copy of one kind of object up to date, at the cost of what changes."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

import msgspec

from exporter.sources.kubernetes_client import KubernetesClient, KubernetesError
from ledger.clock import Clock

logger = logging.getLogger(__name__)
Found = TypeVar("Found")

PAGE: Final = 500
_WATCH_SECONDS: Final = 60
"""A quiet watch ends after this, so that a server which is gone is noticed."""
_GONE: Final = 410
_BACK_OFF_MAX: Final = 30.0
_SHORT_SECONDS: Final = 1.0
"""A watch that ends before this is a failed one."""
_TURN: Final = 100
"""Objects taken in before other tasks get their turn."""


class Sink(Protocol):
    """Where the objects go. `begin` ... `finish` enclose a whole list; `now_us` is when it is heard."""

    def begin(self) -> None: ...
    def add(self, raw: bytes | msgspec.Raw, now_us: int) -> None: ...
    def remove(self, raw: bytes | msgspec.Raw, now_us: int) -> None: ...
    def finish(self, last_us: int | None, now_us: int) -> None: ...


class _ListMeta(msgspec.Struct, rename={"go_on": "continue", "resource_version": "resourceVersion"}):
    resource_version: str = ""
    go_on: str = ""


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Version(msgspec.Struct):
    metadata: _ListMeta
    code: int | None = None


class _Failure(msgspec.Struct):
    code: int = 0
    message: str = ""


_list = msgspec.json.Decoder(_List)
_event = msgspec.json.Decoder(_Event)
_version = msgspec.json.Decoder(_Version)
_failure = msgspec.json.Decoder(_Failure)


class Expired(Exception):
    """The server has forgotten the version that was to be resumed from: a new list is needed."""


class Reflector:
    """One list and watch. Runs until it is cancelled; whatever goes wrong is tried again, ever more slowly."""

    def __init__(
        self,
        client: KubernetesClient,
        path: str,
        sink: Sink,
        clock: Clock,
        *,
        selector: str = "",
        page: int = PAGE,
        watch_seconds: float = _WATCH_SECONDS,
        back_off_seconds: float = 0.2,
    ) -> None:
        self.path = path
        self.synced = asyncio.Event()
        self.watching = False
        self.heard_us: int | None = None
        self.error: KubernetesError | None = None
        self._client = client
        self._sink = sink
        self._clock = clock
        self._selector = {"labelSelector": selector} if selector else {}
        self._page = page
        self._watch_seconds = watch_seconds
        self._back_off_seconds = back_off_seconds
        self.version = ""
        self._events = 0

    async def run(self) -> None:
        """Follow the objects for ever."""
        failures = 0
        while True:
            begun = asyncio.get_running_loop().time()
            self.error = await self._follow()
            took = asyncio.get_running_loop().time() - begun
            idle = took < _SHORT_SECONDS and not self._events
            if self.error is None and not idle:
                failures = 0
                continue
            # A server that takes a watch and ends it at once is not asked as fast as it answers, either.
            failures = failures + 1 if idle else 1
            pause = min(_BACK_OFF_MAX, self._back_off_seconds * 2 ** min(failures, 8))
            asked = None if self.error is None else self.error.retry_after
            # Spread out, or all who lost the server at once come back at once.
            await asyncio.sleep(max(pause * random.uniform(0.5, 1.0), asked or 0.0))  # noqa: S311

    async def _follow(self) -> KubernetesError | None:
        """One list, where one is needed, and one watch; what ended it before its time."""
        self._events = 0
        try:
            if not self.version:
                await self._read_list()
            await self._watch()
        except Expired:
            self.version = ""
        except KubernetesError as error:
            if error.status == _GONE:
                self.version = ""
            else:
                logger.warning("%s", error)
            return error
        return None

    def true_until_us(self, now_us: int) -> int | None:
        """Up to when the copy is true: now, while a watch stands; else when the server was last heard."""
        return now_us if self.watching else self.heard_us

    async def _read_list(self) -> None:
        last_us = self.heard_us
        self._sink.begin()
        go_on = ""
        while True:
            params = {"limit": str(self._page), **self._selector}
            if go_on:
                params["continue"] = go_on
            page = self._decoded(_list, await self._client.get(self.path, params))
            now_us = self._clock()
            for number, raw in enumerate(page.items or (), 1):
                self._sink.add(raw, now_us)
                if number % _TURN == 0:
                    await asyncio.sleep(0)
            go_on = page.metadata.go_on
            if not go_on:
                break
        # The version of the last page is that of the whole list.
        self.version = page.metadata.resource_version
        self._sink.finish(last_us, now_us)
        self.heard_us = now_us
        self.synced.set()

    async def _watch(self) -> None:
        params = {
            "watch": "1",
            "resourceVersion": self.version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(max(1, round(self._watch_seconds))),
            **self._selector,
        }
        heard_us = self.heard_us
        try:
            async with aclosing(self._client.watch(self.path, params, self._watch_seconds)) as lines:
                async for line in lines:
                    self.watching = True
                    self.heard_us = self._clock()
                    if line:
                        self._take(line, self.heard_us)
                        self._events += 1
                        if self._events % _TURN == 0:
                            await asyncio.sleep(0)
            self.heard_us = self._clock()
        except Expired:
            if not self._events:
                # A server that has forgotten takes the watch and then says so: nothing was followed meanwhile.
                self.heard_us = heard_us
            raise
        finally:
            self.watching = False

    def _take(self, line: bytes, now_us: int) -> None:
        event = self._decoded(_event, line)
        if event.type == "ERROR":
            failure = self._decoded(_failure, event.object)
            if failure.code == _GONE:
                raise Expired
            raise KubernetesError(f"watch {self.path}: {failure.code} {failure.message}", failure.code)
        if event.type in ("ADDED", "MODIFIED"):
            self._sink.add(event.object, now_us)
        elif event.type == "DELETED":
            self._sink.remove(event.object, now_us)
        version = self._decoded(_version, event.object).metadata.resource_version
        if version:
            self.version = version

    def _decoded(self, decoder: msgspec.json.Decoder[Found], data: bytes | msgspec.Raw) -> Found:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.version = ""
            raise KubernetesError(f"{self.path}: the API server's answer cannot be read: {error}") from error
