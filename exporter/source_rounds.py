"""The rounds of one source as they happen: ask, meter, commit; failures are told once and counted, never raised on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol, runtime_checkable

from exporter.health import LedgerHealth, Once, SourceHealth
from exporter.rates import RatesInForce
from exporter.rounds import RoundReport, Rounds
from exporter.sources.base import SourceError
from ledger.clock import Clock, now_us
from ledger.errors import LedgerUnavailable, TooLarge
from ledger.model import RateTable, Snapshot
from ledger.money import HOUR_US
from ledger.waiting_holds import Listing, WaitingHolds

FETCH_SECONDS: Final = 900.0
"""Sources bound their own calls; this is for what none of them thought of."""
_AHEAD_US: Final = HOUR_US // 12
"""How far a source's clock may be ahead of ours before that is told: five minutes."""
_UNLISTED_US: Final = 30_000_000
"""How long a hold lives on at least, once a list leaves its work out."""
log = logging.getLogger(__name__)


@runtime_checkable
class RatesOfPlatform(Protocol):
    """What a source also is where its platform knows prices."""

    async def rates(self) -> RateTable:
        """The prices now. Raises: SourceError."""


class SourceRounds:
    """Runs the rounds of one source. `run` is what a scheduler calls; only one may be under way at a time."""

    def __init__(
        self,
        rounds: Rounds,
        ledger_health: LedgerHealth,
        *,
        after: Callable[[], Awaitable[None]],
        prices: tuple[RatesOfPlatform, RatesInForce] | None = None,
        clock: Clock = now_us,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        """`after` is awaited after each round. `prices`: whose prices complete the rates of the cluster."""
        source = rounds.source
        self.health = SourceHealth(source.name, source.cluster)
        self._rounds = rounds
        self._ledger_health = ledger_health
        self._after = after
        self._prices = prices
        self._clock = clock
        self._fetch_seconds = fetch_seconds
        self._waiting = WaitingHolds(
            rounds.ledger.client, rounds.meter.hold_us, rounds.ledger.given_clock, source.cluster, source.name
        )
        self._once = Once(f"Source {source.name}")
        self._task: asyncio.Task[None] | None = None
        self._committing = False
        self._given_up = False
        self._told_ahead = False
        self._ended_holds: float | None = None

    async def run(self) -> None:
        """One round; what goes wrong is shown, and the next one tries again."""
        self._task = asyncio.current_task()
        try:
            await self._try()
            await self._after()
            # Only now: what is shown of the ledger is from after the round.
            self.health.tried = True
        except asyncio.CancelledError:
            if not self._given_up:
                raise
        finally:
            self._task = None

    async def _try(self) -> None:
        try:
            report = await self.once()
        except LedgerUnavailable as error:
            self._ledger_health.up = False
            self._once.failed(error, " Nothing is charged until it is back; then everything is caught up.")
        except Exception as error:
            self._once.failed(error)
        else:
            if not report.failed:
                self._once.well()

    async def once(self) -> RoundReport:
        """One round.

        Raises: SourceError: nothing was changed; LedgerUnavailable, LedgerDamaged, or a fault of our own: what
            was committed stays, and the next round goes on from there.
        """
        began = time.monotonic()
        health = self.health
        try:
            snapshot, since = await self._ask()
            self._leave_if_given_up()
            self._committing = True
            report = await self._take(snapshot, since)
            if report.failed:
                orgs = ", ".join(report.failed[:5]) + (", ..." if len(report.failed) > 5 else "")
                self._once.warn(
                    "busy", f"another exporter was at work on {orgs}; what is missing is charged in the next round."
                )
            else:
                health.charged_us = max(health.charged_us or 0, snapshot.taken_us)
            health.failures = 0
            self._ledger_health.up = True
            return report
        except Exception:
            health.failures += 1
            raise
        finally:
            self._committing = False
            health.round_seconds = time.monotonic() - began

    def overdue(self) -> None:
        """The scheduler wanted a round while the last one is under way."""
        self._once.warn("slow", "a round takes longer than metering.interval_seconds; the next one waits for it.")

    def give_up(self) -> asyncio.Task[None] | None:
        """Stop asking; a commit under way goes on. Returns what there is to wait for. May be called again."""
        self._given_up = True
        if self._task is not None and not self._committing:
            self._task.cancel()
        return self._task

    def _leave_if_given_up(self) -> None:
        # A cancellation can be lost: asyncio.wait_for swallows one that comes together with the result.
        if self._given_up:
            raise asyncio.CancelledError

    async def _ask(self) -> tuple[Snapshot, int | None]:
        health, source = self.health, self._rounds.source
        since = await self._rounds.ledger.charging.source_mark(source.name)
        if since is not None:
            health.charged_us = max(health.charged_us or 0, since)
        self._leave_if_given_up()
        began = time.monotonic()
        table: RateTable | None = None
        try:
            async with asyncio.timeout(self._fetch_seconds):
                if self._prices is not None:
                    table = await self._prices[0].rates()
                snapshot = await source.fetch(since)
        except TimeoutError:
            health.up = False
            raise SourceError(f"{source.name}: no snapshot within {self._fetch_seconds:g} s; it was given up") from None
        except Exception:
            health.up = False
            raise
        finally:
            health.fetch_seconds = time.monotonic() - began
        health.up, health.snapshot_us = True, self._clock()
        self._note_ahead(snapshot.taken_us - health.snapshot_us)
        if self._prices is not None and table is not None:
            await self._prices[1].complete(source.cluster, table)
        return snapshot, since

    def _note_ahead(self, ahead_us: int) -> None:
        """Told once: `taken_at` is the clock, and a simulation may run ahead of ours, so it is charged all the same."""
        if ahead_us > _AHEAD_US and not self._told_ahead:
            name, hours = self.health.name, ahead_us / HOUR_US
            log.warning("Source %s: its clock is %.1f h ahead of ours; it is charged up to there.", name, hours)
        self._told_ahead = ahead_us > _AHEAD_US

    async def _take(self, snapshot: Snapshot, since: int | None) -> RoundReport:
        # First, so that no trouble with one org lets another's holds expire.
        await self._waiting.keep(snapshot.pending_holds, self._rounds.books.states, snapshot.pending)
        try:
            report = await self._rounds.take(snapshot, since)
        except BaseException as error:
            # It may have ended between two changes in memory: what the ledger has is read again.
            books = self._rounds.books
            books.doubt(books.states)
            if isinstance(error, TooLarge):
                await self._end_unlisted(snapshot, error.left)
            raise
        await self._end_unlisted(snapshot, report.failed)
        return report

    async def _end_unlisted(self, snapshot: Snapshot, left: Iterable[str]) -> None:
        """Holds of what was refused by the scheduler itself, was cancelled, or is charged already.

        `left`: orgs that were not charged, so that what they run may have holds still.
        """
        if snapshot.lists_waiting is None:
            return
        now, before = time.monotonic(), self._ended_holds
        self._ended_holds = now
        # Two rounds more, so that one that was left out by mistake is found again.
        life_us = _UNLISTED_US if before is None else max(_UNLISTED_US, round((now - before) * 2_000_000))
        window_us = self._rounds.meter.hold_us
        life_us = min(life_us, window_us // 2 or life_us) if snapshot.lists_waiting else max(life_us, window_us)
        taken_us = snapshot.taken_us
        starting = [
            one
            for one in snapshot.workloads
            if one.ended_us is None and (one.started_us is None or one.started_us > taken_us)
        ]
        holds = snapshot.pending_holds.union(one.hold_id for one in starting if one.hold_id is not None)
        work = {name for _, name in snapshot.pending}.union(one.id for one in starting if one.kind != "storage")
        orgs = self._rounds.books.states.keys() - set(left)
        await self._waiting.end_unlisted(orgs, Listing(taken_us, holds, work), life_us)
