"""What of a cluster's charges was passed on to the platform that runs it, so that each is passed on once.

A platform keeps balances of orgs and of their users. For each of these subjects a progress is kept: what was passed on
in all, and at most one posting that is under way. A posting is written here, durably, before it is sent: after a crash
the same one, with the same key and amount, is sent again, and the platform takes it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from ledger import keys
from ledger.connect import again
from ledger.errors import LedgerDamaged
from ledger.lua import text
from ledger.money import HOUR_US
from ledger.org_state import Amounts, decode_amounts, decode_rows
from ledger.store import Ledger

_BASE: Final = "base"
_FIRST: Final = f"s{keys.US}"
"""Fields of subjects begin with it; no other does."""


class Progress(NamedTuple):
    """Of one subject: postings so far, what they came to, and the one that is under way (0: none), up to `hour_us`."""

    revision: int = 0
    done_micro: int = 0
    pending_micro: int = 0
    hour_us: int = 0

    def next(self, micro: int, hour_us: int) -> Progress:
        """With a posting under way of what is due up to a full hour."""
        return Progress(self.revision + 1, self.done_micro, micro, hour_us)

    def confirmed(self) -> Progress:
        """With the posting made."""
        return Progress(self.revision, self.done_micro + self.pending_micro, 0, self.hour_us)

    def encode(self) -> str:
        return keys.US.join(map(str, self))


class Subject(NamedTuple):
    """One subject of an org: `user` "" is the org itself. `charged_micro`: since charging back began."""

    user: str
    charged_micro: int
    progress: Progress

    @property
    def due_micro(self) -> int:
        """What no posting was made for yet, the one under way included."""
        return max(0, self.charged_micro - self.progress.done_micro)


class OrgCharges(NamedTuple):
    """The subjects of an org, and what corrections gave back to it, which is never passed on."""

    subjects: list[Subject]
    refunded_micro: int


class ChargeBacks:
    """The progress of one cluster."""

    def __init__(self, ledger: Ledger, cluster: str) -> None:
        self._ledger = ledger
        self._client: Any = ledger.client
        self._cluster = cluster

    async def begin(self, now_us: int) -> None:
        """What is charged by now is never passed on: note it, the first time. Raises: LedgerUnavailable."""
        field = f"charge_back:{self._cluster}"
        if await again(lambda: self._client.hget(keys.META, field)) is not None:
            return
        for org in await self._ledger.accounts.orgs():
            charged, refunded = await self._charged(org, None)
            base = msgspec.json.encode({"charged": charged, "refunded": refunded})
            await again(partial(self._client.hsetnx, self._name(org), _BASE, base))
        # Last: an org that comes after it is passed on from its first charge.
        await again(lambda: self._client.hsetnx(keys.META, field, str(now_us)))

    async def read(self, org: str, hour_us: int) -> OrgCharges:
        """What an org and its users were charged for before a full hour, and how far it was passed on.

        Raises: LedgerUnavailable, LedgerDamaged.
        """
        fields = await again(partial(self._client.hgetall, self._name(org)))
        charged, refunded = await self._charged(org, hour_us)
        try:
            base = msgspec.json.decode(fields.get(_BASE.encode(), b"{}"))
            known = {
                text(field)[len(_FIRST) :]: Progress(*map(int, text(value).split(keys.US)))
                for field, value in fields.items()
                if text(field).startswith(_FIRST)
            }
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise LedgerDamaged(f"org {org!r}: what was passed on to the platform cannot be read: {error}") from error
        before = base.get("charged", {})
        subjects = [
            Subject(user, micro - before.get(user, 0), known.get(user, Progress()))
            for user, micro in sorted({**dict.fromkeys(known, 0), **charged}.items())
        ]
        return OrgCharges(subjects, refunded - base.get("refunded", 0))

    async def put(self, org: str, changes: Mapping[str, tuple[Progress, Progress]], *, durably: bool) -> set[str]:
        """Write (before, after) of subjects; those that are otherwise by now are left alone and given back.

        Raises: LedgerUnavailable; a repetition is safe.
        """
        arguments: list[str] = []
        for user, (before, after) in changes.items():
            arguments += [_FIRST + user, before.encode() if before.revision else "", after.encode()]
        # Compare and set of single fields, as for claims.
        script = self._ledger.scripts.claim
        call = script.durably if durably else script
        return {text(field)[len(_FIRST) :] for field in await call([self._name(org)], arguments)}

    async def key_of(self, org: str, user: str, progress: Progress) -> str:
        """The idempotency key of the posting under way: the same after every crash, and no other's."""
        ledger_id = text(await again(lambda: self._client.hget(keys.META, "ledger_id")))
        named = keys.US.join((ledger_id, self._cluster, org, user))
        digest = hashlib.sha256(named.encode()).hexdigest()[:24]
        return f"credits-{digest}-{progress.hour_us // 1_000_000}-{progress.revision}"

    def _name(self, org: str) -> str:
        return keys.of_org(org).charge_back(self._cluster)

    async def _charged(self, org: str, hour_us: int | None) -> tuple[dict[str, int], int]:
        """(micro-credits by user, "" for all; refunded), of all time or of that before a full hour."""
        names = keys.of_org(org)
        later = [] if hour_us is None else [names.bucket(hour_us), names.bucket(hour_us + HOUR_US)]

        async def ask() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                for name in (names.rows, names.spent, *later):
                    pipe.hgetall(name)
                answer: list[Any] = await pipe.execute()
                return answer

        rows, spent, *buckets = await again(ask)
        sums = {"": 0}
        refunded = 0
        after = [decode_amounts(bucket) for bucket in buckets]
        totals = decode_amounts(spent)
        for number, row in enumerate(decode_rows(rows)):
            if row.cluster != self._cluster:
                continue
            amounts = totals.get(number, Amounts())
            micro = amounts.micro - sum(bucket[number].micro for bucket in after if number in bucket)
            refunded += amounts.refunded_micro
            sums[""] += micro
            # The platform's users are people: what their service accounts use is theirs.
            if user := row.user.partition("/")[0]:
                sums[user] = sums.get(user, 0) + micro
        return sums, refunded
