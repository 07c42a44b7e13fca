"""Cutting time: charges are summed by full hours, by the periods of budgets and by the lives of grants."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ledger.budgets import Budget
from ledger.money import HOUR_US
from ledger.plan import Slot
from ledger.runs import hour_of


def slots(since: int, until: int, budgets: Iterable[Budget], edges: Sequence[int] = ()) -> list[Slot]:
    """[since, until) cut at every full hour, every start of a budget's period and all of `edges` (ascending)."""
    if since >= until:
        return []
    cuts = {until}
    cuts.update(range(hour_of(since) + HOUR_US, until, HOUR_US))
    cuts.update(edges[bisect_right(edges, since) : bisect_left(edges, until)])
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
