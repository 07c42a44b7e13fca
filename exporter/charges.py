"""What runs cost from one instant to another, slot by slot: differences of floors. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.slots import Cuts, stretches
from ledger.model import Interval
from ledger.money import COST_DENOMINATOR, HOUR_US
from ledger.org_state import OrgState
from ledger.plan import Correction, Plan
from ledger.runs import Run, billable, cumulative, hour_of, steady_from

D = COST_DENOMINATOR


class Charges:
    """Puts into a plan of one org what its runs are charged up to an instant."""

    def __init__(self, plan: Plan, state: OrgState, taken_us: int) -> None:
        self._plan = plan
        self._state = state
        self._taken = taken_us
        self._cuts = Cuts(state.budgets, state.grant_edges, taken_us)

    def of(self, run: Run, until: int, ended: int | None, suspended: tuple[Interval, ...]) -> None:
        """What the new facts of a run cost less what was charged up to `until`. The run keeps its facts."""
        plan, taken = self._plan, self._taken
        first = run.points[0][0]
        agree = _same_before(until, run.ended_us, run.suspended, ended, suspended)
        since = max(first, until) if agree else first
        refunded = 0
        new_before = cumulative(run.points, ended, suspended, run.line, since)
        old_before = run.cumulative(min(since, until))
        # A run listed long after its end has nothing in the hours between.
        last = taken if ended is None else min(taken, hour_of(max(ended, until)) + HOUR_US)
        steady_since = max(until, run.points[-1][0])
        while since < last:
            cut = min(self._cuts.after(since), last)
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
            plan.corrections.append(Correction(run.id, self._state.rows[run.row], refunded, reason))

    def of_steady(self, runs: Sequence[Run], mark: int) -> None:
        """What runs cost since `mark`, up to which they are charged, where nothing changed since: one floor each."""
        plan, state = self._plan, self._state
        for since, until, hours in stretches(mark, self._taken, state.budgets, state.grant_edges):
            if hours > 1:
                for run in runs:
                    if run.is_billed:
                        cost = run.cost_at + run.per_us * (since - run.cost_from)
                        plan.add_hours(since, hours, run.row, cost, run.per_us * HOUR_US)
                        run.floor = (cost + run.per_us * (until - since)) // D
                continue
            micro: dict[int, int] = {}
            billed: dict[int, int] = {}
            for run in runs:
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
