"""Rounds: fetch a snapshot, meter it, commit it org by org. Two exporters at once charge nothing twice.

Known fault: a job that moves between orgs just as one of them overtakes the other may be charged short.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import msgspec

from exporter.matching import Lines, OrgWork, Origin
from exporter.meter import Meter, facts
from exporter.sources.base import Source
from ledger.charging import Claim
from ledger.errors import LedgerUnavailable, TooLarge
from ledger.model import Observation, RatePlan, Snapshot
from ledger.money import COST_DENOMINATOR
from ledger.org_state import OrgState, Row
from ledger.plan import Plan
from ledger.rates_history import RateLine, line_of
from ledger.runs import Run, RunKey, cumulative, key_of
from ledger.store import Ledger

log = logging.getLogger(__name__)
CHUNK = 5000
"""Run records one commit writes at most, so that no script holds up the server for long."""
TRIES = 8
"""Commits tried before a round gives an org up until the next one: another exporter is at work on it."""


LateClaims = dict[str, dict[RunKey, tuple[Claim | None, Claim]]]
"""By org: claims to write, and what they were decided from, just before the org's commit."""


@dataclass(slots=True)
class RoundReport:
    """What one round did. `failed`: orgs that were left for the next round."""

    source: str
    taken_us: int
    workloads: int = 0
    commits: int = 0
    records: int = 0
    failed: list[str] = field(default_factory=list)


class Books:
    """The orgs' states in memory, shared by the rounds of all sources, and the rates they are charged at."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.states: dict[str, OrgState] = {}
        self.plans: dict[str, tuple[str, RatePlan | None]] = {}
        self._lines: dict[str, Lines] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._cluster_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stale: set[str] = set()
        self._on_reload: list[Callable[[str], None]] = []
        self._on_rates: list[Callable[[], None]] = []

    def on_reload(self, forget: Callable[[str], None], forget_closed: Callable[[], None]) -> None:
        """Call `forget(org)` before an org's state is replaced, `forget_closed()` when rates changed."""
        self._on_reload.append(forget)
        self._on_rates.append(forget_closed)

    def cluster_lock(self, cluster: str) -> asyncio.Lock:
        """Held from matching to commit: sources of one cluster may list the same run, and take it from each other."""
        return self._cluster_locks[cluster]

    def lock(self, org: str) -> asyncio.Lock:
        return self._locks[org]

    async def load_all(self) -> None:
        """Read every org that is not in memory yet, or that a failed commit left in doubt."""
        for org in await self.ledger.accounts.orgs():
            await self.have(org)

    async def have(self, org: str) -> OrgState:
        """The state of an org, read from the ledger where it is not known or in doubt."""
        state = self.states.get(org)
        if state is None or org in self._stale:
            return await self.reload(org)
        return state

    async def confirm(self) -> None:
        """Read the orgs anew that the ledger does not have as they are in memory.

        A server that lost the tail of its log took commits back, and an org with nothing to commit would never
        learn of it from a refused one.
        """
        tokens = await self.ledger.charging.tokens(list(self.states))
        for org in [org for org, token in tokens.items() if token != self.states[org].token]:
            async with self.lock(org):  # another source's commit may be under way, so look again
                if (await self.ledger.charging.tokens([org]))[org] != self.states[org].token:
                    await self.reload(org)

    async def reload(self, org: str) -> OrgState:
        """Read an org's state from the ledger."""
        state = await self.ledger.charging.load(org)
        for cluster in {run.cluster for runs in state.runs.values() for run in runs.values()}:
            await self.lines(cluster)
        for forget in self._on_reload:
            forget(org)
        for source, runs in state.runs.items():
            for run in runs.values():
                self._anchor(state, source, run)
        self.states[org] = state
        self._stale.discard(org)
        return state

    async def row(self, org: str, number: int) -> Row:
        """A row of an org; the org is read again where another exporter made the row meanwhile."""
        state = await self.have(org)
        if number >= len(state.rows):
            state = await self.reload(org)
        return state.rows[number]

    def doubt(self, orgs: Iterable[str]) -> None:
        """What is in memory may not be what the ledger has: read it again before it is used."""
        self._stale.update(orgs)

    async def lines(self, cluster: str) -> Lines:
        """The rate lines of a cluster as last read."""
        if cluster not in self._lines:
            self._set_plan(cluster, *await self.ledger.rates.read(cluster))
        return self._lines[cluster]

    async def fix_rates(self, cluster: str, until_us: int) -> Lines:
        """The rate lines of a cluster, fixed for all time before `until_us`."""
        version = await self.ledger.rates.announce(cluster, until_us)
        if cluster not in self._lines or self.plans[cluster][0] != version:
            self._set_plan(cluster, *await self.ledger.rates.read(cluster))
            for forget_closed in self._on_rates:
                forget_closed()
            for state in self.states.values():
                for source, runs in state.runs.items():
                    for run in runs.values():
                        if run.cluster == cluster:
                            self._anchor(state, source, run)
        return self._lines[cluster]

    def _set_plan(self, cluster: str, version: str, plan: RatePlan | None) -> None:
        @cache
        def line(kind: str, resource: str, app: str, bills_app: bool) -> RateLine:
            return line_of(plan, kind, resource, app, bills_app)

        self.plans[cluster] = version, plan
        self._lines[cluster] = line

    def _anchor(self, state: OrgState, source: str, run: Run) -> None:
        row = state.rows[run.row]
        run.line = self._lines[run.cluster](row.kind, row.resource, row.app, run.bills_app)
        run.settle_anchor(run.charged_until(state.marks.get(source)))


class Rounds:
    """The rounds of one source."""

    def __init__(self, books: Books, source: Source, hold_us: int) -> None:
        self.books = books
        self.ledger = books.ledger
        self.source = source
        self.meter = Meter(source.name, source.cluster, books.ledger.epoch_us, hold_us)
        self._unbillable: dict[str, int] = {}
        self._unpriced = 0
        self._too_late = 0
        books.on_reload(self.meter.matcher.forget, self.meter.matcher.forget_closed)

    async def round(self) -> RoundReport:
        """Fetch, meter, commit.

        Raises: SourceError (nothing was changed); LedgerUnavailable (what was committed stays; the next round
            goes on from there); TooLarge (one org could not be committed, all others were).
        """
        since = await self.ledger.charging.source_mark(self.source.name)
        return await self.take(await self.source.fetch(since), since)

    async def take(self, snapshot: Snapshot, since: int | None) -> RoundReport:
        """Meter and commit one snapshot; `since`: up to where the source was committed before."""
        async with self.books.cluster_lock(self.meter.cluster):
            return await self._take(snapshot, since)

    async def _take(self, snapshot: Snapshot, since: int | None) -> RoundReport:
        books, meter = self.books, self.meter
        report = RoundReport(meter.source, snapshot.taken_us, len(snapshot.workloads))
        lines = await books.fix_rates(meter.cluster, snapshot.taken_us)
        await books.load_all()
        await books.confirm()
        for org in {observation.org for observation in snapshot.workloads} - books.states.keys():
            await self.ledger.charging.note_org(org)
            await books.have(org)
        work = meter.matcher.sort(snapshot, books.states)
        seen = {org: books.states[org] for org in books.states}
        late_claims = await self._resolve(work, snapshot, lines, report)
        orgs = {org for org, state in seen.items() if org in work or self._has_part(state)}
        too_large: TooLarge | None = None
        try:
            # Orgs that workloads move out of come first: only then does the next org begin to charge them.
            for org in sorted(orgs, key=lambda name: (not work[name].moved if name in work else True, name)):
                try:
                    await self._commit_org(org, seen[org], work.get(org), snapshot, lines, late_claims, report)
                except TooLarge as error:
                    too_large = error  # no other org is to wait for it
        except LedgerUnavailable:
            books.doubt(orgs)
            raise
        is_newer = since is None or snapshot.taken_us > since
        if is_newer and not too_large and not report.failed and await self._still_committed():
            await self.ledger.charging.set_source_mark(meter.source, snapshot.taken_us)
            if not await self._still_committed():  # the server lost its tail and came back in between
                await self.ledger.charging.set_source_mark(meter.source, since)
        await self._count(snapshot)
        if too_large is not None:
            raise too_large
        return report

    async def _still_committed(self) -> bool:
        """Whether the ledger still has what was committed: if not, workloads that ended since are asked for again."""
        source = self.meter.source
        marks = {org: state.marks[source] for org, state in self.books.states.items() if source in state.marks}
        present = await self.ledger.charging.org_marks(source, list(marks))
        return all(present[org] >= mark for org, mark in marks.items())

    def _has_part(self, state: OrgState) -> bool:
        source = self.meter.source
        return bool(state.runs.get(source) or state.running.get(source))

    async def _commit_org(
        self,
        org: str,
        sorted_from: OrgState,
        work: OrgWork | None,
        snapshot: Snapshot,
        lines: Lines,
        late_claims: LateClaims,
        report: RoundReport,
    ) -> None:
        books, meter = self.books, self.meter
        async with books.lock(org):
            state = books.states[org]
            again = state is not sorted_from
            for _ in range(TRIES):
                if again:
                    found = meter.matcher.sort(snapshot, books.states, only=org)
                    late_claims.pop(org, None)
                    late_claims.update(await self._resolve(found, snapshot, lines, report))
                    if found.keys() - {org}:
                        break  # another org has to let go first, and its turn is over
                    leaving = [(run.key, observation) for run, observation in work.moved] if work else []
                    work = found.setdefault(org, OrgWork())
                    runs = state.runs.get(meter.source, {})
                    work.moved = [(runs[key], observation) for key, observation in leaving if key in runs]
                refused = org in late_claims and await self.ledger.charging.claim(meter.cluster, late_claims[org])
                if not refused and await self._commit(state, work or OrgWork(), snapshot, lines, report):
                    return
                state = await books.reload(org)
                again = True
        report.failed.append(org)

    async def _commit(
        self, state: OrgState, work: OrgWork, snapshot: Snapshot, lines: Lines, report: RoundReport
    ) -> bool:
        while len(work.new) + len(work.changed) > CHUNK:
            part = OrgWork(
                changed=work.changed[:CHUNK], new=work.new[:CHUNK], origins=work.origins, limits=work.limits,
                settles=work.settles,
            )  # fmt: skip
            work.changed, work.new = work.changed[CHUNK:], work.new[CHUNK:]
            if not await self._write(self.meter.partial(state, part, snapshot, lines), state, report):
                return False
        plan = self.meter.plan(state, work, snapshot, lines)
        return plan.is_empty() or await self._write(plan, state, report)

    async def _write(self, plan: Plan, state: OrgState, report: RoundReport) -> bool:
        try:
            if not await self.ledger.charging.commit(plan, state):
                return False
        except BaseException:
            # Cancelled or unanswered: it may have been written or not, so what is in memory is in doubt.
            self.books.doubt([state.name])
            raise
        report.commits += 1
        report.records += plan.changes
        return True

    async def _resolve(
        self, work: dict[str, OrgWork], snapshot: Snapshot, lines: Lines, report: RoundReport
    ) -> LateClaims:
        """Ask the ledger about workloads that are new to memory; claims to write before the orgs' commits."""
        charging, cluster = self.ledger.charging, self.meter.cluster
        late: LateClaims = {}
        for org, part in list(work.items()):
            if not part.new:
                if part.over:
                    part.settles, _ = await charging.hold_limits(org, cluster, [])
                continue
            by_key = {key_of(observation): observation for observation in part.new}
            known = await charging.find_ended(org, cluster, list(by_key))
            claims = await charging.find_claims(cluster, list(by_key))
            fresh: dict[RunKey, tuple[Claim | None, Claim]] = {}
            moved: dict[RunKey, tuple[Claim | None, Claim]] = {}
            for key in list(by_key):
                claim, former = claims.get(key), known.get(key)
                if claim is not None and claim.org != org:
                    origin = await self._leave(work, claim, by_key[key], snapshot, lines)
                    if origin is None:
                        del by_key[key]  # it stays with the org that was charged for it
                        continue
                    part.origins[key] = origin
                    moved[key] = claim, Claim(org, origin.at, origin.carry, origin.leg)
                    if former is not None:
                        part.former[key] = former
                elif former is not None and claim is not None and claim.since_us > former.until_us:
                    # It came back to this org, and the commit that would have said so was never made.
                    part.origins[key] = Origin(claim.since_us, claim.carry, claim.leg)
                    part.former[key] = former
                elif former is not None:
                    self.meter.matcher.know_closed(former, lines, await self.books.row(org, former.row))
                    part.changed.append((former, by_key.pop(key)))
                elif claim is None:
                    fresh[key] = None, Claim(org)
                elif claim.since_us:
                    part.origins[key] = Origin(claim.since_us, claim.carry, claim.leg)
            for key in await charging.claim(cluster, fresh):
                del by_key[key]  # another exporter is at work on it
                report.failed.append(org)
            part.new = list(by_key.values())
            if moved:
                late[org] = moved
            part.settles, part.limits = await charging.hold_limits(
                org, cluster, [(observation.id, observation.hold_id) for observation in part.new]
            )
        return late

    async def _leave(
        self, work: dict[str, OrgWork], claim: Claim, observation: Observation, snapshot: Snapshot, lines: Lines
    ) -> Origin | None:
        """A workload that another org is charged for: where the new org takes over, None if it does not.

        What is over stays with the org that it was charged to, whatever the scheduler calls it by now; and an
        older snapshot does not take back what a newer one said.
        """
        key, taken = key_of(observation), snapshot.taken_us
        if claim.since_us > taken:
            return None
        state = await self.books.have(claim.org)
        source = self.meter.source
        run = state.runs.get(source, {}).get(key)
        open_here = run is not None
        if run is None:
            found = await self.ledger.charging.find_ended(claim.org, self.meter.cluster, [key])
            run = found.get(key)
            if run is None or run.until_us < claim.since_us:  # claimed, but never charged
                return Origin(claim.since_us, claim.carry, claim.leg)
            self.meter.matcher.know_closed(run, lines, await self.books.row(claim.org, run.row))
        if observation.ended_us is not None:
            stays = msgspec.structs.replace(observation, org=claim.org)
            work.setdefault(claim.org, OrgWork()).changed.append((run, stays))
            return None
        until = run.charged_until(state.marks.get(source))
        if taken < until:
            return None
        at, ended, suspended = until, run.ended_us, run.suspended
        if open_here:
            at, (ended, suspended) = taken, facts(run, observation, until, taken)
            work.setdefault(claim.org, OrgWork()).moved.append((run, observation))
        cost, _ = cumulative(run.points, ended, suspended, run.line, at)
        return Origin(at, cost % COST_DENOMINATOR, run.leg + 1)

    async def _count(self, snapshot: Snapshot) -> None:
        """Counters of what could not be charged: by how much each reason grew since the last round."""
        counts = {
            reason: count - min(count, self._unbillable.get(reason, 0)) for reason, count in snapshot.unbillable.items()
        }
        self._unbillable = dict(snapshot.unbillable)
        counts["unpriced"] = counts.get("unpriced", 0) + self.meter.unpriced - self._unpriced
        self._unpriced = self.meter.unpriced
        counts["too_late"] = counts.get("too_late", 0) + self.meter.too_late - self._too_late
        self._too_late = self.meter.too_late
        for reason, count in counts.items():
            if count > 0:
                some = ", ".join(snapshot.examples.get(reason, ()))
                named = f" (of {snapshot.unbillable.get(reason, count)} now: {some})" if some else ""
                log.warning(
                    "Source %s: workloads to look at, counted as %s: %d%s.", self.meter.source, reason, count, named
                )
        await self.ledger.charging.count_unbillable(self.meter.source, counts)
