"""A maximum flow from grants to work, found path by path: slow, and as simple as it can be."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ledger.scopes import Scope

Work = tuple[str, str]
Demand = tuple[Work | None, int]
Supply = tuple[Scope | None, int]


def max_flow(supplies: Sequence[Supply], demands: Sequence[tuple[Work | None, int, Work | None]]) -> int:
    """From grants to work (work, amount, other work whose grants it may use as well), by the shortest paths."""
    source, sink = "source", "sink"
    room: dict[Any, dict[Any, int]] = {source: {}, sink: {}}

    def link(a: Any, b: Any, amount: int) -> None:
        room.setdefault(a, {})[b] = room.get(a, {}).get(b, 0) + amount
        room.setdefault(b, {}).setdefault(a, 0)

    for i, (scope, amount) in enumerate(supplies):
        link(source, ("grant", i), amount)
        for j, (work, _, other) in enumerate(demands):
            if scope is None or any(w is not None and scope.accepts(*w) for w in (work, other)):
                link(("grant", i), ("work", j), 10**18)
    for j, (_, amount, _) in enumerate(demands):
        link(("work", j), sink, amount)
    total = 0
    while True:
        before: dict[Any, Any] = {source: None}
        queue = deque([source])
        while queue and sink not in before:
            here = queue.popleft()
            for there, left in room[here].items():
                if left and there not in before:
                    before[there] = here
                    queue.append(there)
        if sink not in before:
            return total
        path = [sink]
        while before[path[-1]] is not None:
            path.append(before[path[-1]])
        steps = [(a, b) for b, a in pairwise(path)]
        least = min(room[a][b] for a, b in steps)
        for a, b in steps:
            room[a][b] -= least
            room[b][a] += least
        total += least
