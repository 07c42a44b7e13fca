"""Holds of work that waits in its scheduler's queue live on: their expiry moves while a source says so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from ledger import keys
from ledger.clock import Clock, now_us
from ledger.connect import Client, again
from ledger.hold_ids import org_of_hold
from ledger.lua import text

_BATCH: Final = 5000
_Known = dict[str, int]
"""Until when a hold lives on; what has none is looked for again before that."""


class WaitingHolds:
    """Moves the expiry of holds on. Remembers how far only to write seldom: twice in a window, not in every round."""

    def __init__(self, client: Client, window_us: int, clock: Clock = now_us, cluster: str = "") -> None:
        """`window_us`: how long a hold lives on after its work was last seen waiting; 0: holds are left alone."""
        self._client: Any = client
        self._window_us = window_us
        self._clock = clock
        self._cluster = cluster
        self._until: _Known = {}

    async def keep(self, holds: Iterable[str], orgs: Iterable[str], work: Iterable[tuple[str, str]] = ()) -> None:
        """These wait now; `orgs`: all names; `work`: (org, id) of what does not say which hold it has.

        One that ended meanwhile stays ended. Raises: LedgerUnavailable.
        """
        if not self._window_us:
            return
        now = self._clock()
        known = {hold: self._until.get(hold, 0) for hold in holds}
        due = [hold for hold, until in known.items() if until - now < self._window_us // 2]
        names = list(orgs) if any(hold.startswith("::") for hold in due) else []
        by_org: dict[str, dict[str, str]] = defaultdict(dict)  # hold -> what it is remembered by
        for hold in due:
            org = org_of_hold(hold, names)
            if org is not None:
                by_org[org][hold] = hold
        await self._look_up(work, known, by_org, now)
        until = now + self._window_us
        for org, mine in by_org.items():
            expiry = keys.of_org(org).hold_expiry
            for part in _parts(list(mine)):
                moved = dict.fromkeys(part, until // 1000)
                await again(partial(self._client.zadd, expiry, moved, xx=True))
            known.update(dict.fromkeys(mine.values(), until))
        self._until = known

    async def _look_up(
        self, work: Iterable[tuple[str, str]], known: _Known, by_org: dict[str, dict[str, str]], now: int
    ) -> None:
        """Holds by the ids of their work."""
        asked: dict[str, list[str]] = defaultdict(list)
        for org, name in work:
            mark = keys.US.join((org, name))
            known[mark] = self._until.get(mark, 0)
            if known[mark] - now < self._window_us // 2:
                asked[org].append(name)
        for org, ids in asked.items():
            hold_of = keys.of_org(org).hold_of
            for part in _parts(ids):
                fields = [f"{self._cluster}{keys.US}{name}" for name in part]
                for name, hold in zip(part, await again(partial(self._client.hmget, hold_of, fields)), strict=True):
                    mark = keys.US.join((org, name))
                    if hold is None:
                        known[mark] = now + self._window_us * 3 // 4
                    else:
                        by_org[org][text(hold)] = mark


def _parts(names: list[str]) -> Iterable[list[str]]:
    return (names[start : start + _BATCH] for start in range(0, len(names), _BATCH))
