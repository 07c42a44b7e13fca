"""What past use would have cost under other rates: a question only, nothing is charged or changed by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ledger import csv_text
from ledger.clock import format_time
from ledger.errors import InvalidRequest
from ledger.model import RatePlan
from ledger.money import COST_DENOMINATOR, format_hours, format_micro
from ledger.org_state import Row
from ledger.rates_history import RateLine
from ledger.runs import Run, billable
from ledger.store import Ledger
from ledger.usage_reader import Lines, OrgReader, charged_at, lines_of, read_horizon

GROUPS: Final = ("cluster", "org", "project", "user", "kind", "resource", "app")


@dataclass(slots=True)
class ImpactRow:
    """What was charged (net of corrections), and what would have been."""

    names: dict[str, str]
    micro: int = 0
    new_micro: int = 0
    us: int = 0


@dataclass(slots=True)
class ImpactReport:
    """Rows by names. `unpriced`: (cluster, kind, resource) that was used and has no rate among the new ones.

    `unchanged`: clusters that the new rates say nothing of; they keep theirs.
    """

    from_us: int
    to_us: int
    rates_at_us: int
    group_by: tuple[str, ...]
    rows: list[ImpactRow] = field(default_factory=list)
    unpriced: list[tuple[str, str, str]] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)

    def columns(self) -> list[str]:
        """Of a table of the rows."""
        return [*self.group_by, "hours", "credits", "new_credits", "difference"]

    def totals(self) -> dict[str, str]:
        """The sums of all rows."""
        every = ImpactRow({}, *(sum(getattr(row, name) for row in self.rows) for name in ("micro", "new_micro", "us")))
        return _row_shape(every)

    def shape(self) -> dict[str, Any]:
        """As `--json` gives it."""
        totals = self.totals()
        return {
            "from": format_time(self.from_us),
            "to": format_time(self.to_us),
            "rates_at": format_time(self.rates_at_us),
            "group_by": list(self.group_by),
            "rows": [_row_shape(row) for row in self.rows],
            "total": totals["credits"],
            "new_total": totals["new_credits"],
            "difference": totals["difference"],
            "unpriced": [{"cluster": c, "kind": kind, "resource": resource} for c, kind, resource in self.unpriced],
            "unchanged_clusters": self.unchanged,
        }

    def csv(self) -> Iterator[str]:
        """Lines of CSV, the totals last."""
        columns = self.columns()
        return csv_text.lines(columns, [*map(_row_shape, self.rows), {columns[0]: "total", **self.totals()}])


async def rates_impact(
    ledger: Ledger,
    plans: Mapping[str, RatePlan],
    rates_at_us: int,
    from_us: int,
    to_us: int,
    group_by: tuple[str, ...] = ("org", "project", "resource"),
) -> ImpactReport:
    """Every run's time in [from, to) at the rates that `plans` (by cluster) have in force at one instant.

    Only what run records tell can be rated anew: the report says from when on that is.
    Raises: InvalidRequest, LedgerUnavailable.
    """
    for name in group_by:
        if name not in GROUPS:
            raise InvalidRequest(f"group_by {name!r}: expected one or more of {', '.join(GROUPS)}")
    from_us = max(from_us, (await read_horizon(ledger)).runs_us)
    if from_us >= to_us:
        raise InvalidRequest("from: expected an instant before `to`, of which details are kept")
    tables = {cluster: RatePlan(cluster, ((0, plan.at(rates_at_us)),)) for cluster, plan in plans.items()}
    work = _Impact(group_by, from_us, to_us, set(tables), lines_of(dict(tables)))
    for org in await ledger.accounts.orgs():
        reader = OrgReader(ledger, org)
        async for run in reader.runs(from_us, to_us):
            work.add(org, run, reader.rows[run.row])
    return ImpactReport(
        from_us,
        to_us,
        rates_at_us,
        group_by,
        [work.rows[key] for key in sorted(work.rows)],
        sorted(work.unpriced),
        sorted(work.unchanged),
    )


class _Impact:
    def __init__(self, group_by: tuple[str, ...], from_us: int, to_us: int, clusters: set[str], lines: Lines) -> None:
        self.rows: dict[tuple[str, ...], ImpactRow] = {}
        self.unpriced: set[tuple[str, str, str]] = set()
        self.unchanged: set[str] = set()
        self._group_by = group_by
        self._from_us = from_us
        self._to_us = to_us
        self._clusters = clusters
        self._lines = lines

    def add(self, org: str, run: Run, facts: Row) -> None:
        before, after = charged_at(run, self._from_us), charged_at(run, self._to_us)
        new = after[0] - before[0]
        if run.cluster in self._clusters:
            line = self._lines(run.cluster, facts.kind, facts.resource, facts.app, run.bills_app)
            if line.at(0) is None:
                self.unpriced.add((run.cluster, facts.kind, facts.resource))
            new = recharged_at(run, line, self._to_us) - recharged_at(run, line, self._from_us)
        else:
            self.unchanged.add(run.cluster)
        every = {"org": org, **facts._asdict()}
        names = {name: every[name] for name in self._group_by}
        row = self.rows.setdefault(tuple(names.values()), ImpactRow(names))
        row.micro += after[0] - before[0]
        row.new_micro += new
        row.us += after[1] - before[1]


def recharged_at(run: Run, line: RateLine, us: int) -> int:
    """Micro-credits that a leg would have been charged for up to an instant under another rate line.

    Under its own line this is what it was charged.
    """
    us = min(us, run.until_us)
    total = run.points[0][1]
    for number, (at, cost, _, units) in enumerate(run.points):
        if at >= us:
            break
        following = run.points[number + 1] if number + 1 < len(run.points) else None
        stop = us if following is None else min(us, following[0])
        was = new = 0
        for since, until in billable(at, stop, run.ended_us, run.suspended):
            was += sum(nano * units * (b - a) for a, b, nano in run.line.pieces(since, until))
            new += sum(nano * units * (b - a) for a, b, nano in line.pieces(since, until))
        if following is not None and was:
            # Sizes that a volume had for less than an hour are in its cost, but not among its points.
            known = following[1] - cost
            new = new * (known if stop == following[0] else min(was, known)) // was
        total += new
    return total // COST_DENOMINATOR


def _row_shape(row: ImpactRow) -> dict[str, Any]:
    return {
        **{name: value or None for name, value in row.names.items()},
        "hours": format_hours(row.us),
        "credits": format_micro(row.micro),
        "new_credits": format_micro(row.new_micro),
        "difference": format_micro(row.new_micro - row.micro),
    }
