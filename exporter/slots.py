"""Cutting time: charges are summed by full hours, by the periods of budgets and by the lives of grants."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from ledger.budgets import Budget
from ledger.money import HOUR_US
from ledger.plan import Slot
from ledger.runs import hour_of


class Cuts:
    """Where the charges of an org are cut between full hours, up to an instant."""

    def __init__(self, budgets: Iterable[Budget], edges: Sequence[int], until: int) -> None:
        self.budgets = budgets
        self.edges = edges
        self.until = until
        self._since = until
        self._cuts: list[int] = []

    def after(self, us: int) -> int:
        """The first cut after an instant; `until` where there is none before."""
        if us < self._since:
            # Twice as far back each time, so that runs in any order cost a few readings of the budgets' periods.
            self._since = min(us, self.until - 2 * (self.until - self._since))
            cuts = cuts_between(self._since, self.until, self.budgets, self.edges)
            self._cuts = sorted(cut for cut in cuts if cut % HOUR_US)
        index = bisect_right(self._cuts, us)
        return self._cuts[index] if index < len(self._cuts) else self.until


def cuts_between(since: int, until: int, budgets: Iterable[Budget], edges: Sequence[int]) -> set[int]:
    """Starts of budgets' periods, and `edges` (ascending), inside (since, until)."""
    cuts = set(edges[bisect_right(edges, since) : bisect_left(edges, until)])
    for budget in budgets:
        at = since
        while True:
            end = budget.period_at(at)[1]
            if end is None or end >= until:
                break
            cuts.add(end)
            at = end
    return cuts


def slots(since: int, until: int, budgets: Iterable[Budget], edges: Sequence[int] = ()) -> list[Slot]:
    """[since, until) cut at every full hour, every start of a budget's period and all of `edges` (ascending)."""
    if since >= until:
        return []
    cuts = {until, *range(hour_of(since) + HOUR_US, until, HOUR_US)} | cuts_between(since, until, budgets, edges)
    return list(pairwise([since, *sorted(cuts)]))


def stretches(
    since: int, until: int, budgets: Iterable[Budget], edges: Sequence[int] = ()
) -> Iterator[tuple[int, int, int]]:
    """(since, until, how many slots) of the same, where full hours that follow one another are one stretch."""
    start, count = since, 0
    for at, end in slots(since, until, budgets, edges):
        if end - at == HOUR_US:
            start, count = (start if count else at), count + 1
            continue
        if count:
            yield start, at, count
            count = 0
        yield at, end, 1
    if count:
        yield start, until, count
