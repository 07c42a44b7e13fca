"""How long a scrape of many rows takes, beside prometheus_client's own collector on the same rows.

python -m bench.exposition [ROWS]
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from exporter.exposition import credits_text, family_head
from exporter.metric_names import SPENT, WORKLOADS
from exporter.org_lines import LiveSums, OrgLines
from ledger.org_state import Amounts, Live, OrgState, Row

ORGS = 20


def states(rows: int) -> list[OrgState]:
    """Orgs with as many rows between them, all running."""
    made = []
    for n in range(ORGS):
        state = OrgState(f"org-{n}")
        live = {}
        for m in range(rows // ORGS):
            row = Row("default", f"project-{m % 50}", f"user-{m // 50}", "job", f"preset-{m % 8}", "")
            number = state.row_number(row)
            state.totals[number] = Amounts(123_456_789 * (m + 1))
            live[number] = Live(40_500_000_000 * 10**9, 3, 0)
        state.live["bench"] = live
        made.append(state)
    return made


def ours(kept: list[OrgLines]) -> str:
    """The two families with many rows, as the exporter makes them."""
    lines = [family_head(SPENT, False)]
    sums = LiveSums()
    for org in kept:
        org.spent(credits_text, lines)
        org.live(sums, lambda *facts: True)
    lines.append(family_head(WORKLOADS, False))
    lines.extend(f"{head}{count}" for head, count in sums.workloads.items())
    return "\n".join([*lines, ""])


class Library(Collector):
    """The same through families of prometheus_client."""

    def __init__(self, orgs: list[OrgState]) -> None:
        self._orgs = orgs

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        spent = CounterMetricFamily(SPENT.name, SPENT.help, labels=list(SPENT.labels))
        workloads = GaugeMetricFamily(WORKLOADS.name, WORKLOADS.help, labels=list(WORKLOADS.labels))
        for org in self._orgs:
            counts: dict[tuple[str, str, str, str, str], int] = {}
            for number, amounts in org.totals.items():
                cluster, project, user, kind, resource, app = org.rows[number]
                spent.add_metric([cluster, org.name, project, user, kind, resource, app], amounts.micro / 1e6)
                key = cluster, org.name, project, kind, resource
                counts[key] = counts.get(key, 0) + org.live["bench"][number].workloads
            for key, count in counts.items():
                workloads.add_metric(list(key), count)
        yield spent
        yield workloads


def best(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the quickest of some runs."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    orgs = states(rows)
    kept = [OrgLines(org) for org in orgs]
    first = best(lambda: ours(kept), 1)
    again = best(lambda: ours(kept))
    registry = CollectorRegistry()
    registry.register(Library(orgs))
    library = best(lambda: generate_latest(registry), 2)
    body = ours(kept).encode()
    packing = best(lambda: gzip.compress(body, 1))
    print(f"{rows} rows, {len(body) / 1e6:.1f} MB")
    print(f"first scrape         {first:6.3f} s")
    print(f"each after it        {again:6.3f} s")
    print(f"prometheus_client    {library:6.3f} s: {library / again:.0f} times that")
    print(f"gzip, in a thread    {packing:6.3f} s, to {len(gzip.compress(body, 1)) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
