"""The meter: snapshots and what is charged already -> what to charge now. No I/O.

A run that simply goes on costs one floor and writes nothing of its own: all runs of an org and source that go
on share the mark "charged up to". Only runs that are new, changed or gone are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from ledger import keys
from ledger.budgets import Budget
from ledger.model import Interval, Observation, Snapshot
from ledger.money import COST_DENOMINATOR, HOUR_US, UNIT
from ledger.org_state import Live, OrgState, Row
from ledger.plan import Correction, Plan, Slot
from ledger.rates_history import RateLine
from ledger.runs import (
    ENDED,
    GONE,
    OPEN,
    PAUSED,
    POINTS_MAX,
    Record,
    Run,
    RunKey,
    billable,
    cumulative,
    field_of,
    hour_of,
    key_of,
    merge_intervals,
    place_suspensions,
)

D = COST_DENOMINATOR
Lines = Callable[[str, str, str, bool], RateLine]
"""(kind, resource, app, bills_app) -> the rates over time, of the source's cluster."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a run begins to be billed here when it was billed elsewhere before: another org, until `at`."""

    at: int
    carry: int
    leg: int


@dataclass(slots=True)
class OrgWork:
    """What one snapshot says of one org that is not simply 'goes on as before'."""

    changed: list[tuple[Run, Observation]] = field(default_factory=list)
    new: list[Observation] = field(default_factory=list)
    moved: list[Run] = field(default_factory=list)
    origins: dict[RunKey, Origin] = field(default_factory=dict)
    former: dict[RunKey, Run] = field(default_factory=dict)
    """Earlier legs, in this very org, of runs that come back to it."""
    limits: dict[str, int] = field(default_factory=dict)
    settles: bool = True


class Meter:
    """Meters one source. Mutates the `Run`s of the states it is given; when a commit fails, reload the org."""

    def __init__(self, source: str, cluster: str, epoch_us: int, hold_us: int) -> None:
        """`hold_us`: the window that running work is to have set aside; 0: none."""
        self.source = source
        self.cluster = cluster
        self.epoch_us = epoch_us
        self.hold_us = hold_us
        self._round = 0
        self._by_object: dict[int, Run] = {}
        self._closed: dict[tuple[str, RunKey], Run] = {}
        self._unpriced: set[RunKey] = set()
        self.unpriced = 0
        """How many runs were found without a rate so far, each counted once."""

    def forget(self, org: str) -> None:
        """Drop what is remembered of an org's runs, before or after its state is read anew."""
        self._by_object = {k: run for k, run in self._by_object.items() if run.org != org}
        self._closed = {k: run for k, run in self._closed.items() if k[0] != org}

    def forget_closed(self) -> None:
        """Drop what is remembered of runs that are over: their rate lines are out of date."""
        self._closed.clear()

    def know_closed(self, run: Run, lines: Lines, row: Row) -> None:
        """Remember a run that is over, so that being listed again costs nothing."""
        run.line = lines(row.kind, row.resource, row.app, run.bills_app)
        self._closed[run.org, run.key] = run

    def sort(self, snapshot: Snapshot, states: dict[str, OrgState], only: str | None = None) -> dict[str, OrgWork]:
        """What of a snapshot is new or changed, by org; runs that go on are stamped as listed.

        `new` observations are of runs this meter does not know: the ledger may (see `know_closed`).
        """
        if only is None:
            self._round += 1
        stamp = self._round
        by_object = self._by_object
        work: dict[str, OrgWork] = {}
        for observation in snapshot.workloads:
            run = by_object.get(id(observation))
            if run is not None:
                run.stamp = stamp
                continue
            org = observation.org
            if only is not None and org != only:
                continue
            key = key_of(observation)
            state = states.get(org)
            run = state.runs.get(self.source, {}).get(key) if state else None
            if run is None:
                run = self._closed.get((org, key))
            if run is None and state is not None:
                run = self._adopt(state, key)
            if run is None:
                if not self._never_billable(observation):
                    work.setdefault(org, OrgWork()).new.append(observation)
                continue
            run.stamp = stamp
            if state is not None and _same_facts(run, observation, state.rows[run.row]):
                self._watch(run, observation)
            else:
                work.setdefault(org, OrgWork()).changed.append((run, observation))
        if only is None:
            self._closed = {k: run for k, run in self._closed.items() if run.stamp == stamp}
            if len(by_object) > 2 * len(snapshot.workloads) + 1000:
                self._by_object = {k: run for k, run in by_object.items() if run.stamp == stamp}
        return work

    def _never_billable(self, observation: Observation) -> bool:
        """Not started yet, of no length, or over before the ledger's epoch."""
        started, ended = observation.started_us, observation.ended_us
        if started is None:
            return observation.kind != "storage"
        return ended is not None and (ended <= started or ended <= self.epoch_us)

    def _adopt(self, state: OrgState, key: RunKey) -> Run | None:
        """Take over a run from another source of the same cluster, which may be this one's former name."""
        for source, runs in state.runs.items():
            run = runs.get(key)
            if run is not None and run.cluster == self.cluster:
                run.until_us = run.charged_until(state.marks.get(source))
                run.state = PAUSED
                del runs[key]
                state.latest.get(source, {}).pop(key[:2], None)
                return run
        return None

    def partial(self, state: OrgState, work: OrgWork, snapshot: Snapshot, lines: Lines) -> Plan:
        """Take up what is new and changed, and leave the runs that go on for `plan`."""
        plan = Plan(state.name, self.source)
        self._take_up(plan, state, work, snapshot, lines)
        return plan

    def _take_up(self, plan: Plan, state: OrgState, work: OrgWork, snapshot: Snapshot, lines: Lines) -> None:
        mark = state.marks.get(self.source)
        for run in work.moved:
            run.stamp = self._round
            self._move_out(plan, state, run, mark, snapshot.taken_us)
        for run, observation in work.changed:
            self._revise(plan, state, run, observation, mark, snapshot, lines)
        for observation in work.new:
            self._begin(plan, state, work, observation, mark, snapshot, lines)

    def plan(self, state: OrgState, work: OrgWork, snapshot: Snapshot, lines: Lines) -> Plan:
        """The whole round of one org."""
        taken = snapshot.taken_us
        mark = state.marks.get(self.source)
        late = mark is not None and taken < mark
        plan = Plan(state.name, self.source)
        runs = state.runs.setdefault(self.source, {})
        self._take_up(plan, state, work, snapshot, lines)
        if late:
            return plan
        self._advance(plan, state, runs, mark, snapshot)
        if mark != taken and (runs or plan.tally or plan.changes):
            plan.taken_us = taken
        self._set_aside(plan, state, runs, taken)
        return plan

    # -- one run ---------------------------------------------------------------------------------------

    def _begin(
        self,
        plan: Plan,
        state: OrgState,
        work: OrgWork,
        observation: Observation,
        mark: int | None,
        snapshot: Snapshot,
        lines: Lines,
    ) -> None:
        taken = snapshot.taken_us
        key = key_of(observation)
        started = observation.started_us
        since = max(taken if started is None else started, self.epoch_us)
        origin = work.origins.get(key)
        if origin is not None:
            since = max(since, origin.at)
        latest = state.latest.setdefault(self.source, {})
        other = latest.get(key[:2])
        if other is not None and (other.started_us or 0) < (started or 0):
            # The same id cannot run twice at once: what the earlier run was charged for is not charged again.
            over = other.charged_until(mark)
            since = max(since, over if other.ended_us is None else min(over, other.ended_us))
        ended = observation.ended_us
        if since > taken or (ended is not None and ended <= since):
            return  # nothing to bill yet, or never: before the epoch
        row = Row(
            self.cluster, observation.project, observation.user, observation.kind, observation.resource, observation.app
        )
        record = Record(
            observation.id, observation.kind, self.cluster, self.source, self._row(plan, state, row), started, None,
            (), (), PAUSED, since, leg=origin.leg if origin else 0, limit_us=observation.limit_us,
            bills_app=observation.bills_app,
        )  # fmt: skip
        run = Run(state.name, record)
        former = work.former.get(key)
        if former is not None:
            plan.ended[field_of(self.cluster, key, former.leg)] = former.encode()
            plan.revived.add(former.field)
        if run.limit_us is None and observation.hold_id is not None:
            run.limit_us = work.limits.get(observation.hold_id)
        if run.limit_us is None:
            run.limit_us = work.limits.get(observation.id)
        run.points = ((since, origin.carry if origin else 0, 0, _units(observation)),)
        run.line = lines(row.kind, row.resource, row.app, observation.bills_app)
        if work.settles:
            plan.settled.append((observation.hold_id or "", f"{self.cluster}{keys.US}{observation.id}"))
        self._revise(plan, state, run, observation, mark, snapshot, lines)

    def _revise(
        self,
        plan: Plan,
        state: OrgState,
        run: Run,
        observation: Observation,
        mark: int | None,
        snapshot: Snapshot,
        lines: Lines,
    ) -> None:
        """Take over what a newer snapshot says of a run, and charge the difference."""
        taken = snapshot.taken_us
        run.stamp = self._round
        until = run.charged_until(mark)
        if taken < until or (taken == until and run.observation is None and run.state == ENDED):
            return  # an older snapshot changes nothing that a newer one said
        was_kept = run.state in (OPEN, PAUSED)
        ended, suspended = self._facts(run, observation, until, taken)
        if ended == run.ended_us and run.state == ENDED and suspended == run.suspended:
            run.until_us = until
            self._watch(run, observation)
            return
        self._charge(plan, state, run, until, taken, ended, suspended)
        run.ended_us, run.suspended, run.until_us, run.source = ended, suspended, taken, self.source
        if observation.limit_us is not None:
            run.limit_us = observation.limit_us
        over = ended is not None and ended <= taken
        late = mark is not None and taken < mark
        if not over:
            self._reattribute(plan, state, run, observation, taken, lines)
        run.state = ENDED if over else GONE if late else OPEN
        self._watch(run, observation)
        if run.state == OPEN:
            state.runs.setdefault(self.source, {})[run.key] = run
            state.latest.setdefault(self.source, {})[run.key[:2]] = run
            plan.runs[run.field] = run.encode()
            plan.gone.discard(run.field)
            self._closed.pop((state.name, run.key), None)
            if not was_kept:
                plan.revived.add(run.field)
            run.settle_anchor(taken)
        else:
            if run.line.at(taken) is None:
                self._note_unpriced(run)
            self._close(plan, state, run)

    def _facts(
        self, run: Run, observation: Observation, until: int, taken: int
    ) -> tuple[int | None, tuple[Interval, ...]]:
        suspended = observation.suspended
        if observation.kind == "storage":
            suspended = merge_intervals([*run.suspended, *suspended])
            if run.state == GONE and until < taken:
                suspended = merge_intervals([*suspended, (until, taken)])  # it was away in between
        elif observation.suspended_before is not None and observation.started_us is not None:
            suspended = place_suspensions(
                run.suspended, observation.started_us, observation.suspended_before, suspended
            )
        return observation.ended_us, suspended

    def _charge(
        self,
        plan: Plan,
        state: OrgState,
        run: Run,
        until: int,
        taken: int,
        ended: int | None,
        suspended: tuple[Interval, ...],
    ) -> None:
        """Charge what the new facts cost up to `taken` less what was charged up to `until`, slot by slot."""
        first = run.points[0][0]
        agree = _same_before(until, run.ended_us, run.suspended, ended, suspended)
        since = max(first, until) if agree else first
        refunded = 0
        new_before = cumulative(run.points, ended, suspended, run.line, since)
        old_before = run.cumulative(min(since, until))
        for slot in slots(since, taken, state.budgets):
            new = cumulative(run.points, ended, suspended, run.line, slot[1])
            old = run.cumulative(min(slot[1], until)) if slot[0] < until else old_before
            micro = (new[0] // D - new_before[0] // D) - (old[0] // D - old_before[0] // D)
            us = (new[1] - new_before[1]) - (old[1] - old_before[1])
            if micro or us:
                plan.add(slot, run.row, micro, us)
                refunded += max(0, -micro)
                run.refunded_micro += max(0, -micro)
                run.refunded_us += max(0, -us)
            new_before, old_before = new, old
        if refunded:
            reason = "the scheduler corrected the start, end or suspension of a workload that was charged already"
            plan.corrections.append(Correction(run.id, state.rows[run.row], refunded, reason))

    def _reattribute(
        self, plan: Plan, state: OrgState, run: Run, observation: Observation, taken: int, lines: Lines
    ) -> None:
        """From `taken` on the run is billed as it is reported now; before, as it was reported then."""
        row = Row(
            self.cluster, observation.project, observation.user, observation.kind, observation.resource, observation.app
        )
        units = _units(observation)
        number = state.row_numbers.get(row)
        same_row = number == run.row and observation.bills_app == run.bills_app
        if same_row and units == run.points[-1][3]:
            return
        if same_row and len(run.points) < POINTS_MAX and len(run.suspended) < POINTS_MAX:
            cost, us = run.cumulative(taken)
            last = run.points[-1]
            # Between two full hours nobody asks for a partial sum, so one point an hour is enough.
            kept = run.points[:-1] if hour_of(last[0]) == hour_of(taken) and len(run.points) > 1 else run.points
            run.points = (*kept, (taken, cost, us, units))
            return
        self._end_leg(plan, run, taken)
        cost, _ = run.cumulative(taken)
        run.leg += 1
        run.row = self._row(plan, state, row)
        run.points = ((taken, cost % D, 0, units),)
        run.suspended = tuple(i for i in run.suspended if i[1] is None or i[1] > taken)
        run.refunded_micro = run.refunded_us = 0
        run.bills_app = observation.bills_app
        run.line = lines(row.kind, row.resource, row.app, observation.bills_app)

    def _end_leg(self, plan: Plan, run: Run, taken: int) -> None:
        state, run.state, run.until_us = run.state, GONE, taken
        plan.ended[field_of(run.cluster, run.key, run.leg)] = run.encode()
        run.state = state

    def _move_out(self, plan: Plan, state: OrgState, run: Run, mark: int | None, taken: int) -> None:
        """The run belongs to another org from `taken` on."""
        until = run.charged_until(mark)
        if taken > until:
            self._charge(plan, state, run, until, taken, run.ended_us, run.suspended)
        run.until_us = max(until, taken)
        run.state = GONE
        self._close(plan, state, run)
        del self._closed[state.name, run.key]  # should it come back, the ledger is asked who is charged by then

    def _close(self, plan: Plan, state: OrgState, run: Run) -> None:
        plan.ended[run.field] = run.encode()
        plan.runs.pop(run.field, None)
        plan.gone.add(run.field)
        plan.revived.discard(run.field)
        state.runs.get(self.source, {}).pop(run.key, None)
        latest = state.latest.get(self.source, {})
        if latest.get(run.key[:2]) is run:
            del latest[run.key[:2]]
        self._closed[state.name, run.key] = run
        if run.state == GONE:
            self._unwatch(run)

    def _note_unpriced(self, run: Run) -> None:
        if run.key not in self._unpriced:
            self._unpriced.add(run.key)
            self.unpriced += 1

    def _unwatch(self, run: Run) -> None:
        # Listed again, even just as before, it is to be looked at: it does not follow the mark any more.
        if run.observation is not None:
            self._by_object.pop(id(run.observation), None)
            run.observation = None

    def _watch(self, run: Run, observation: Observation) -> None:
        if run.observation is not None:
            self._by_object.pop(id(run.observation), None)
        run.observation = observation
        self._by_object[id(observation)] = run

    def _row(self, plan: Plan, state: OrgState, row: Row) -> int:
        known = row in state.row_numbers
        number = state.row_number(row)
        if not known:
            plan.new_rows.append(number)
        return number

    # -- all runs that go on ---------------------------------------------------------------------------

    def _advance(
        self, plan: Plan, state: OrgState, runs: dict[RunKey, Run], mark: int | None, snapshot: Snapshot
    ) -> None:
        taken = snapshot.taken_us
        stamp = self._round
        missing = [run for run in runs.values() if run.stamp != stamp]
        for run in missing:
            if run.state == PAUSED and not snapshot.complete:
                continue
            run.until_us = run.charged_until(mark)
            if snapshot.complete:
                run.state = GONE
                self._close(plan, state, run)
            else:
                run.state = PAUSED
                self._unwatch(run)
                plan.runs[run.field] = run.encode()
        if mark is None or mark >= taken:
            return
        steady: list[Run] = []
        for run in list(runs.values()):
            if run.until_us >= taken or run.state != OPEN:
                continue
            if run.steady_until >= taken and run.until_us <= mark:
                steady.append(run)
                continue
            self._charge(plan, state, run, run.charged_until(mark), taken, run.ended_us, run.suspended)
            if run.ended_us is not None and run.ended_us <= taken:
                run.until_us, run.state = taken, ENDED
                self._close(plan, state, run)
            else:
                run.settle_anchor(taken)
        for slot in slots(mark, taken, state.budgets):
            until = slot[1]
            micro: dict[int, int] = {}
            billed: dict[int, int] = {}
            for run in steady:
                if run.per_us:
                    floor = (run.cost_at + run.per_us * (until - run.cost_from)) // D
                    row = run.row
                    micro[row] = micro.get(row, 0) + floor - run.floor
                    run.floor = floor
                    billed[row] = billed.get(row, 0) + 1
                elif run.is_billed:
                    billed[run.row] = billed.get(run.row, 0) + 1
            for row, count in billed.items():
                plan.add(slot, row, micro.get(row, 0), count * (until - slot[0]))

    def _set_aside(self, plan: Plan, state: OrgState, runs: dict[RunKey, Run], taken: int) -> None:
        """Sums per row of what runs now, and what it is to have set aside per tier."""
        window = self.hold_us
        sums: dict[int, list[int]] = {}
        for run in runs.values():
            if run.state != OPEN:
                continue
            entry = sums.get(run.row)
            if entry is None:
                entry = sums[run.row] = [0, 0, 0, 0]
            if not run.per_us and run.is_billed and run.line.at(taken) is None:
                self._note_unpriced(run)
            entry[0] += run.per_us
            entry[1] += 1
            if run.kind == "storage":
                entry[2] += run.points[-1][3]
            elif run.limit_us is not None:
                rest = (run.started_us or 0) + run.limit_us - taken
                if rest < window:
                    entry[3] += run.per_us * (window - max(rest, 0))
        state.live[self.source] = {row: Live(e[0], e[1], e[2]) for row, e in sums.items()}
        running: dict[str, int] = {}
        for row, entry in sums.items():
            facts = state.rows[row]
            if facts.kind == "storage" or not window:
                continue
            micro = -((entry[3] - entry[0] * window) // D)
            if micro:
                for tier in keys.tier_fields(facts.project, facts.user):
                    running[tier] = running.get(tier, 0) + micro
        plan.running = running
        if plan.taken_us is None and running == state.running.get(self.source, {}):
            plan.running = None


def _same_facts(run: Run, observation: Observation, row: Row) -> bool:
    """Whether an observation says nothing new of a run."""
    if run.observation == observation:
        return True
    if (
        run.state not in (OPEN, ENDED)
        or run.ended_us != observation.ended_us
        or run.bills_app != observation.bills_app
        or (observation.limit_us is not None and run.limit_us != observation.limit_us)
    ):
        return False
    if run.state == OPEN and (
        run.points[-1][3] != _units(observation)
        or (row.project, row.user, row.resource, row.app)
        != (observation.project, observation.user, observation.resource, observation.app)
    ):
        return False
    if observation.kind == "storage":
        return merge_intervals([*run.suspended, *observation.suspended]) == run.suspended
    if observation.suspended_before is not None and observation.started_us is not None:
        placed = place_suspensions(
            run.suspended, observation.started_us, observation.suspended_before, observation.suspended
        )
        return placed == run.suspended
    return run.suspended == observation.suspended


def slots(since: int, until: int, budgets: Iterable[Budget]) -> list[Slot]:
    """[since, until) cut at every full hour and every start of a budget's period."""
    if since >= until:
        return []
    cuts = {until}
    cuts.update(range(hour_of(since) + HOUR_US, until, HOUR_US))
    for budget in budgets:
        at = since
        while True:
            end = budget.period_at(at)[1]
            if end is None or end >= until:
                break
            cuts.add(end)
            at = end
    edges = [since, *sorted(cuts)]
    return list(pairwise(edges))


def _units(observation: Observation) -> int:
    return observation.bytes if observation.kind == "storage" else UNIT


def _same_before(
    until: int,
    old_ended: int | None,
    old_suspended: tuple[Interval, ...],
    ended: int | None,
    suspended: tuple[Interval, ...],
) -> bool:
    """Whether two accounts of a run agree on all time before an instant."""
    if old_suspended is suspended and (old_ended or until) >= until and (ended or until) >= until:
        return True
    old = list(billable(0, until, old_ended, old_suspended))
    return old == list(billable(0, until, ended, suspended))
