"""Holds whose work no list has any more end soon, at a cost that goes by what changed and not by how many wait.

What left the list is the difference to the one before. The ledger is asked for what that cannot tell: which holds no
list is known to have had, which were said to wait since the last look (maybe by another exporter), and which are about
to end. When a hold ends tells these apart (`Lives`). All holds of an org are looked at only where nothing is known of
it: at the start, and where the ledger lost what was ended here (the token written with it is not there) by a crash.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple

import msgspec
from redis.asyncio import Redis

from ledger import keys
from ledger.admission_request import LISTED_US
from ledger.clock import Clock, parse_time
from ledger.connect import Client, again
from ledger.hold_ids import org_of_hold
from ledger.lua import Script, common_keys, text

BATCH: Final = 5000
SCRIPT_BATCH: Final = 500
"""Holds that one script call looks at, so that it holds up the server for no longer than a few admissions."""
_LATE_US: Final = 2**63
_AT_ONCE: Final = 100
"""Orgs whose holds are asked for in one go."""
SETTLED_US: Final = 60_000_000
"""What was admitted is listed after so long at the latest, or never: as long as an API server works on a request.
Half of a window, where that is less, so that no hold is given longer to be listed than it would have without."""


class Listing(NamedTuple):
    """What waits by a list that a source made at `taken_us`, by hold ids and by ids of work."""

    taken_us: int
    holds: AbstractSet[str]
    work: AbstractSet[str]


class Lives:
    """How long (us) holds live on, which also says what is known of one: none but those that were said to wait end as
    late as these, as these are moved on again in time."""

    def __init__(self, window_us: int) -> None:
        self.plain_us = window_us
        """From when its work was last said to wait, of one that names no source."""
        self.admitted_us = max(window_us, LISTED_US)
        """From its admission, of one that does."""
        self.waiting_us = self.admitted_us * 3 // 2
        """From when its work was last said to wait, of one that does."""
        self.moved_us = self.admitted_us // 4
        """So long after that it is said again."""
        self.unknown_us = min(window_us, self.admitted_us // 2), self.admitted_us * 9 // 8
        """Those that end from so long from now to so long are not known to wait. Clocks may differ by an eighth."""

    def is_stale(self, left_us: int, soon_us: int) -> bool:
        """Whether work that waits is to be said so again, for a hold that ends `left_us` from now."""
        since, until = self.unknown_us
        return left_us <= soon_us or since < left_us <= until


class _Hold(msgspec.Struct):
    """What counts here of a hold's record."""

    at: str
    cluster: str
    workload: str | None = None
    source: str = ""


class _Facts(NamedTuple):
    at_us: int
    work: str


@dataclass(slots=True)
class _Look:
    """What a look at an org's holds finds: those to be said to wait, those to be looked at again, those of no list
    any more, and which of these are to be told so."""

    at_us: int
    life_us: int
    was_over: AbstractSet[str]
    stale: set[str] = field(default_factory=set)
    young: set[str] = field(default_factory=set)
    over: set[str] = field(default_factory=set)
    told: set[str] = field(default_factory=set)

    def note_over(self, hold: str, ends_us: int) -> None:
        self.over.add(hold)
        if hold not in self.was_over or ends_us > self.at_us + self.life_us:
            self.told.add(hold)


class _Seen(NamedTuple):
    """The last look at an org: when, by which token the ledger still has all of it, what was over then."""

    at_us: int
    token: str
    over: AbstractSet[str]


class UnlistedHolds:
    """Ends holds of one source's work. What it keeps in memory can all be lost: it then looks at everything once."""

    def __init__(
        self,
        client: Client,
        lives: Lives,
        clock: Clock,
        given: Callable[[], str],
        source: tuple[str, str],
        keep: Callable[[str, Collection[str]], Awaitable[object]],
    ) -> None:
        """`given`: what stands for the server's clock in tests, else ''. `source`: its cluster and its name. `keep`:
        says that holds of an org wait."""
        self._client: Any = client
        self._unsettled, self._unlisted = Script(client, "unsettled"), Script(client, "unlisted")
        self._lives = lives
        self._clock = clock
        self._given = given
        self._source = source
        self._keep = keep
        self._name = secrets.token_hex(8)
        self._seen: dict[str, _Seen] = {}
        self._last = Listing(0, frozenset(), frozenset())
        self._by_work: dict[str, list[tuple[str, str]]] = {}
        """By ids of work that the last list had: (org, hold)."""
        self._open: dict[str, set[str]] = {}
        """By org: holds that left the list and are still to be looked at, or were too young then."""
        self._others: set[str] = set()
        """Of what was looked at last: holds that are not of this source's work."""

    async def end(self, orgs: Iterable[str], listing: Listing, life_us: int) -> None:
        """As `WaitingHolds.end_unlisted`. Raises: LedgerUnavailable; what was not done then is done the next time."""
        names = list(orgs)
        self._note_what_left(listing, names)
        others: set[str] = set()
        for some in parts(names, _AT_ONCE):
            for org, at_us, answer in await self._ask(some, life_us):
                await self._settle(org, at_us, answer, listing, life_us, others)
        self._others = others

    def _note_what_left(self, listing: Listing, orgs: Iterable[str]) -> None:
        left: set[tuple[str, str]] = set()
        for work in self._last.work - listing.work:
            left.update(self._by_work.pop(work, ()))
        if gone := self._last.holds - listing.holds:
            known = {*orgs, *self._seen}  # another org's are all looked at once it is among these
            left.update((org, hold) for hold in gone if (org := org_of_hold(hold, known)) in known)
        for org, hold in left:
            self._open.setdefault(org, set()).add(hold)
        self._last = listing

    async def _ask(self, orgs: list[str], life_us: int) -> list[tuple[str, int, Any]]:
        """(org, when it was, what unsettled.lua says of it)"""
        limits = [self._given(), life_us, *self._lives.unknown_us, self._lives.waiting_us]
        names = [(keys.of_org(org).hold_expiry, self._token_key(org)) for org in orgs]
        since = [("", "") if (seen := self._seen.get(org)) is None else (seen.at_us, seen.token) for org in orgs]
        if isinstance(self._client, Redis):
            at, *answers = await self._unsettled(list(chain(*names)), [*limits, *chain(*since)])
            return [(org, int(at), answer) for org, answer in zip(orgs, answers, strict=True)]

        async def each() -> list[Any]:  # they may be on any node of the cluster
            async with self._client.pipeline(transaction=False) as pipe:
                for name, before in zip(names, since, strict=True):
                    pipe.execute_command("EVALSHA", self._unsettled.digest, 2, *name, *limits, *before)
                said: list[Any] = await pipe.execute(raise_on_error=False)
                return said

        found = await again(each)
        for number, said in enumerate(found):
            if isinstance(said, Exception):  # the node does not have the script yet, or there is real trouble
                found[number] = await self._unsettled(names[number], [*limits, *since[number]])
        return [(org, int(at), answer) for org, (at, answer) in zip(orgs, found, strict=True)]

    async def _settle(
        self, org: str, at_us: int, answer: Any, listing: Listing, life_us: int, others: set[str]
    ) -> None:
        token, is_all, found = text(answer[0]), text(answer[1]), answer[2]
        seen, opened = self._seen.get(org), self._open.get(org, set())
        if not found and not opened and seen is not None and not is_all and not seen.over:
            return  # nearly always
        was_over = seen.over if seen is not None and seen.token == token else frozenset[str]()
        look, is_news = _Look(at_us, life_us, was_over), False
        async for page in self._all(org) if is_all == "many" else _one_page(found):
            gone = await self._sort(org, dict.fromkeys(opened, _LATE_US) | page, listing, look, others)
            is_news = is_news or not opened.isdisjoint(gone)
            opened = set()
        if look.stale and self._lives.plain_us:
            await self._keep(org, look.stale)
        if look.told or is_news:
            for part in parts(list(look.told), SCRIPT_BATCH) if look.told else ([],):
                token = secrets.token_hex(8)  # of each: the ledger may have lost the last ones only
                names = [*common_keys(keys.of_org(org)), self._token_key(org)]
                await self._unlisted(names, [self._given(), str(life_us), token, *part])
        if look.young:
            self._open[org] = look.young
        else:
            self._open.pop(org, None)
        self._seen[org] = _Seen(at_us, token, look.over)

    async def _sort(self, org: str, ends: dict[str, int], listing: Listing, look: _Look, others: set[str]) -> list[str]:
        """What is to be done with which hold, by when each ends. Returns those that are over, or of other work."""
        settled_us = min(SETTLED_US, self._lives.plain_us // 2 or SETTLED_US)
        at_most = min(listing.taken_us, self._clock()) - settled_us
        facts = await self._read(org, [hold for hold in ends if hold not in listing.holds], others)
        gone = []
        for hold, ends_us in ends.items():
            fact = facts.get(hold)
            if fact is None and hold not in listing.holds:
                gone.append(hold)
            elif fact is None or fact.work in listing.work:
                if fact is not None:
                    self._note_listed(fact.work, org, hold)
                if self._lives.is_stale(ends_us - look.at_us, look.life_us):
                    look.stale.add(hold)
            elif fact.at_us > at_most:
                look.young.add(hold)
            else:
                look.note_over(hold, ends_us)
        return gone

    async def _all(self, org: str) -> AsyncIterator[dict[str, int]]:
        """hold -> when it ends (us), some at a time; one that is there all the while at least once."""
        name, cursor = keys.of_org(org).hold_expiry, 0
        while True:
            cursor, found = await again(partial(self._client.zscan, name, cursor, count=BATCH))
            yield {text(hold): int(ms) * 1000 for hold, ms in found}
            if not cursor:
                return

    async def _read(self, org: str, wanted: Iterable[str], others: set[str]) -> dict[str, _Facts]:
        """Of this source's work alone."""
        facts: dict[str, _Facts] = {}
        others.update(asked := self._others.intersection(wanted))
        for part in parts([hold for hold in wanted if hold not in asked], BATCH):
            records = await again(partial(self._client.hmget, keys.of_org(org).holds, part))
            for hold, record in zip(part, records, strict=True):
                if record is None:
                    continue
                known = _decode(record)
                if (known.cluster, known.source) == self._source:
                    facts[hold] = _Facts(parse_time(known.at), (known.workload or "").partition(keys.US)[2])
                else:
                    others.add(hold)
        return facts

    def _note_listed(self, work: str, org: str, hold: str) -> None:
        holds = self._by_work.setdefault(work, [])
        if (org, hold) not in holds:
            holds.append((org, hold))

    def _token_key(self, org: str) -> str:
        return keys.of_org(org).unlisted(self._name)


_decode = msgspec.json.Decoder(_Hold).decode


async def _one_page(found: list[bytes]) -> AsyncIterator[dict[str, int]]:
    yield {text(hold): int(ms) * 1000 for hold, ms in zip(found[::2], found[1::2], strict=True)}


def parts(names: list[str], size: int) -> Iterator[list[str]]:
    """The names, no more than `size` at a time."""
    return (names[start : start + size] for start in range(0, len(names), size))
