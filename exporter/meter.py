"""The meter: snapshots and what is charged already -> what to charge now. No I/O.

A run that simply goes on costs one floor and writes nothing of its own: all runs of an org and source that go
on share the mark "charged up to". Only runs that are new, changed or gone are written.
"""

from __future__ import annotations

from exporter.matching import Lines, Matcher, OrgWork, units_of
from exporter.set_aside import set_aside
from exporter.slots import Cuts, stretches
from ledger import keys
from ledger.model import Interval, Observation, Snapshot
from ledger.money import COST_DENOMINATOR, HOUR_US
from ledger.org_state import OrgState, Row
from ledger.plan import Correction, Plan
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
    steady_from,
)

D = COST_DENOMINATOR


class Meter:
    """Meters one source. Mutates the `Run`s of the states it is given; when a commit fails, reload the org."""

    def __init__(self, source: str, cluster: str, epoch_us: int, hold_us: int) -> None:
        """`hold_us`: the window that running work is to have set aside; 0: none."""
        self.source = source
        self.cluster = cluster
        self.epoch_us = epoch_us
        self.hold_us = hold_us
        self.matcher = Matcher(source, cluster, epoch_us)
        self._cuts = Cuts((), (), 0)
        self._unpriced: set[RunKey] = set()
        self.unpriced = 0
        """How many runs were found without a rate so far, each counted once."""
        self.unpriced_now: dict[str, int] = {}
        """By org, how many of them went on at its last round."""
        self._too_late: set[RunKey] = set()
        self.too_late = 0
        """How many runs came so late that they were not charged any more, each counted once."""

    def let_go(self, state: OrgState, moved: list[tuple[Run, Observation]], snapshot: Snapshot) -> Plan:
        """Close runs that belong to other orgs from this snapshot on."""
        plan = Plan(state.name, self.source)
        mark = state.marks.get(self.source)
        for run, observation in moved:
            run.stamp = self.matcher.round
            self._move_out(plan, state, run, observation, mark, snapshot.taken_us)
        return plan

    def partial(self, state: OrgState, work: OrgWork, snapshot: Snapshot, lines: Lines) -> Plan:
        """Take up what is new and changed, and leave the runs that go on for `plan`."""
        plan = Plan(state.name, self.source)
        self._take_up(plan, state, work, snapshot, lines)
        return plan

    def _take_up(self, plan: Plan, state: OrgState, work: OrgWork, snapshot: Snapshot, lines: Lines) -> None:
        mark = state.marks.get(self.source)
        for observation in work.over:
            self._settle(plan, work, observation)
        for run, observation in work.changed:
            self._revise(plan, state, run, observation, mark, snapshot, lines)
        for observation in work.new:
            self._begin(plan, state, work, observation, mark, snapshot, lines)

    def _settle(self, plan: Plan, work: OrgWork, observation: Observation) -> None:
        """Its hold ends; one that it names is not to be made later either (it was let in without the ledger)."""
        if work.settles or observation.hold_id is not None:
            plan.settled.append((observation.hold_id or "", f"{self.cluster}{keys.US}{observation.id}"))

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
        if mark != taken and (runs or plan.is_charged or plan.changes):
            plan.taken_us = taken
        unpriced = set_aside(plan, state, taken, self.hold_us)
        for run in unpriced:
            self._note_unpriced(run)
        self.unpriced_now[state.name] = len(unpriced)
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
        origin = work.origins.get(key)
        begun = origin.at if started is None and origin is not None and origin.goes_on else started
        since = max(taken if begun is None else begun, self.epoch_us, state.forgotten_us)
        if origin is not None:
            since = max(since, origin.at)
        latest = state.latest.setdefault(self.source, {})
        other = latest.get(key[:2])
        if other is not None and (
            _billed_from(other.started_us, other.suspended) <= _billed_from(started, observation.suspended)
            or self._stands_for(other, observation, taken)
        ):
            # The same id cannot run twice at once: what the earlier run was charged for is not charged again.
            # Which is the earlier one is told by when they are first billed: a pod can be older, and start later.
            over = other.charged_until(mark)
            since = max(since, over if other.ended_us is None else min(over, other.ended_us))
        ended = observation.ended_us
        if since > taken or (ended is not None and ended <= since):
            if ended is not None and self.epoch_us < ended <= state.forgotten_us:
                self._note_too_late(observation)
            return  # nothing to bill yet, or never: before the epoch, or too long ago to tell whether it was billed
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
        if run.limit_us is None and origin is not None:
            run.limit_us = origin.limit_us
        run.points = ((since, origin.carry if origin else 0, 0, units_of(observation)),)
        run.line = lines(row.kind, row.resource, row.app, observation.bills_app)
        self._settle(plan, work, observation)
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
        run.stamp = self.matcher.round
        until = run.charged_until(mark)
        if taken < until or (taken == until and run.observation is None and run.state == ENDED):
            return  # an older snapshot changes nothing that a newer one said
        was_kept = run.state in (OPEN, PAUSED)
        if run.state == GONE:
            until = self._skip_what_another_was_charged_for(plan, state, run, observation, mark, until, taken)
        ended, suspended = facts(run, observation, until, taken)
        if ended == run.ended_us and run.state == ENDED and suspended == run.suspended:
            run.until_us = until
            self.matcher.watch(run, observation)
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
        self.matcher.watch(run, observation)
        if run.state == OPEN:
            state.runs.setdefault(self.source, {})[run.key] = run
            state.latest.setdefault(self.source, {})[run.key[:2]] = run
            plan.runs[run.field] = run.encode()
            plan.gone.discard(run.field)
            self.matcher.closed.pop((state.name, run.key), None)
            if not was_kept:
                plan.revived.add(run.field)
            run.settle_anchor(taken)
        else:
            if run.line.at(taken) is None:
                self._note_unpriced(run)
            self._close(plan, state, run)

    def _stands_for(self, other: Run, observation: Observation, taken: int) -> bool:
        """Whether an observation is of a run that is known by another start, and not listed by that one any more.

        The scheduler corrected the start, or whoever lists the workloads works it out anew each time.
        """
        if observation.kind == "storage" or other.stamp == self.matcher.round:
            return False
        last = taken if observation.ended_us is None else min(observation.ended_us, taken)
        return last > _billed_from(other.started_us, other.suspended)

    def _skip_what_another_was_charged_for(
        self, plan: Plan, state: OrgState, run: Run, observation: Observation, mark: int | None, until: int, taken: int
    ) -> int:
        """A run that was gone is back: up to when it, or a run of its id in its stead, was charged. See `_begin`."""
        other = state.latest.get(self.source, {}).get(run.key[:2])
        if other is None or other is run or not self._stands_for(other, observation, taken):
            return until
        over = min(other.charged_until(mark), taken)
        if over <= until:
            return until
        self._next_leg(plan, run, until, over, run.points[-1][3])
        return over

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
        # A run listed long after its end has nothing in the hours between.
        last = taken if ended is None else min(taken, hour_of(max(ended, until)) + HOUR_US)
        cuts, steady_since = self._cuts_of(state, taken), max(until, run.points[-1][0])
        while since < last:
            cut = min(cuts.after(since), last)
            if since % HOUR_US == 0 and since >= steady_since:
                steady_until, is_billed = steady_from(since, ended, suspended, run.line)
                hours = (min(cut, steady_until) - since) // HOUR_US
                if hours:
                    if is_billed:
                        cost = (run.line.at(since) or 0) * run.points[-1][3] * HOUR_US
                        plan.add_hours(since, hours, run.row, new_before[0], cost)
                        new_before = new_before[0] + hours * cost, new_before[1] + hours * HOUR_US
                    since += hours * HOUR_US
                    continue
            slot = since, min(cut, hour_of(since) + HOUR_US)
            since = slot[1]
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

    def _cuts_of(self, state: OrgState, until: int) -> Cuts:
        cuts = self._cuts
        if cuts.budgets is not state.budgets or cuts.edges is not state.grant_edges or cuts.until != until:
            cuts = self._cuts = Cuts(state.budgets, state.grant_edges, until)
        return cuts

    def _reattribute(
        self, plan: Plan, state: OrgState, run: Run, observation: Observation, taken: int, lines: Lines
    ) -> None:
        """From `taken` on the run is billed as it is reported now; before, as it was reported then."""
        row = Row(
            self.cluster, observation.project, observation.user, observation.kind, observation.resource, observation.app
        )
        units = units_of(observation)
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
        self._next_leg(plan, run, taken, taken, units)
        run.row = self._row(plan, state, row)
        run.bills_app = observation.bills_app
        run.line = lines(row.kind, row.resource, row.app, observation.bills_app)

    def _next_leg(self, plan: Plan, run: Run, until: int, since: int, units: int) -> None:
        """The leg ends, charged up to an instant; the next one is charged from another."""
        state, run.state, run.until_us = run.state, GONE, until
        plan.ended[field_of(run.cluster, run.key, run.leg)] = run.encode()
        run.state = state
        cost, _ = run.cumulative(until)
        run.leg += 1
        run.points = ((since, cost % D, 0, units),)
        run.suspended = tuple(i for i in run.suspended if i[1] is None or i[1] > since)
        run.refunded_micro = run.refunded_us = 0

    def _move_out(
        self, plan: Plan, state: OrgState, run: Run, observation: Observation, mark: int | None, taken: int
    ) -> None:
        """The run belongs to another org from `taken` on."""
        until = run.charged_until(mark)
        if taken > until:
            ended, suspended = facts(run, observation, until, taken)
            self._charge(plan, state, run, until, taken, ended, suspended)
            run.ended_us, run.suspended = ended, suspended
        run.until_us = max(until, taken)
        run.state = GONE
        self._close(plan, state, run)

    def _close(self, plan: Plan, state: OrgState, run: Run) -> None:
        plan.ended[run.field] = run.encode()
        plan.runs.pop(run.field, None)
        plan.gone.add(run.field)
        plan.revived.discard(run.field)
        state.runs.get(self.source, {}).pop(run.key, None)
        latest = state.latest.get(self.source, {})
        if latest.get(run.key[:2]) is run:
            del latest[run.key[:2]]
        if run.state == ENDED:
            self.matcher.closed[state.name, run.key] = run
        else:
            self.matcher.unwatch(run)  # should it come back, the ledger is asked who is charged by then

    def _note_too_late(self, observation: Observation) -> None:
        key = key_of(observation)
        if key not in self._too_late:
            self._too_late.add(key)
            self.too_late += 1

    def _note_unpriced(self, run: Run) -> None:
        if run.key not in self._unpriced:
            self._unpriced.add(run.key)
            self.unpriced += 1

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
        stamp = self.matcher.round
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
                self.matcher.unwatch(run)
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
        for since, until, hours in stretches(mark, taken, state.budgets, state.grant_edges):
            if hours > 1:
                for run in steady:
                    if run.is_billed:
                        cost = run.cost_at + run.per_us * (since - run.cost_from)
                        plan.add_hours(since, hours, run.row, cost, run.per_us * HOUR_US)
                        run.floor = (cost + run.per_us * (until - since)) // D
                continue
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
                plan.add((since, until), row, micro.get(row, 0), count * (until - since))


def facts(run: Run, observation: Observation, until: int, taken: int) -> tuple[int | None, tuple[Interval, ...]]:
    """(end, suspensions) of a run charged up to `until`, by what a snapshot of `taken` says of it."""
    suspended = observation.suspended
    if observation.kind == "storage":
        suspended = merge_intervals([*run.suspended, *suspended])
        if run.state == GONE and until < taken:
            suspended = merge_intervals([*suspended, (until, taken)])  # it was away in between
    elif observation.suspended_before is not None and observation.started_us is not None:
        suspended = place_suspensions(run.suspended, observation.started_us, observation.suspended_before, suspended)
    return observation.ended_us, suspended


def _billed_from(started_us: int | None, suspended: tuple[Interval, ...]) -> int:
    """The first instant that a run can be billed: its start, or the end of the suspension that it starts with."""
    started = started_us or 0
    for since, until in suspended:
        if since <= started and until is not None:
            return max(started, until)
    return started


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
