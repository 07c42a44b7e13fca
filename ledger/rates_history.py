"""Rates over time: what was in force when, so that a charge made late uses the rate of its time."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from itertools import pairwise

import msgspec

from ledger.model import RatePlan, RateTable


class RateLine:
    """The rate of one resource over time: constant pieces, exact nano-credits an hour.

    `since[i]` is where `nano[i]` comes into force; the first is 0 (always). A piece of None is unpriced.
    """

    __slots__ = ("nano", "since")

    def __init__(self, steps: list[tuple[int, int | None]]) -> None:
        merged: list[tuple[int, int | None]] = []
        for since, nano in steps:
            if merged and merged[-1][1] == nano:
                continue
            merged.append((since, nano))
        self.since = [since for since, _ in merged]
        self.nano = [nano for _, nano in merged]

    def at(self, us: int) -> int | None:
        """The rate in force at an instant, None where it has none."""
        return self.nano[bisect.bisect_right(self.since, us) - 1]

    def next_change(self, us: int) -> int | None:
        """The first instant after `us` at which the rate changes, None if none is known."""
        index = bisect.bisect_right(self.since, us)
        return self.since[index] if index < len(self.since) else None

    def pieces(self, since: int, until: int) -> Iterator[tuple[int, int, int]]:
        """(since, until, nano) over an interval; unpriced time has rate 0."""
        index = bisect.bisect_right(self.since, since) - 1
        while since < until:
            end = self.since[index + 1] if index + 1 < len(self.since) else until
            yield since, min(end, until), self.nano[index] or 0
            since = end
            index += 1


def line_of(plan: RatePlan | None, kind: str, resource: str, app: str, bills_app: bool) -> RateLine:
    """The rate line of a workload: its preset or storage class, plus its app's own rate.

    A workload whose preset or storage class has no rate is unpriced as a whole. An app without an entry of
    its own adds nothing; one that runs on no preset and has no entry is unpriced.
    """
    if plan is None:
        return RateLine([(0, None)])
    return RateLine([(since, nano_of(table, kind, resource, app, bills_app)) for since, table in plan.steps])


def nano_of(table: RateTable, kind: str, resource: str, app: str, bills_app: bool = True) -> int | None:
    """Nano-credits an hour (storage: a GB-hour) of a workload under one table; None: unpriced."""
    if kind == "storage":
        return table.storage.get(resource)
    own = table.apps.get(app) if app and bills_app else None
    base = table.presets.get(resource)
    if resource == app and base is None:  # an app that runs on no preset
        return own if bills_app else 0
    return None if base is None else base + (own or 0)


def splice(history: RatePlan, plan: RatePlan, charged_us: int, now_us: int) -> RatePlan:
    """`history`, with `plan` in force from now on.

    Time that is charged keeps its rates. In the time since, which is not charged yet, only what `plan` dates there
    changes, at its date: a step first read after its date still counts from then.
    """
    cut = max(now_us, charged_us)
    steps = [step for step in history.steps if step[0] < cut]
    for (_, before), (since, table) in pairwise(plan.steps):
        if charged_us <= since < cut:
            changed = _overlay(before, table)
            in_force = RatePlan(plan.cluster, tuple(steps)).at(since)
            steps = [step for step in steps if step[0] < since] + [
                (at, _laid_over(under, changed))
                for at, under in [(since, in_force), *(step for step in steps if step[0] > since)]
            ]
    if not steps or steps[-1][1] != plan.at(cut):
        steps.append((cut if steps else 0, plan.at(cut)))
    steps.extend(step for step in plan.steps if step[0] > cut)
    merged = [step for n, step in enumerate(steps) if n == 0 or step[1] != steps[n - 1][1]]
    return RatePlan(plan.cluster, tuple(merged))


def first_difference(one: RatePlan, other: RatePlan) -> int | None:
    """The first instant from which two plans differ, None where they never do."""
    for at in sorted({since for since, _ in (*one.steps, *other.steps)}):
        if one.at(at) != other.at(at):
            return at
    return None


def _overlay(before: RateTable, table: RateTable) -> RateTable:
    """What a step changes."""

    def changed(old: Mapping[str, int], new: Mapping[str, int]) -> dict[str, int]:
        return {name: nano for name, nano in new.items() if old.get(name) != nano}

    return RateTable(
        changed(before.presets, table.presets),
        changed(before.apps, table.apps),
        changed(before.storage, table.storage),
    )


def _laid_over(table: RateTable, over: RateTable) -> RateTable:
    return RateTable(
        {**table.presets, **over.presets},
        {**table.apps, **over.apps},
        {**table.storage, **over.storage},
        table.unpriced,
    )


class _Table(msgspec.Struct):
    since: int
    presets: dict[str, int]
    apps: dict[str, int]
    storage: dict[str, int]
    unpriced: str


def encode_plan(plan: RatePlan) -> bytes:
    """A plan as the JSON that the ledger keeps."""
    return msgspec.json.encode(
        [_Table(since, dict(t.presets), dict(t.apps), dict(t.storage), t.unpriced) for since, t in plan.steps]
    )


def decode_plan(cluster: str, data: bytes) -> RatePlan:
    """The plan that `encode_plan` wrote.

    Raises: msgspec.DecodeError, msgspec.ValidationError.
    """
    tables = msgspec.json.decode(data, type=list[_Table])
    return RatePlan(cluster, tuple((t.since, RateTable(t.presets, t.apps, t.storage, t.unpriced)) for t in tables))
