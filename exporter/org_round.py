"""What one snapshot comes to for the runs of one org: begun, revised, let go, ended, charged. No I/O."""

from __future__ import annotations

from exporter.charges import Charges
from exporter.matching import Lines, Matcher, OrgWork, units_of
from ledger import keys
from ledger.model import Interval, Observation, Snapshot
from ledger.money import COST_DENOMINATOR
from ledger.org_state import OrgState, Row
from ledger.plan import Plan
from ledger.runs import (
    ENDED,
    GONE,
    OPEN,
    PAUSED,
    POINTS_MAX,
    Record,
    Run,
    RunKey,
    field_of,
    hour_of,
    key_of,
    merge_intervals,
    place_suspensions,
)


class OrgRound:
    """Fills `plan`, and mutates the runs of the org's state: when the plan is not committed, reload the org.

    `is_late`: the org is charged further than this snapshot already.
    """

    def __init__(
        self,
        matcher: Matcher,
        state: OrgState,
        snapshot: Snapshot,
        lines: Lines,
        unpriced: set[RunKey],
        too_late: set[RunKey],
    ) -> None:
        """`unpriced`, `too_late`: where runs are noted that have no rate, or came so late that they are not charged."""
        self.plan = Plan(state.name, matcher.source)
        self._matcher = matcher
        self._state = state
        self._snapshot = snapshot
        self._lines = lines
        self._unpriced = unpriced
        self._too_late = too_late
        self._taken = snapshot.taken_us
        self._mark = state.marks.get(matcher.source)
        self._charges = Charges(self.plan, state, snapshot.taken_us)
        self.is_late = self._mark is not None and self._taken < self._mark

    def take_up(self, work: OrgWork) -> None:
        """What is new and what changed."""
        for observation in work.over:
            self._settle(work, observation)
        for run, observation in work.changed:
            self._revise(run, observation)
        for observation in work.new:
            self._begin(work, observation)

    def let_go(self, run: Run, observation: Observation) -> None:
        """The run belongs to another org from the snapshot on."""
        taken, until = self._taken, run.charged_until(self._mark)
        run.stamp = self._matcher.round
        if taken > until:
            ended, suspended = facts(run, observation, until, taken)
            self._charges.of(run, until, ended, suspended)
            run.ended_us, run.suspended = ended, suspended
        run.until_us = max(until, taken)
        run.state = GONE
        self._close(run)

    def advance(self) -> None:
        """Charge the runs that go on, and end or suspend those that the snapshot leaves out."""
        mark, taken, matcher = self._mark, self._taken, self._matcher
        runs = self._state.runs.setdefault(matcher.source, {})
        stamp = matcher.round
        missing = [run for run in runs.values() if run.stamp != stamp]
        for run in missing:
            if run.state == PAUSED and not self._snapshot.complete:
                continue
            run.until_us = run.charged_until(mark)
            if self._snapshot.complete:
                run.state = GONE
                self._close(run)
            else:
                run.state = PAUSED
                matcher.unwatch(run)
                self.plan.runs[run.field] = run.encode()
        if mark is None or mark >= taken:
            return
        steady: list[Run] = []
        for run in list(runs.values()):
            if run.until_us >= taken or run.state != OPEN:
                continue
            if run.steady_until >= taken and run.until_us <= mark:
                steady.append(run)
                continue
            self._charges.of(run, run.charged_until(mark), run.ended_us, run.suspended)
            if run.ended_us is not None and run.ended_us <= taken:
                run.until_us, run.state = taken, ENDED
                self._close(run)
            else:
                run.settle_anchor(taken)
        self._charges.of_steady(steady, mark)

    def _settle(self, work: OrgWork, observation: Observation) -> None:
        """Its hold ends; one that it names is not to be made later either (it was let in without the ledger)."""
        if work.settles or observation.hold_id is not None:
            workload = f"{self._matcher.cluster}{keys.US}{observation.id}"
            self.plan.settled.append((observation.hold_id or "", workload))

    def _begin(self, work: OrgWork, observation: Observation) -> None:
        matcher, state, taken = self._matcher, self._state, self._taken
        key = key_of(observation)
        started = observation.started_us
        origin = work.origins.get(key)
        begun = origin.at if started is None and origin is not None and origin.goes_on else started
        since = max(taken if begun is None else begun, matcher.epoch_us, state.forgotten_us)
        if origin is not None:
            since = max(since, origin.at)
        latest = state.latest.setdefault(matcher.source, {})
        other = latest.get(key[:2])
        if other is not None and (
            _billed_from(other.started_us, other.suspended) <= _billed_from(started, observation.suspended)
            or self._stands_for(other, observation)
        ):
            # The same id cannot run twice at once: what the earlier run was charged for is not charged again.
            # Which is the earlier one is told by when they are first billed: a pod can be older, and start later.
            over = other.charged_until(self._mark)
            since = max(since, over if other.ended_us is None else min(over, other.ended_us))
        ended = observation.ended_us
        if since > taken or (ended is not None and ended <= since):
            if ended is not None and matcher.epoch_us < ended <= state.forgotten_us:
                self._too_late.add(key_of(observation))
            return  # nothing to bill yet, or never: before the epoch, or too long ago to tell whether it was billed
        row = self._row_of(observation)
        record = Record(
            observation.id, observation.kind, matcher.cluster, matcher.source, self._number_of(row), started, None,
            (), (), PAUSED, since, leg=origin.leg if origin else 0, limit_us=observation.limit_us,
            bills_app=observation.bills_app,
        )  # fmt: skip
        run = Run(state.name, record)
        former = work.former.get(key)
        if former is not None:
            self.plan.ended[field_of(matcher.cluster, key, former.leg)] = former.encode()
            self.plan.revived.add(former.field)
        if run.limit_us is None and observation.hold_id is not None:
            run.limit_us = work.limits.get(observation.hold_id)
        if run.limit_us is None:
            run.limit_us = work.limits.get(observation.id)
        if run.limit_us is None and origin is not None:
            run.limit_us = origin.limit_us
        run.points = ((since, origin.carry if origin else 0, 0, units_of(observation)),)
        run.line = self._lines(row.kind, row.resource, row.app, observation.bills_app)
        self._settle(work, observation)
        self._revise(run, observation)

    def _revise(self, run: Run, observation: Observation) -> None:
        """Take over what a newer snapshot says of a run, and charge the difference."""
        matcher, plan, state, taken = self._matcher, self.plan, self._state, self._taken
        run.stamp = matcher.round
        until = run.charged_until(self._mark)
        if taken < until or (taken == until and run.observation is None and run.state == ENDED):
            return  # an older snapshot changes nothing that a newer one said
        was_kept = run.state in (OPEN, PAUSED)
        if run.state == GONE:
            until = self._skip_what_another_was_charged_for(run, observation, until)
        ended, suspended = facts(run, observation, until, taken)
        if ended == run.ended_us and run.state == ENDED and suspended == run.suspended:
            run.until_us = until
            matcher.watch(run, observation)
            return
        self._charges.of(run, until, ended, suspended)
        run.ended_us, run.suspended, run.until_us, run.source = ended, suspended, taken, matcher.source
        if observation.limit_us is not None:
            run.limit_us = observation.limit_us
        over = ended is not None and ended <= taken
        if not over:
            self._reattribute(run, observation)
        run.state = ENDED if over else GONE if self.is_late else OPEN
        matcher.watch(run, observation)
        if run.state == OPEN:
            state.runs.setdefault(matcher.source, {})[run.key] = run
            state.latest.setdefault(matcher.source, {})[run.key[:2]] = run
            plan.runs[run.field] = run.encode()
            plan.gone.discard(run.field)
            matcher.closed.pop((state.name, run.key), None)
            if not was_kept:
                plan.revived.add(run.field)
            run.settle_anchor(taken)
        else:
            if run.line.at(taken) is None:
                self._unpriced.add(run.key)
            self._close(run)

    def _stands_for(self, other: Run, observation: Observation) -> bool:
        """Whether an observation is of a run that is known by another start, and not listed by that one any more.

        The scheduler corrected the start, or whoever lists the workloads works it out anew each time.
        """
        if observation.kind == "storage" or other.stamp == self._matcher.round:
            return False
        last = self._taken if observation.ended_us is None else min(observation.ended_us, self._taken)
        return last > _billed_from(other.started_us, other.suspended)

    def _skip_what_another_was_charged_for(self, run: Run, observation: Observation, until: int) -> int:
        """A run that was gone is back: up to when it, or a run of its id in its stead, was charged. See `_begin`."""
        other = self._state.latest.get(self._matcher.source, {}).get(run.key[:2])
        if other is None or other is run or not self._stands_for(other, observation):
            return until
        over = min(other.charged_until(self._mark), self._taken)
        if over <= until:
            return until
        self._next_leg(run, until, over, run.points[-1][3])
        return over

    def _reattribute(self, run: Run, observation: Observation) -> None:
        """From the snapshot on the run is billed as it is reported now; before, as it was reported then."""
        taken = self._taken
        row = self._row_of(observation)
        units = units_of(observation)
        number = self._state.row_numbers.get(row)
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
        self._next_leg(run, taken, taken, units)
        run.row = self._number_of(row)
        run.bills_app = observation.bills_app
        run.line = self._lines(row.kind, row.resource, row.app, observation.bills_app)

    def _next_leg(self, run: Run, until: int, since: int, units: int) -> None:
        """The leg ends, charged up to an instant; the next one is charged from another."""
        state, run.state, run.until_us = run.state, GONE, until
        self.plan.ended[field_of(run.cluster, run.key, run.leg)] = run.encode()
        run.state = state
        cost, _ = run.cumulative(until)
        run.leg += 1
        run.points = ((since, cost % COST_DENOMINATOR, 0, units),)
        run.suspended = tuple(i for i in run.suspended if i[1] is None or i[1] > since)
        run.refunded_micro = run.refunded_us = 0

    def _close(self, run: Run) -> None:
        matcher, plan, state = self._matcher, self.plan, self._state
        plan.ended[run.field] = run.encode()
        plan.runs.pop(run.field, None)
        plan.gone.add(run.field)
        plan.revived.discard(run.field)
        state.runs.get(matcher.source, {}).pop(run.key, None)
        latest = state.latest.get(matcher.source, {})
        if latest.get(run.key[:2]) is run:
            del latest[run.key[:2]]
        if run.state == ENDED:
            matcher.closed[state.name, run.key] = run
        else:
            matcher.unwatch(run)  # should it come back, the ledger is asked who is charged by then

    def _row_of(self, seen: Observation) -> Row:
        return Row(self._matcher.cluster, seen.project, seen.user, seen.kind, seen.resource, seen.app)

    def _number_of(self, row: Row) -> int:
        known = row in self._state.row_numbers
        number = self._state.row_number(row)
        if not known:
            self.plan.new_rows.append(number)
        return number


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
