"""Holds of work that waits in its scheduler's queue live on: their expiry moves while a source says so."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from ledger import keys
from ledger.clock import Clock, now_us
from ledger.connect import Client, again
from ledger.hold_ids import org_of_hold

_BATCH: Final = 5000


class WaitingHolds:
    """Moves the expiry of holds on. Remembers how far only to write seldom: twice in a window, not in every round."""

    def __init__(self, client: Client, window_us: int, clock: Clock = now_us) -> None:
        """`window_us`: how long a hold lives on after its work was last seen waiting; 0: holds are left alone."""
        self._client: Any = client
        self._window_us = window_us
        self._clock = clock
        self._until: dict[str, int] = {}

    async def keep(self, holds: Iterable[str], orgs: Iterable[str]) -> None:
        """These wait now; `orgs`: all names. One that ended meanwhile stays ended.

        Raises: LedgerUnavailable.
        """
        if not self._window_us:
            return
        now = self._clock()
        known = {hold: self._until.get(hold, 0) for hold in holds}
        due = [hold for hold, until in known.items() if until - now < self._window_us // 2]
        names = list(orgs) if any(hold.startswith("::") for hold in due) else []
        by_org: dict[str, list[str]] = {}
        for hold in due:
            org = org_of_hold(hold, names)
            if org is not None:
                by_org.setdefault(org, []).append(hold)
        until = now + self._window_us
        for org, mine in by_org.items():
            expiry = keys.of_org(org).hold_expiry
            for start in range(0, len(mine), _BATCH):
                part = dict.fromkeys(mine[start : start + _BATCH], until // 1000)
                await again(partial(self._client.zadd, expiry, part, xx=True))
        self._until = known | dict.fromkeys((hold for mine in by_org.values() for hold in mine), until)
