"""Holds of work that waits in its scheduler's queue live on while a source says so, and end soon where it does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

from ledger import keys
from ledger.clock import Clock, now_us
from ledger.connect import Client, again
from ledger.hold_ids import org_of_hold
from ledger.lua import Script, common_keys, text
from ledger.unlisted_holds import BATCH, SCRIPT_BATCH, Lives, UnlistedHolds, parts
from ledger.unlisted_holds import Listing as Listing

_Mark = str | tuple[str, str]
"""A hold, or (org, id) of work that does not say which hold it has."""


class WaitingHolds:
    """Moves the expiry of holds. Remembers how far only to write seldom: thrice in a hold's life, not in every round.

    So a hold is moved on in time also where the ledger lost that it was, the last time.
    """

    def __init__(
        self, client: Client, window_us: int, clock: Clock | None = None, cluster: str = "", source: str = ""
    ) -> None:
        """`window_us`: how long a hold that names no source lives on after its work was last seen waiting (one that
        does: `Lives`); 0: holds are not kept. `clock` replaces this machine's and the server's in tests: holds live by
        the server's, so that no other is to agree with it."""
        self._client: Any = client
        self._script = Script(client, "keep")
        self._window_us = window_us
        self._lives = Lives(window_us)
        self._given_clock = clock
        self._clock: Clock = clock or now_us
        self._cluster = cluster
        self._due: dict[_Mark, int] = {}
        """When a hold is to be moved on again; when what had none is looked for again."""
        self._kept_us = 0
        self._unlisted = UnlistedHolds(client, self._lives, self._clock, self._given, (cluster, source), self._keep)

    async def keep(self, holds: Iterable[str], orgs: Iterable[str], work: Iterable[tuple[str, str]] = ()) -> None:
        """These wait now; `orgs`: all names; `work`: (org, id) of what does not say which hold it has.

        One that ended meanwhile stays ended. Raises: LedgerUnavailable.
        """
        if not self._window_us:
            return
        now, marks, known = self._clock(), set[_Mark](holds).union(work), self._due
        if now < self._kept_us:
            known.clear()  # the clock went back, that of the server may not have
        self._kept_us = now
        new = marks.difference(known)
        if len(known) + len(new) > len(marks):
            for mark in [mark for mark in known if mark not in marks]:
                del known[mark]
        due = [*new, *(mark for mark, at in known.items() if at <= now)]
        named = [mark for mark in due if isinstance(mark, str)]
        names = list(orgs) if any(hold.startswith("::") for hold in named) else []
        by_org: dict[str, dict[str, _Mark]] = defaultdict(dict)  # hold -> what it is remembered by
        for hold in named:
            org = org_of_hold(hold, names)
            if org is not None:
                by_org[org][hold] = hold
        await self._look_up([mark for mark in due if not isinstance(mark, str)], by_org, now)
        for org, mine in by_org.items():
            for hold, kind in (await self._keep(org, mine)).items():
                known[mine[hold]] = now + (self._lives.moved_us if kind == b"listed" else self._window_us // 3)

    async def end_unlisted(self, orgs: Iterable[str], listing: Listing, life_us: int) -> None:
        """Holds of this source's work that is not in the list end `life_us` from now at the latest.

        Unless they are too young for it, or a list has them meanwhile. `orgs`: those whose started work has been
        charged, so that no hold of theirs is of work that runs. Raises: LedgerUnavailable.
        """
        await self._unlisted.end(orgs, listing, life_us)

    def _given(self) -> str:
        return str(self._given_clock()) if self._given_clock else ""

    async def _keep(self, org: str, holds: Collection[str]) -> dict[str, bytes]:
        """Have these live on; what keep.lua says of each."""
        lives = [self._given(), str(self._lives.plain_us), str(self._lives.waiting_us)]
        kinds: dict[str, bytes] = {}
        for part in parts(list(holds), SCRIPT_BATCH):
            kinds.update(zip(part, await self._script(common_keys(keys.of_org(org)), [*lives, *part]), strict=True))
        return kinds

    async def _look_up(self, work: Iterable[tuple[str, str]], by_org: dict[str, dict[str, _Mark]], now: int) -> None:
        """Holds by the ids of their work."""
        asked: dict[str, list[str]] = defaultdict(list)
        for org, name in work:
            asked[org].append(name)
        for org, ids in asked.items():
            hold_of = keys.of_org(org).hold_of
            for part in parts(ids, BATCH):
                fields = [f"{self._cluster}{keys.US}{name}" for name in part]
                for name, hold in zip(part, await again(partial(self._client.hmget, hold_of, fields)), strict=True):
                    if hold is None:
                        self._due[org, name] = now + self._window_us // 4
                    else:
                        by_org[org][text(hold)] = org, name
