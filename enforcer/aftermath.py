"""What follows a decision, beside it: journal entries, holds made or released late, and the way back to the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec.structs import replace

from enforcer.metrics import EnforcerMetrics
from enforcer.spool import LetThrough, Spool
from ledger.errors import CreditsError, LedgerUnavailable
from ledger.refusals import Refused
from ledger.store import Ledger

QUEUE_MAX: Final = 50_000
"""Entries kept in memory while the ledger is away; more are dropped and counted."""
_BATCH: Final = 200
_PING_SECONDS: Final = 0.25
_SAVE_SECONDS: Final = 1.0
_BACK_OFF_SECONDS: Final = 0.25
_STOP_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 120.0
"""A request that was sent over a connection which is given up may still arrive: TCP repeats what it has for so long."""
log = logging.getLogger(__name__)


class _Release(NamedTuple):
    org: str
    hold_id: str
    may_come: bool


class Aftermath:
    """A worker that writes what decisions leave behind, in order, as soon as the ledger takes it.

    It also is the circuit breaker: after `lost()` nobody asks the ledger until the worker has had an answer.
    """

    def __init__(self, ledger: Ledger, metrics: EnforcerMetrics, spool: Path | None = None) -> None:
        """`spool`: where what is let through is kept until the ledger has it; None: in memory.

        Raises: InvalidRequest where that file cannot be used.
        """
        self._ledger = ledger
        self._metrics = metrics
        self._spool = Spool(spool)
        self._entries: deque[Refused] = deque()
        self._let_through: Counter[str] = Counter()
        for item in self._spool.waiting:
            self._let_through[item.request.org] += item.required_micro
        self._releases: deque[_Release] = deque()
        self._late: deque[tuple[float, _Release]] = deque()  # by when, the earliest first
        self._unwanted: set[str] = set()
        """Holds that are to be released, and were not given to somebody since."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.is_away = False
        self.dropped = 0

    def note(self, item: Refused) -> None:
        """Write a journal entry."""
        self._put(self._entries, item)

    async def let_through(self, item: LetThrough, cap_micro: int) -> bool:
        """Whether a request may pass without the ledger, which is told of it later, whatever happens meanwhile.

        `cap_micro`: what all requests of one org may need together until the ledger has them.
        Raises: SpoolError where it cannot be kept.
        """
        org = item.request.org
        if self._let_through[org] + item.required_micro > cap_micro:
            return False
        self._let_through[org] += item.required_micro
        try:
            await self._spool.keep(item)
        except BaseException:
            self._let_through[org] -= item.required_micro
            raise
        self._wake.set()
        return True

    def has_room(self, org: str, required_micro: int, cap_micro: int) -> bool:
        """Whether it could pass."""
        return self._let_through[org] + required_micro <= cap_micro

    def release(self, org: str, hold_id: str, *, may_come: bool = False) -> None:
        """End a hold that may have been made for a request which was refused, or (`may_come`) may still be."""
        self._unwanted.add(hold_id)
        self._put(self._releases, _Release(org, hold_id, may_come))

    def given(self, hold_id: str) -> None:
        """Who was refused asked for the same work again and was given this hold, which had been made late: it stays."""
        self._unwanted.discard(hold_id)

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
        await self._spool.close()
        with suppress(Exception):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._metrics.save(self._ledger)

    def _put(self, queue: deque[Any], item: Any) -> None:
        if len(queue) >= QUEUE_MAX:
            dropped = queue.popleft()
            if isinstance(dropped, _Release):
                self._unwanted.discard(dropped.hold_id)
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
            while self._late and self._late[0][0] <= loop.time():
                self._releases.append(self._late.popleft()[1])
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

    async def _write(self) -> None:
        waiting = self._spool.waiting
        self._metrics.pending.set(len(self._entries) + len(waiting) + len(self._releases))
        while self._releases:
            await self._first(self._releases, self._release)
        while waiting:
            await self._catch_up(waiting[0])
            self._spool.done()
        if not self.is_away:
            self._let_through.clear()  # the ledger has all of it, and counts it itself
        while self._entries:
            batch = [self._entries[i] for i in range(min(_BATCH, len(self._entries)))]
            await self._ledger.refusals.add(batch)
            for _ in batch:
                self._entries.popleft()
        self._metrics.pending.set(0)

    async def _release(self, item: _Release) -> None:
        if item.hold_id not in self._unwanted:
            return
        released = await self._ledger.admissions.release(item.org, item.hold_id)
        if released is None and item.may_come and len(self._late) < QUEUE_MAX:
            again = asyncio.get_running_loop().time() + _LATE_SECONDS
            self._late.append((again, _Release(item.org, item.hold_id, False)))
        else:
            self._unwanted.discard(item.hold_id)

    async def _catch_up(self, item: LetThrough) -> None:
        """The hold of what was let through and does not run yet, and its entry; both may be there already."""
        try:
            await self._ledger.admissions.admit(replace(item.request, was_let_in=True), item.terms)
        except LedgerUnavailable:
            raise
        except CreditsError as error:  # it must not keep those behind it waiting for ever
            log.error("org %s: a request that was let through has no hold: %s", item.request.org, error)
        await self._ledger.refusals.add([Refused(item.request.org, item.entry)])

    @staticmethod
    async def _first(queue: deque[Any], work: Callable[[Any], Awaitable[object]]) -> None:
        """Do what comes first; it stays first until it is done."""
        await work(queue[0])
        queue.popleft()
