"""What an org spent in a period, for a chart and its table."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from console.charts import Chart, bar_chart, label
from console.desk import Desk
from console.periods import Period
from ledger.steps import cut
from ledger.usage import usage
from ledger.usage_report import UsageQuery

_PARTS_MAX = 6


@dataclass(frozen=True, slots=True)
class Spending:
    """`steps`: (title, micro-credits); `parts`: (project, micro-credits), the largest first, the rest as None.

    `since_us`, `until_us`: the bounds that all of it is exact for.
    """

    total_micro: int
    refunded_micro: int
    since_us: int
    until_us: int
    step: str
    steps: list[tuple[str, int]]
    parts: list[tuple[str | None, int]]
    charts: tuple[Chart, Chart]


async def spending(desk: Desk, org: str, period: Period, zone: str) -> Spending:
    """Raises: InvalidRequest, UnknownOrg, LedgerUnavailable."""
    query = UsageQuery(
        from_us=period.since_us, to_us=period.until_us, org=org, group_by=("project",), step=period.step, timezone=zone
    )
    async with desk.turns:
        report = await usage(desk.ledger, query)
    by_step = {start: 0 for start, _, _ in cut(period.step, zone, period.since_us, period.until_us)}
    by_project: defaultdict[str, int] = defaultdict(int)
    for row in report.rows:
        if row.at_us is not None:
            by_step[row.at_us] = by_step.get(row.at_us, 0) + row.micro
        by_project[row.names["project"]] += row.micro
    sums = sorted(by_step.items())
    return Spending(
        report.total_micro,
        sum(row.sums[2] for row in report.rows),
        report.from_us,
        report.to_us,
        period.step,
        [(label(at, period.step, zone, full=True), micro) for at, micro in sums],
        _largest(by_project),
        (bar_chart(sums, period.step, zone), bar_chart(sums, period.step, zone, "narrow")),
    )


def _largest(sums: dict[str, int]) -> list[tuple[str | None, int]]:
    found: list[tuple[str | None, int]] = sorted(
        ((name, micro) for name, micro in sums.items() if micro > 0), key=lambda item: (-item[1], item[0])
    )
    if len(found) <= _PARTS_MAX:
        return found
    rest = sum(micro for _, micro in found[_PARTS_MAX - 1 :])
    return [*found[: _PARTS_MAX - 1], (None, rest)]
