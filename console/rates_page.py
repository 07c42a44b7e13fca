"""Rates: what is in force in each cluster, what is to come, and what changed when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from aiohttp import web

from console.desk import Desk
from ledger.model import RatePlan, RateTable

_PAST_MAX: Final = 20
_CHANGES_MAX: Final = 200
_UNITS: Final = (("presets", "Preset", "an hour"), ("apps", "App", "an hour"), ("storage", "Storage", "a GB-hour"))
UNPRICED: Final = {
    "deny": "Work on a preset that has no rate is refused.",
    "free": "Work on a preset that has no rate is free.",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One rate that a step changes, in nano-credits; None: it has none before, or after."""

    kind: str
    name: str
    before: int | None
    after: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """What comes into force at an instant. `unpriced`: the rule, where the step changes it."""

    since_us: int
    changes: Sequence[Change]
    unpriced: str


@dataclass(frozen=True, slots=True)
class ClusterRates:
    """`table` None: the ledger has no rates of this cluster yet. Steps: the next first, and the last first."""

    cluster: str
    table: RateTable | None
    coming: Sequence[Step] = ()
    past: Sequence[Step] = ()

    @property
    def lines(self) -> list[tuple[str, str, int, str]]:
        """(kind, name, nano-credits, unit) of the rates in force."""
        table = self.table or RateTable()
        return [
            (kind, name, nano, unit)
            for field, kind, unit in _UNITS
            for name, nano in sorted(_rates(table, field).items())
        ]  # fmt: skip


class RatesPage:
    """One page. `clusters`: those of the settings; they are shown also before they have rates."""

    def __init__(self, desk: Desk, clusters: Sequence[str]) -> None:
        self._desk = desk
        self._clusters = tuple(dict.fromkeys(clusters))

    async def page(self, request: web.Request) -> web.Response:
        """Raises: LedgerUnavailable, LedgerDamaged."""
        now = self._desk.ledger.clock()
        found = []
        for cluster in self._clusters:
            _, plan = await self._desk.ledger.rates.read(cluster)
            found.append(ClusterRates(cluster, None) if plan is None else rates_at(plan, now))
        return self._desk.pages.render(request, "rates.html", clusters=found, unpriced=UNPRICED, now=now)


def rates_at(plan: RatePlan, now_us: int) -> ClusterRates:
    """A plan as it is seen at an instant."""
    steps = [
        Step(since, differences(before, table)[:_CHANGES_MAX], _rule(before, table))
        for (_, before), (since, table) in pairwise(plan.steps)
    ]
    coming = [step for step in steps if step.since_us > now_us]
    past = [step for step in reversed(steps) if step.since_us <= now_us]
    return ClusterRates(plan.cluster, plan.at(now_us), coming, past[:_PAST_MAX])


def differences(before: RateTable, after: RateTable) -> list[Change]:
    """The rates that differ, by kind and name."""
    found = []
    for field, kind, _ in _UNITS:
        old, new = _rates(before, field), _rates(after, field)
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        found += [Change(kind, name, old.get(name), new.get(name)) for name in names]
    return found


def _rule(before: RateTable, after: RateTable) -> str:
    return "" if before.unpriced == after.unpriced else after.unpriced


def _rates(table: RateTable, field: str) -> Mapping[str, int]:
    return {"presets": table.presets, "apps": table.apps, "storage": table.storage}[field]
