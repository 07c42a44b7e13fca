"""Cutting time: charges are summed by full hours and by the periods of budgets."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from ledger.budgets import Budget
from ledger.money import HOUR_US
from ledger.plan import Slot
from ledger.runs import hour_of


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
