"""Rounds: fetch a snapshot, meter it, commit it org by org. Two exporters at once charge nothing twice."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from exporter.books import Books
from exporter.matching import Lines, OrgWork
from exporter.meter import Meter
from exporter.sources.base import Source
from exporter.takeover import TakeoverDesk
from ledger.errors import LedgerUnavailable, TooLarge
from ledger.model import Observation, Snapshot
from ledger.org_state import OrgState
from ledger.plan import Plan
from ledger.runs import Run

log = logging.getLogger(__name__)
CHUNK = 5000
"""Run records one commit writes at most, so that no script holds up the server for long."""
TRIES = 8
"""How often a round looks again at orgs that another exporter is at work on, until it leaves them for the next one."""


@dataclass(slots=True)
class RoundReport:
    """What one round did. `failed`: orgs that were left for the next round."""

    source: str
    taken_us: int
    workloads: int = 0
    commits: int = 0
    records: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Going:
    """A round under way.

    `too_large`: orgs that could not be committed, and why; repeating that cannot help. `waiting`: orgs that take over
    from these what they did not let go.
    """

    snapshot: Snapshot
    lines: Lines
    report: RoundReport
    too_large: dict[str, TooLarge] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)


class Rounds:
    """The rounds of one source."""

    def __init__(self, books: Books, source: Source, hold_us: int) -> None:
        self.books = books
        self.ledger = books.ledger
        self.source = source
        self.meter = Meter(source.name, source.cluster, books.ledger.epoch_us, hold_us)
        self._takeovers = TakeoverDesk(books, self.meter)
        self._unbillable: Counter[str] | None = None
        self._unbillable_kept: Counter[str] = Counter()
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
        books, source = self.books, self.meter.source
        lines = await books.fix_rates(self.meter.cluster, snapshot.taken_us)
        await books.load_all()
        for org in {observation.org for observation in snapshot.workloads} - books.states.keys():
            await self.ledger.charging.note_org(org)
        going = _Going(snapshot, lines, RoundReport(source, snapshot.taken_us, len(snapshot.workloads)))
        left: set[str] | None = None
        for _ in range(TRIES):
            left = await self._try(going, left)
            if not left:
                break
        going.report.failed = sorted(left or ())
        is_newer = since is None or snapshot.taken_us > since
        if is_newer and not going.too_large and not left and await self._still_committed():
            await self.ledger.charging.set_source_mark(source, snapshot.taken_us)
            if not await self._still_committed():  # the server lost its tail and came back in between
                await self.ledger.charging.set_source_mark(source, since)
        await self._count(snapshot)
        for error in going.too_large.values():
            error.left = frozenset({*going.too_large, *going.waiting, *going.report.failed})
            raise error
        return going.report

    async def _try(self, going: _Going, only: set[str] | None) -> set[str]:
        """Commit the orgs `only` (None: all), and whatever else there is to do. Returns the orgs to look at again."""
        books = self.books
        await books.load_all()
        await books.confirm()
        seen = dict(books.states)
        work = self.meter.matcher.sort(going.snapshot, seen)
        try:
            found = await self._takeovers.find(work, going.snapshot, going.lines)
            kept = {org for org in sorted(work) if not await self._let_go(org, seen.get(org), work[org], going)}
            kept |= going.too_large.keys()
            left = found.contested | kept | work.keys() - seen.keys()
            for org, keys in (await self._takeovers.secure(work, found, seen, kept)).items():
                leavers = {found.wanted[org][key].leaves for key in keys}
                if leavers & going.too_large.keys():
                    going.waiting.add(org)
                if leavers - going.too_large.keys():
                    left.add(org)
            concerned = {org for org, state in seen.items() if org in work or self._has_part(state)} - kept
            for org in sorted(concerned if only is None else concerned & (only | work.keys())):
                if not await self._commit(org, seen[org], work.get(org) or OrgWork(), going):
                    left.add(org)
        except LedgerUnavailable:
            books.doubt([org for org, state in seen.items() if org in work or self._has_part(state)])
            raise
        return left - going.too_large.keys()

    async def _still_committed(self) -> bool:
        """Whether the ledger still has what was committed: if not, workloads that ended since are asked for again."""
        source = self.meter.source
        marks = {org: state.marks[source] for org, state in self.books.states.items() if source in state.marks}
        present = await self.ledger.charging.org_marks(source, list(marks))
        return all(present[org] >= mark for org, mark in marks.items())

    def _has_part(self, state: OrgState) -> bool:
        source = self.meter.source
        return bool(state.runs.get(source) or state.running.get(source))

    async def _let_go(self, org: str, seen: OrgState | None, work: OrgWork, going: _Going) -> bool:
        """Close the runs that belong to other orgs now. False: not all of them."""
        if org in going.too_large:
            return False
        async with self.books.lock(org):
            state = await self.books.have(org)  # in doubt, if another source could not commit it meanwhile
            while work.moved:
                part, work.moved = work.moved[:CHUNK], work.moved[CHUNK:]
                if state is not seen:
                    return False
                self._adopt(state, part)
                if not await self._write(self.meter.let_go(state, part, going.snapshot, going.lines), state, going):
                    return False
        return True

    async def _commit(self, org: str, seen: OrgState, work: OrgWork, going: _Going) -> bool:
        """Write what is to be written of one org. False: it changed since it was seen, or is too large."""
        meter = self.meter
        async with self.books.lock(org):
            state = await self.books.have(org)
            if state is not seen:
                return False
            self._adopt(state, work.changed)
            while len(work.new) + len(work.changed) > CHUNK:
                part = OrgWork(
                    changed=work.changed[:CHUNK], new=work.new[:CHUNK], origins=work.origins, former=work.former,
                    limits=work.limits, settles=work.settles,
                )  # fmt: skip
                work.changed, work.new = work.changed[CHUNK:], work.new[CHUNK:]
                if not await self._write(meter.partial(state, part, going.snapshot, going.lines), state, going):
                    return False
            return await self._write(meter.plan(state, work, going.snapshot, going.lines), state, going)

    def _adopt(self, state: OrgState, found: list[tuple[Run, Observation]]) -> None:
        """Take runs from other sources of the cluster; only once it is sure that `state` is what they were found in."""
        for run, _ in found:
            if run.source != self.meter.source and state.runs.get(run.source, {}).get(run.key) is run:
                self.meter.matcher.adopt(state, run)

    async def _write(self, plan: Plan, state: OrgState, going: _Going) -> bool:
        if plan.is_empty():
            return True
        try:
            if await self.ledger.charging.commit(plan, state):
                going.report.commits += 1
                going.report.records += plan.changes
                return True
        except TooLarge as error:
            going.too_large[state.name] = error  # no other org is to wait for it
        except BaseException:
            # Cancelled or unanswered: it may have been written or not.
            self.books.doubt([state.name])
            raise
        self.books.doubt([state.name])
        return False

    async def _count(self, snapshot: Snapshot) -> None:
        """Counters of what could not be charged: by how much each reason grew since the last round."""
        charging, source = self.ledger.charging, self.meter.source
        before = self._unbillable
        if before is None:  # of another process, which counted the same workloads
            before = self._unbillable_kept = Counter(await charging.unbillable_now(source))
        now = Counter(snapshot.unbillable)
        kept = now + Counter(unpriced=sum(self.meter.unpriced_now.values()), too_late=self.meter.too_late)
        now += Counter(unpriced=self.meter.unpriced, too_late=self.meter.too_late)
        grown = now - before
        for reason, count in grown.items():
            some = ", ".join(snapshot.examples.get(reason, ()))
            named = f" (of {snapshot.unbillable.get(reason, count)} now: {some})" if some else ""
            log.warning("Source %s: workloads to look at, counted as %s: %d%s.", source, reason, count, named)
        self._unbillable = now
        if grown or kept != self._unbillable_kept:
            await charging.count_unbillable(source, grown, kept)
            self._unbillable_kept = kept
