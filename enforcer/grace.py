"""Time that graces last by: counted by enforcers while they look, so that no step of a clock ends a grace early.

Wall clocks are set, sometimes by hours. Who acts counts the time between its looks by a clock that only goes on, and
leaves the sum in the ledger: the next one goes on from there, so time while nobody looked counts for nobody.
"""

from __future__ import annotations

from ledger.clock import Clock
from ledger.exhaustion import ExhaustionStore


class CountedTime:
    """Only whoever has the lease counts."""

    def __init__(self, store: ExhaustionStore, monotonic: Clock) -> None:
        self._store = store
        self._monotonic = monotonic
        self._sum_us = 0
        self._at_us = 0

    async def look(self, *, goes_on: bool) -> None:
        """A look begins. `goes_on`: nobody else can have counted since the last one. Raises: LedgerUnavailable."""
        if goes_on:
            self._sum_us = self.now()
            self._at_us = self._monotonic()
            # Written by one at a time; what one that lost its lease may still write is less, which is no harm.
            await self._store.count(self._sum_us)
        else:
            self._sum_us = await self._store.counted()
            self._at_us = self._monotonic()

    def now(self) -> int:
        """All that was counted, in microseconds."""
        return self._sum_us + self._monotonic() - self._at_us
