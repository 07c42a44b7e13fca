"""What runs now, by row, and what it is to have set aside: the hold of running work needs no record of its own."""

from __future__ import annotations

from ledger import keys
from ledger.money import COST_DENOMINATOR
from ledger.org_state import Live, OrgState
from ledger.plan import Plan, class_of
from ledger.runs import OPEN, Run


def set_aside(plan: Plan, state: OrgState, taken_us: int, window_us: int) -> list[Run]:
    """Puts into `state` what runs now, and into the plan what it is to hold for the next `window_us`, per tier.

    A run with a time limit holds no more than what it can still cost. Storage holds nothing: it is not admitted.
    Returns the runs that have no rate.
    """
    sums: dict[int, list[int]] = {}
    unpriced: list[Run] = []
    for run in state.runs.get(plan.source, {}).values():
        if run.state != OPEN:
            continue
        entry = sums.get(run.row)
        if entry is None:
            entry = sums[run.row] = [0, 0, 0, 0]
        if not run.per_us and run.is_billed and run.line.at(taken_us) is None:
            unpriced.append(run)
        entry[0] += run.per_us
        entry[1] += 1
        if run.kind == "storage":
            entry[2] += run.points[-1][3]
        elif run.limit_us is not None:
            rest = (run.started_us or 0) + run.limit_us - taken_us
            if rest < window_us:
                entry[3] += run.per_us * (window_us - max(rest, 0))
    state.live[plan.source] = {row: Live(per_us, count, size) for row, (per_us, count, size, _) in sums.items()}
    running: dict[str, int] = {}
    for row, (per_us, _, _, beyond_limit) in sums.items():
        facts = state.rows[row]
        if facts.kind == "storage" or not window_us:
            continue
        micro = -((beyond_limit - per_us * window_us) // COST_DENOMINATOR)  # rounded up
        if micro:
            tiers = keys.tier_fields(facts.project, facts.user)
            for tier in (*tiers, class_of(facts)) if state.is_scoped else tiers:
                running[tier] = running.get(tier, 0) + micro
    if plan.taken_us is not None or running != state.running.get(plan.source, {}):
        plan.running = running
    return unpriced
