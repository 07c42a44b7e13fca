"""An org's spending over 30 days: the dashboards' query beside the range query over one series per job.

`python -m bench.reports [JOBS_A_DAY]` fills a Prometheus with a month of jobs, once as one counter per job with a
series of labels to join (as Apolo's platform-reports exports them), and once as this project's counters, and asks
both what each project of one org spent. (10,000 jobs a day take a quarter of an hour to fill in.)
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dashboards.limits import CHECKPOINT_MINUTE
from dashboards.promql import Scope, checkpoint, total
from exporter.metric_names import LEDGER_EPOCH, SPENT
from tests.prometheus_lab import DAY, HOUR, MINUTE, Prometheus, PrometheusError, as_grafana, backfill, prometheus

START, DAYS, SCRAPE = 1_790_812_800, 30, MINUTE
END = START + DAYS * DAY
ORGS, PROJECTS, USERS = 10, 5, 4
FILL_SECONDS = 3600
GRAFANA_POINTS, FINEST_POINTS = 1_000, 11_000
"""Points Grafana asks of a wide panel, and the most Prometheus gives."""
RATE = 0.01
"""Credits a second of every job, so that all totals are known."""

Job = tuple[int, int, int, int, int]
"""First second, seconds, org, project, user."""


def jobs(per_day: int) -> list[Job]:
    """Jobs of 2 minutes to 10 hours, evenly on a log scale, all over before the month is."""
    chance = random.Random(1)
    found = []
    for _ in range(per_day * DAYS):
        lasts = int(2 * MINUTE * 300 ** chance.random())
        begins = START + chance.randrange(DAYS * DAY - lasts)
        found.append((begins, lasts, chance.randrange(ORGS), chance.randrange(PROJECTS), chance.randrange(USERS)))
    return sorted(found)


def per_job(found: list[Job]) -> Iterator[str]:
    """A counter and a series of labels for each job, at each scrape within its life."""
    for name in ("kube_pod_credits_total", "kube_pod_labels"):
        yield f"# TYPE {name} unknown\n"
        for number, (begins, lasts, org, project, user) in enumerate(found):
            labels = f'pod="job-{number}"'
            if name == "kube_pod_labels":
                labels += f',org="org-{org}",project="project-{project}",user="user-{user}"'
            first = begins - begins % SCRAPE + SCRAPE
            for at in range(first, begins + lasts + 1, SCRAPE):
                value = f"{(at - begins) * RATE:.2f}" if name == "kube_pod_credits_total" else "1"
                yield f"{name}{{{labels}}} {value} {at}\n"
    yield "# EOF\n"


def per_row(found: list[Job]) -> Iterator[str]:
    """This project's counters of the same jobs, charged as they end, and their hourly checkpoints."""
    rows: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for begins, lasts, *row in found:
        rows.setdefault((row[0], row[1], row[2]), []).append((begins + lasts, lasts))
    scraped = range(START, END + 1, SCRAPE)
    hourly = range(START + CHECKPOINT_MINUTE * MINUTE, END, HOUR)
    for name, times in ((SPENT.name, scraped), (checkpoint(SPENT), hourly)):
        yield f"# TYPE {name} unknown\n"
        for (org, project, user), ended in rows.items():
            values = ("hpc", f"org-{org}", f"project-{project}", f"user-{user}", "job", "gpu", "")
            labels = ",".join(f'{key}="{value}"' for key, value in zip(SPENT.labels, values, strict=True))
            charges, spent = iter([*sorted(ended), (END + DAY, 0)]), 0
            end, seconds = next(charges)
            for at in times:
                while end <= at:
                    spent += seconds
                    end, seconds = next(charges)
                yield f"{name}{{{labels}}} {spent * RATE:.2f} {at}\n"
    for name in (LEDGER_EPOCH.name, checkpoint(LEDGER_EPOCH)):
        yield f"# TYPE {name} gauge\n"
        for at in range(START, END + 1, HOUR // 2):
            yield f"{name} {START} {at}\n"
    yield "# EOF\n"


def ours(server: Prometheus) -> float:
    """Credits of one org, by the dashboards' own query."""
    expr = total(SPENT, Scope({"org": 'org="org-0"'}), ["project"])
    return sum(server.instant(as_grafana(expr, {}, DAYS * DAY), END).values())


def theirs(server: Prometheus, points: int) -> float:
    """The same from one series per job: each one's last point less its first."""
    labels = 'kube_pod_labels{org="org-0"}'
    expr = f"max by (pod) (kube_pod_credits_total) * on (pod) group_right () {labels}"
    step = -(-DAYS * DAY // points)
    return sum(float(row[-1][1]) - float(row[0][1]) for row in server.range(expr, START, END, step).values())


def timed(ask: Callable[[], float], times: int) -> tuple[float, float]:
    """The median of the seconds it takes, and the answer."""
    taken, answer = [], 0.0
    for _ in range(times):
        began = time.perf_counter()
        answer = ask()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[times // 2], answer


def main(per_day: int) -> None:
    found = jobs(per_day)
    exact = sum(lasts for _, lasts, org, *_ in found if org == 0) * RATE
    with tempfile.TemporaryDirectory() as scratch:
        data, config = Path(scratch, "data"), Path(scratch, "prometheus.yml")
        data.mkdir()
        config.write_text("global: {}\n")
        backfill(per_job(found), Path(scratch), data, FILL_SECONDS)
        backfill(per_row(found), Path(scratch), data, FILL_SECONDS)
        with prometheus(config, data) as server:
            print(
                f"{len(found)} jobs in {DAYS} days, {ORGS * PROJECTS * USERS} rows; one org spent {exact:.2f} credits"
            )
            mine, answer = timed(lambda: ours(server), 7)
            print(f"counters per row, exact difference:   {mine * 1000:8.1f} ms  {answer / exact - 1:+8.3%}")
            for points, name in ((GRAFANA_POINTS, "Grafana's step"), (FINEST_POINTS, "finest step")):
                try:
                    taken, answer = timed(lambda: theirs(server, points), 3)  # noqa: B023 - called before the next turn
                except (PrometheusError, TimeoutError) as error:
                    print(f"series per job, {name:15}:      no answer within two minutes ({error})")
                    continue
                times = f"{taken / mine:.0f} times"
                print(f"series per job, {name:15}:      {taken * 1000:8.1f} ms  {answer / exact - 1:+8.3%}  {times}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
