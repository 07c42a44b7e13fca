"""Holds of work that waits in its scheduler's queue live on while a source says so, and end soon where it does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from ledger import keys
from ledger.admission_request import LISTED_US
from ledger.clock import Clock, now_us, parse_time
from ledger.connect import Client, again
from ledger.hold_ids import org_of_hold
from ledger.lua import Script, common_keys, text

_BATCH: Final = 5000
_SCRIPT_BATCH: Final = 500
"""Holds that one script call looks at, so that it holds up the server for no longer than a few admissions."""
_AT_ONCE: Final = 200
"""Orgs whose holds are asked for in one go."""
SETTLED_US: Final = 60_000_000
"""What was admitted is listed after so long at the latest, or never: as long as an API server works on a request.
Half of a window, where that is less, so that no hold is given longer to be listed than it would have without."""


class Listing(NamedTuple):
    """What waits by a list that a source made at `taken_us`, by hold ids and by ids of work."""

    taken_us: int
    holds: Collection[str]
    work: Collection[str]


class _Hold(msgspec.Struct):
    """What counts here of a hold's record."""

    at: str
    cluster: str
    workload: str | None = None
    source: str = ""


class _Facts(NamedTuple):
    at_us: int
    work: str


class WaitingHolds:
    """Moves the expiry of holds. Remembers how far only to write seldom: twice in a hold's life, not in every round."""

    def __init__(
        self, client: Client, window_us: int, clock: Clock | None = None, cluster: str = "", source: str = ""
    ) -> None:
        """`window_us`: how long a hold that names no source lives on after its work was last seen waiting (one that
        does: LISTED_US); 0: holds are not kept. `clock` replaces this machine's and the server's in tests: holds
        live by the server's, so that no other is to agree with it."""
        self._client: Any = client
        self._keep, self._unlisted = Script(client, "keep"), Script(client, "unlisted")
        self._window_us = window_us
        self._given_clock = clock
        self._clock: Clock = clock or now_us
        self._cluster = cluster
        self._source = source
        self._due: dict[str, int] = {}
        """When a hold is to be moved on again; when what had none is looked for again."""
        self._facts: dict[str, _Facts | None] = {}
        """Of holds that no source listed by their ids; None: it names another source, or none."""

    async def keep(self, holds: Iterable[str], orgs: Iterable[str], work: Iterable[tuple[str, str]] = ()) -> None:
        """These wait now; `orgs`: all names; `work`: (org, id) of what does not say which hold it has.

        One that ended meanwhile stays ended. Raises: LedgerUnavailable.
        """
        if not self._window_us:
            return
        now = self._clock()
        known = {hold: self._due.get(hold, 0) for hold in holds}
        due = [hold for hold, at in known.items() if at <= now]
        names = list(orgs) if any(hold.startswith("::") for hold in due) else []
        by_org: dict[str, dict[str, str]] = defaultdict(dict)  # hold -> what it is remembered by
        for hold in due:
            org = org_of_hold(hold, names)
            if org is not None:
                by_org[org][hold] = hold
        await self._look_up(work, known, by_org, now)
        lives = [self._given(), str(self._window_us), str(max(self._window_us, LISTED_US))]
        for org, mine in by_org.items():
            script_keys = common_keys(keys.of_org(org))
            for part in _parts(list(mine), _SCRIPT_BATCH):
                for hold, kind in zip(part, await self._keep(script_keys, [*lives, *part]), strict=True):
                    life_us = max(self._window_us, LISTED_US) if kind == b"listed" else self._window_us
                    known[mine[hold]] = now + life_us // 2
        self._due = known

    async def end_unlisted(self, orgs: Iterable[str], listing: Listing, life_us: int) -> None:
        """Holds of this source's work that is not in the list end `life_us` from now at the latest.

        Unless they are too young for it, or a list has them meanwhile. `orgs`: those whose started work has been
        charged, so that no hold of theirs is of work that runs. Raises: LedgerUnavailable.
        """
        now = self._clock()
        at_most = min(listing.taken_us, now) - min(SETTLED_US, self._window_us // 2 or SETTLED_US)
        facts: dict[str, _Facts | None] = {}
        async for org, ends in self._ends(orgs):
            await self._read(org, [hold for hold in ends if hold not in listing.holds], facts)
            over = []
            for hold, ends_us in ends.items():
                fact, mark = facts.get(hold), hold
                if hold not in listing.holds:
                    if fact is None:
                        continue
                    if fact.work not in listing.work:
                        if fact.at_us <= at_most:
                            over.append(hold)
                        continue
                    mark = keys.US.join((org, fact.work))
                if ends_us < self._due.get(mark, 0):
                    del self._due[mark]  # another exporter did not see it, or the server lost its tail
            for part in _parts(over, _SCRIPT_BATCH):
                await self._unlisted(common_keys(keys.of_org(org)), [self._given(), str(life_us), *part])
        self._facts = facts

    def _given(self) -> str:
        return str(self._given_clock()) if self._given_clock else ""

    async def _ends(self, orgs: Iterable[str]) -> AsyncIterator[tuple[str, dict[str, int]]]:
        """(org, hold -> when it ends), some at a time."""

        async def first(names: list[str]) -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.zrange(name, 0, _BATCH - 1, withscores=True)
                found: list[Any] = await pipe.execute()
                return found

        for some in _parts(list(orgs), _AT_ONCE):
            names = [keys.of_org(org).hold_expiry for org in some]
            for org, name, found in zip(some, names, await again(partial(first, names)), strict=True):
                start = 0
                while found:
                    yield org, {text(hold): int(ms) * 1000 for hold, ms in found}
                    if len(found) < _BATCH:
                        break
                    start += _BATCH
                    last = start + _BATCH - 1
                    found = await again(partial(self._client.zrange, name, start, last, withscores=True))

    async def _read(self, org: str, wanted: list[str], facts: dict[str, _Facts | None]) -> None:
        for hold in wanted:
            if hold in self._facts:
                facts[hold] = self._facts[hold]
        for part in _parts([hold for hold in wanted if hold not in facts], _BATCH):
            records = await again(partial(self._client.hmget, keys.of_org(org).holds, part))
            for hold, record in zip(part, records, strict=True):
                facts[hold] = None if record is None else self._fact(record)

    def _fact(self, record: bytes) -> _Facts | None:
        hold = _decode(record)
        if hold.source != self._source or hold.cluster != self._cluster:
            return None
        return _Facts(parse_time(hold.at), (hold.workload or "").partition(keys.US)[2])

    async def _look_up(
        self, work: Iterable[tuple[str, str]], known: dict[str, int], by_org: dict[str, dict[str, str]], now: int
    ) -> None:
        """Holds by the ids of their work."""
        asked: dict[str, list[str]] = defaultdict(list)
        for org, name in work:
            mark = keys.US.join((org, name))
            known[mark] = self._due.get(mark, 0)
            if known[mark] <= now:
                asked[org].append(name)
        for org, ids in asked.items():
            hold_of = keys.of_org(org).hold_of
            for part in _parts(ids, _BATCH):
                fields = [f"{self._cluster}{keys.US}{name}" for name in part]
                for name, hold in zip(part, await again(partial(self._client.hmget, hold_of, fields)), strict=True):
                    mark = keys.US.join((org, name))
                    if hold is None:
                        known[mark] = now + self._window_us // 4
                    else:
                        by_org[org][text(hold)] = mark


_decode = msgspec.json.Decoder(_Hold).decode


def _parts(names: list[str], size: int) -> Iterator[list[str]]:
    return (names[start : start + size] for start in range(0, len(names), size))
