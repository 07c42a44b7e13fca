"""What follows a decision, beside it: journal entries, holds made or released late, and the way back to the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from enforcer.metrics import EnforcerMetrics
from ledger.admission import AdmissionRequest, Terms
from ledger.errors import CreditsError
from ledger.refusals import Refused
from ledger.store import Ledger

QUEUE_MAX: Final = 50_000
"""Entries and holds kept in memory while the ledger is away; more are dropped and counted."""
_BATCH: Final = 200
_PING_SECONDS: Final = 0.25
_SAVE_SECONDS: Final = 1.0
_BACK_OFF_SECONDS: Final = 0.25
_STOP_SECONDS: Final = 1.0
log = logging.getLogger(__name__)


class Aftermath:
    """A worker that writes what decisions leave behind, in order, as soon as the ledger takes it.

    It also is the circuit breaker: after `lost()` nobody asks the ledger until the worker has had an answer.
    """

    def __init__(self, ledger: Ledger, metrics: EnforcerMetrics, on_back: Callable[[], None]) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._on_back = on_back
        self._entries: deque[Refused] = deque()
        self._holds: deque[tuple[AdmissionRequest, Terms]] = deque()
        self._releases: deque[tuple[str, str]] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.is_away = False
        self.dropped = 0

    def note(self, item: Refused) -> None:
        """Write a journal entry."""
        self._put(self._entries, item)

    def hold(self, request: AdmissionRequest, terms: Terms) -> None:
        """Make the hold of a request that was let through without one."""
        self._put(self._holds, (request, terms))

    def release(self, org: str, hold_id: str) -> None:
        """End a hold that may have been made for a request which was refused."""
        self._put(self._releases, (org, hold_id))

    def lost(self) -> None:
        """The ledger did not answer."""
        if not self.is_away:
            self.is_away = True
            self._metrics.ledger_up.set(0)
            log.error("the ledger does not answer: decisions are made without it until it does")
        self._wake.set()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Write what is left, if the ledger takes it within a second."""
        if self._task is None:
            return
        # Asked to end rather than cancelled: a cancellation can get lost inside a connection that is just made.
        self._is_stopping = True
        self._wake.set()
        await asyncio.wait({self._task}, timeout=_STOP_SECONDS)
        self._task.cancel()
        with suppress(Exception):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._metrics.save(self._ledger)

    def _put(self, queue: deque[Any], item: Any) -> None:
        if len(queue) >= QUEUE_MAX:
            queue.popleft()
            self.dropped += 1
            if self.dropped % 1000 == 1:
                log.error("more left to write than fits in memory: %d entries were dropped", self.dropped)
        queue.append(item)
        self._wake.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        saved = loop.time()
        while not self._is_stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PING_SECONDS if self.is_away else _SAVE_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                if self.is_away:
                    await self._ping()
                await self._write()
                if loop.time() - saved >= _SAVE_SECONDS:
                    await self._metrics.save(self._ledger)
                    saved = loop.time()
            except Exception as error:
                if not isinstance(error, (CreditsError, OSError, TimeoutError)):
                    log.debug("not written yet: %r", error)
                await asyncio.sleep(_BACK_OFF_SECONDS)

    async def _ping(self) -> None:
        client: Any = self._ledger.client
        async with asyncio.timeout(1.0):
            await client.get("credits:ping")  # a key, so that a cluster knows which node to ask
        self.is_away = False
        self._metrics.ledger_up.set(1)
        log.warning("the ledger answers again")
        self._on_back()

    async def _write(self) -> None:
        self._metrics.pending.set(len(self._entries) + len(self._holds) + len(self._releases))
        while self._releases:
            await self._first(self._releases, lambda item: self._ledger.admissions.release(*item))
        while self._holds:
            await self._first(self._holds, lambda item: self._ledger.admissions.admit(*item))
        while self._entries:
            batch = [self._entries[i] for i in range(min(_BATCH, len(self._entries)))]
            await self._ledger.refusals.add(batch)
            for _ in batch:
                self._entries.popleft()
        self._metrics.pending.set(0)

    @staticmethod
    async def _first(queue: deque[Any], work: Callable[[Any], Awaitable[object]]) -> None:
        """Do what comes first; it stays first until it is done."""
        await work(queue[0])
        queue.popleft()
