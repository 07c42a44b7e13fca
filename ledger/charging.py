"""The exporter's side of the ledger: read an org's state, commit a round's plan, find what is charged already."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from ledger import keys
from ledger.budgets import decode_budgets
from ledger.clock import Clock, now_us
from ledger.connect import Client, again
from ledger.errors import LedgerDamaged, TooLarge
from ledger.lua import Scripts, text
from ledger.money import MICRO_MAX, format_micro
from ledger.names import GLOB
from ledger.org_state import OrgState, decode_amounts, decode_rows
from ledger.plan import Plan, pack
from ledger.runs import Run, RunKey, field_of

BATCH = 5000
"""Fields asked for or written in one command, so that no command holds up the server for long."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who is charged for a workload: the org, since when, and what was carried over from the org before.

    `formers`: the orgs that it was claimed for before, back to the one that was charged for it last.
    """

    org: str
    since_us: int = 0
    carry: int = 0
    leg: int = 0
    formers: tuple[str, ...] = ()

    def encode(self) -> str:
        return keys.US.join((self.org, str(self.since_us), str(self.carry), str(self.leg), *self.formers))

    @classmethod
    def decode(cls, data: bytes) -> Claim:
        org, since, carry, leg, *formers = data.decode().split(keys.US)
        return cls(org, int(since), int(carry), int(leg), tuple(formers))


class Charging:
    """Reads and writes what rounds need. One commit is one script: all or nothing, at most once."""

    def __init__(self, client: Client, scripts: Scripts, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._scripts = scripts
        self._clock = clock

    async def load(self, org: str) -> OrgState:
        """An org's state of one instant. The runs have no rate line yet.

        Raises: LedgerUnavailable; LedgerDamaged when what is stored is not a state.
        """
        names = keys.of_org(org)

        async def read() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                for name in (names.org, names.rows, names.spent, names.runs, names.budgets, names.purse):
                    pipe.hgetall(name)
                result: list[Any] = await pipe.execute()
                return result

        while True:
            fields, rows, spent, runs, budgets, purse = await again(read)
            state = _state(org, fields, rows, spent, runs, budgets, purse)
            for source in state.marks:
                running = await again(partial(self._client.hgetall, names.running_of(source)))
                state.running[source] = {text(tier): int(micro) for tier, micro in running.items()}
            # After the runs: a bound that is newer than them only forbids more.
            state.forgotten_us = int(await again(lambda: self._client.hget(keys.META, "forgotten_us")) or 0)
            token = await again(lambda: self._client.hget(names.org, "commit"))
            if text(token) == state.token:
                return state

    async def commit(self, plan: Plan, state: OrgState) -> bool:
        """Write a plan computed from `state`, at most once. False: the org changed meanwhile, read it again.

        On success `state` has the new token, mark, running holds and totals.
        Raises: LedgerUnavailable: nothing is known of the outcome, read the org again; TooLarge: nothing was written.
        """
        packed = pack(plan, state, self._clock() if self._clock else now_us())
        now = str(self._clock()) if self._clock else ""
        answer = await self._scripts.charge(packed.script_keys, [packed.payload, now])
        if text(answer[0]) == "too_large":
            raise TooLarge(
                f"org {plan.org!r}: what it spent, or what its running work is to have set aside, would be more than "
                f"{format_micro(MICRO_MAX)} credits, the most that can be counted; look at its rates and the bytes of "
                "its volumes. Nothing of it was charged; other orgs are."
            )
        if text(answer[0]) not in ("ok", "replayed"):
            return False
        state.token = packed.token
        if plan.taken_us is not None:
            state.marks[plan.source] = plan.taken_us
        if plan.running is not None:
            state.running[plan.source] = plan.running
        for rows in plan.tally().values():
            for row, amounts in rows.items():
                total = state.totals.get(row)
                if total is None:
                    total = state.totals[row] = type(amounts)()
                total.micro += amounts.micro
                total.us += amounts.us
                total.refunded_micro += amounts.refunded_micro
                total.refunded_us += amounts.refunded_us
        return True

    async def tokens(self, orgs: Sequence[str]) -> dict[str, str]:
        """The token of the last commit of each org, '' where there is none."""
        found = await self._of_orgs(orgs, "commit")
        return {org: text(token) for org, token in zip(orgs, found, strict=True)}

    async def org_marks(self, source: str, orgs: Sequence[str]) -> dict[str, int]:
        """Up to when each org is charged for what goes on in a source, 0 where it never was."""
        found = await self._of_orgs(orgs, f"mark:{source}")
        return {org: int(mark or 0) for org, mark in zip(orgs, found, strict=True)}

    async def find_ended(self, org: str, cluster: str, wanted: Sequence[RunKey]) -> dict[RunKey, Run]:
        """The runs among `wanted` that this org was charged for and that do not go on."""
        fields = [field_of(cluster, key) for key in wanted]
        found = await self._many(keys.of_org(org).ended, fields)
        return {key: Run.decode(org, data) for key, data in zip(wanted, found, strict=True) if data is not None}

    async def find_ended_by_id(self, org: str, cluster: str, wanted: Collection[tuple[str, str]]) -> list[Run]:
        """The legs of runs of these (kind, id), whatever their start, that this org was charged for and that are over.

        Looks through all that the org was ever charged for: only for what hardly ever happens.
        """
        names = {name.translate(GLOB) for _, name in wanted}
        pattern = f"*{keys.US}{names.pop()}{keys.US}*" if len(names) == 1 else "*"
        found: list[Run] = []
        cursor = 0
        while True:
            cursor, part = await again(
                partial(self._client.hscan, keys.of_org(org).ended, cursor, match=pattern, count=BATCH)
            )
            for field, data in part.items():
                its_cluster, kind, name, _ = text(field).split(keys.US, 3)
                if its_cluster == cluster and (kind, name) in wanted:
                    found.append(Run.decode(org, data))
            if not cursor:
                return found

    async def find_claims(self, cluster: str, wanted: Sequence[RunKey]) -> dict[RunKey, Claim]:
        """Who is charged for which of these workloads already."""
        found = await self._many(keys.claims(cluster), [field_of("", key) for key in wanted])
        return {key: Claim.decode(data) for key, data in zip(wanted, found, strict=True) if data is not None}

    async def claim(self, cluster: str, claims: Mapping[RunKey, tuple[Claim | None, Claim]]) -> set[RunKey]:
        """Note who is charged from now on; before the first charge, so that no other org is charged as well.

        `claims`: what was there when it was decided (None: nothing), and what is to be there. Returns the
        workloads that were claimed otherwise meanwhile, for which nothing was written.
        """
        items = {field_of("", key): (key, *pair) for key, pair in claims.items()}
        refused: set[RunKey] = set()
        fields = list(items)
        for start in range(0, len(fields), BATCH):
            arguments: list[str] = []
            for field in fields[start : start + BATCH]:
                _, before, claim = items[field]
                arguments += [field, before.encode() if before else "", claim.encode()]
            answer = await self._scripts.claim([keys.claims(cluster)], arguments)
            refused.update(items[text(field)][0] for field in answer)
        return refused

    async def hold_limits(
        self, org: str, cluster: str, wanted: Iterable[tuple[str, str | None]]
    ) -> tuple[bool, dict[str, int]]:
        """(has the org any hold, run time limits by workload id or hold id) of (workload id, hold id) pairs."""
        names = keys.of_org(org)
        if not await again(lambda: self._client.hlen(names.holds)):
            return False, {}
        pairs = list(wanted)
        by_workload = await self._many(names.hold_of, [f"{cluster}{keys.US}{workload}" for workload, _ in pairs])
        named = [
            (hold or text(found), hold or workload) for (workload, hold), found in zip(pairs, by_workload, strict=True)
        ]
        asked = [(hold, label) for hold, label in named if hold]
        records = await self._many(names.holds, [hold for hold, _ in asked])
        limits: dict[str, int] = {}
        for (_, label), record in zip(asked, records, strict=True):
            limit = msgspec.json.decode(record).get("limit_us") if record is not None else None
            if limit:
                limits[label] = int(limit)
        return True, limits

    async def note_org(self, org: str) -> None:
        """Make sure the org is listed."""
        await again(lambda: self._client.sadd(keys.ORGS, org))

    async def source_mark(self, source: str) -> int | None:
        """Instant of the last snapshot of which everything was committed, None before the first."""
        value = await again(lambda: self._client.hget(keys.SOURCES, source))
        return None if value is None else int(value)

    async def source_marks(self) -> dict[str, int]:
        """The same of all sources that ever committed."""
        fields = await again(lambda: self._client.hgetall(keys.SOURCES))
        return {text(source): int(value) for source, value in fields.items()}

    async def held_workloads(self, org: str) -> set[tuple[str, str]]:
        """(cluster, workload id) of what has a hold that no charge has settled yet."""
        fields = await again(lambda: self._client.hkeys(keys.of_org(org).hold_of))
        found = (text(field).partition(keys.US) for field in fields)
        return {(cluster, workload) for cluster, _, workload in found}

    async def burn(self, org: str, source: str) -> int:
        """Micro-credits an hour that what runs now of a source costs an org."""
        return int(await again(lambda: self._client.hget(keys.of_org(org).org, f"burn:{source}")) or 0)

    async def set_source_mark(self, source: str, taken_us: int | None) -> None:
        """Say that everything in the snapshot of this instant is committed; None: in none yet."""
        if taken_us is None:
            await again(lambda: self._client.hdel(keys.SOURCES, source))
        else:
            await again(lambda: self._client.hset(keys.SOURCES, source, str(taken_us)))

    async def count_unbillable(self, source: str, grown: Mapping[str, int], now: Mapping[str, int]) -> None:
        """Add to the counters of workloads that could not be charged, and keep how many there are now.

        A lost answer may count them again.
        """

        async def write() -> None:
            async with self._client.pipeline(transaction=True) as pipe:
                for reason, count in grown.items():
                    pipe.hincrby(keys.UNBILLABLE, f"{source}{keys.US}{reason}", count)
                pipe.hset(keys.UNBILLABLE, source, msgspec.json.encode(dict(now)))
                await pipe.execute()

        await again(write)

    async def unbillable_now(self, source: str) -> dict[str, int]:
        """Reason -> how many workloads of a source there were at its last round, whoever made it."""
        kept = await again(partial(self._client.hget, keys.UNBILLABLE, source))
        return msgspec.json.decode(kept, type=dict[str, int]) if kept else {}

    async def unbillable(self) -> dict[tuple[str, str], int]:
        """(source, reason) -> how many so far."""
        fields = await again(lambda: self._client.hgetall(keys.UNBILLABLE))
        counts: dict[tuple[str, str], int] = {}
        for name, count in fields.items():
            source, _, reason = text(name).partition(keys.US)
            if reason:
                counts[source, reason] = int(count)
        return counts

    async def _of_orgs(self, orgs: Sequence[str], field: str) -> list[bytes | None]:
        async def read(part: Sequence[str]) -> list[bytes | None]:
            async with self._client.pipeline(transaction=False) as pipe:
                for org in part:
                    pipe.hget(keys.of_org(org).org, field)
                found: list[bytes | None] = await pipe.execute()
                return found

        result: list[bytes | None] = []
        for start in range(0, len(orgs), BATCH):
            result += await again(partial(read, orgs[start : start + BATCH]))
        return result

    async def _many(self, name: str, fields: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for start in range(0, len(fields), BATCH):
            part = list(fields[start : start + BATCH])
            found += await again(partial(self._client.hmget, name, part))
        return found


def _state(
    org: str,
    fields: dict[bytes, bytes],
    rows: dict[bytes, bytes],
    spent: dict[bytes, bytes],
    runs: dict[bytes, bytes],
    budgets: dict[bytes, bytes],
    purse: dict[bytes, bytes],
) -> OrgState:
    facts = {text(k): text(v) for k, v in fields.items()}
    try:
        state = OrgState(
            org,
            token=facts.get("commit", ""),
            budget_rev=facts.get("budget_rev", "0"),
            marks={k.removeprefix("mark:"): int(v) for k, v in facts.items() if k.startswith("mark:")},
            rows=decode_rows(rows),
            totals=decode_amounts(spent),
            budgets=decode_budgets(budgets),
            grant_edges=_edges(purse.values()),
            is_scoped=facts.get("scoped") == "1",
        )
        state.row_numbers = {row: number for number, row in enumerate(state.rows)}
        for data in runs.values():
            run = Run.decode(org, data)
            state.runs.setdefault(run.source, {})[run.key] = run
            state.latest.setdefault(run.source, {})[run.key[:2]] = run
    except (ValueError, msgspec.MsgspecError, TypeError) as e:
        raise LedgerDamaged(f"org {org!r}: the ledger's data cannot be read: {e}") from e
    return state


def _edges(purse: Iterable[bytes]) -> tuple[int, ...]:
    """Where grants that expire begin and end, ascending."""
    edges: set[int] = set()
    for entry in purse:
        starts, expires = entry.split(b"|", 2)[:2]
        if expires:
            edges |= {int(starts), int(expires)}
    return tuple(sorted(edges))
