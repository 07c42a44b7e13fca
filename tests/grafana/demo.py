"""A believable week of three orgs for the pictures in the docs: what an exporter and an enforcer would have served."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable

from exporter import metric_names as m
from exporter.metric_names import Metric
from tests.prometheus_lab import DAY, HOUR, Labels, Sample

START = 1_790_812_800  # 2026-10-01T00:00:00Z
END = START + 9 * DAY
STEP = 240
"""Seconds between samples: less than Prometheus' lookback, so that lines are whole."""
TARGET = (("instance", "exporter:9470"), ("job", "credits-exporter"))
RATES = {"cpu-small": 1.0, "cpu-large": 6.0, "gpu-small": 12.0, "gpu-large": 40.5}
STORAGE_RATE = 0.0001
USERS = {
    ("acme", "vision"): ("ann", "bob", "carla"),
    ("acme", "audio"): ("david", "ann"),
    ("acme", "robotics"): ("emma",),
    ("umbrella", "forecast"): ("farid", "grace"),
    ("umbrella", "pricing"): ("hiro",),
    ("initech", "reports"): ("ivan", "jane"),
}
GRANTS = {"acme": ((0, 30_000.0), (5, 20_000.0)), "umbrella": ((0, 16_000.0),), "initech": ((0, 5_000.0),)}
BUDGETS = {("acme", "vision", ""): 28_000.0, ("acme", "audio", ""): 14_000.0, ("acme", "vision", "ann"): 8_000.0}

Running = dict[tuple[str, str, str, str, str], int]
"""Jobs by cluster, org, project, user, preset."""
Spent = dict[tuple[str, ...], float]
Families = dict[str, tuple[str, dict[Labels, list[Sample]]]]


class _Week:
    """Collects samples by metric and labels."""

    def __init__(self) -> None:
        self.families: Families = {}

    def put(self, metric: Metric, at: int, value: float, *labels: str) -> None:
        self.at(metric.name, metric.type, tuple(zip(metric.labels, labels, strict=True)), at, value)

    def at(self, name: str, kind: str, labels: Labels, at: int, value: float) -> None:
        family = self.families.setdefault(name, (kind if kind == "counter" else "gauge", {}))
        family[1].setdefault(labels + TARGET, []).append((at, f"{value:.6f}"))


def _load(hour: float, day: int, base: float) -> float:
    """Work by time of day, less at weekends."""
    rhythm = 0.55 + 0.45 * math.sin((hour - 9) / 24 * 2 * math.pi)
    return base * rhythm * (0.45 if day % 7 in (2, 3) else 1.0)


def week() -> Families:
    """Families of samples over nine days, exact in the sense that spending is burn rate times time."""
    chance = random.Random(7)
    made = _Week()
    running: dict[tuple[str, str, str, str, str], int] = defaultdict(int)
    spent: dict[tuple[str, ...], float] = defaultdict(float)
    decided: dict[tuple[str, str], float] = defaultdict(float)
    for at in range(START, END, STEP):
        day, hour = divmod((at - START) / HOUR, 24)
        for (org, project), users in USERS.items():
            for user in users:
                for preset, base in (("cpu-small", 6), ("cpu-large", 2.4), ("gpu-small", 1.6), ("gpu-large", 0.9)):
                    key = ("hpc" if preset.startswith("cpu") or org == "acme" else "cloud", org, project, user, preset)
                    scale = {"acme": 1.0, "umbrella": 0.8, "initech": 0.35}[org]
                    wanted = _load(hour, int(day), base * scale)
                    if chance.random() < 0.06:
                        running[key] = max(0, round(chance.gauss(wanted, wanted / 2)))
        _served(made, at, int(day), running, spent)
        _decided(made, at, chance, decided)
        _health(made, at, chance)
    return made.families


def _served(
    made: _Week,
    at: int,
    day: int,
    running: dict[tuple[str, str, str, str, str], int],
    spent: dict[tuple[str, ...], float],
) -> None:
    burn: dict[tuple[str, str, str], float] = defaultdict(float)
    count: dict[tuple[str, str, str, str, str], int] = defaultdict(int)
    for (cluster, org, project, user, preset), jobs in running.items():
        app = "jupyter" if preset == "cpu-small" and user in ("ann", "grace") else ""
        kind = "app" if app else "job"
        burn[cluster, org, project] += jobs * RATES[preset]
        count[cluster, org, project, kind, preset] += jobs
        row = (cluster, org, project, user, kind, preset, app)
        spent[row] += jobs * RATES[preset] * STEP / HOUR
        if spent[row]:
            made.put(m.SPENT, at, spent[row], *row)
    for org, project in USERS:
        stored = 4e12 + 3e9 * (at - START) / 60 if project == "vision" else 1.2e12
        row = ("hpc", org, project, "", "storage", "default", "")
        spent[row] += stored / 1e9 * STORAGE_RATE * STEP / HOUR
        burn["hpc", org, project] += stored / 1e9 * STORAGE_RATE
        made.put(m.SPENT, at, spent[row], *row)
        made.put(m.STORAGE_BYTES, at, stored, "hpc", org, project, "default")
    for where, rate in burn.items():
        made.put(m.BURN_RATE, at, rate, *where)
    for what, jobs in count.items():
        made.put(m.WORKLOADS, at, jobs, *what)
    for org, grants in GRANTS.items():
        rate = sum(value for (_, of, _), value in burn.items() if of == org)
        _balance(made, at, org, rate, sum(value for since, value in grants if since <= day), spent)
        made.put(m.GRANTED, at, grants[0][1], org, "provision")
        if len(grants) > 1 and day >= grants[1][0]:
            made.put(m.GRANTED, at, grants[1][1], org, "purchase")
    for (org, project, user), limit in BUDGETS.items():
        used = sum(v for row, v in spent.items() if row[1:3] == (org, project) and user in ("", row[3]))
        made.put(m.BUDGET_LIMIT, at, limit, org, project, user, "month")
        made.put(m.BUDGET_REMAINING, at, limit - used, org, project, user, "month")


def _balance(made: _Week, at: int, org: str, rate: float, granted: float, spent: Spent) -> None:
    gone = sum(value for row, value in spent.items() if row[1] == org)
    held = rate / 4
    left = granted - gone - held
    made.put(m.AVAILABLE, at, left, org)
    made.put(m.HELD, at, held, org)
    made.put(m.OVERDRAFT, at, max(0.0, gone - granted), org)
    made.put(m.EXPIRED, at, 0, org)
    made.put(m.WITHDRAWN, at, 0, org)
    made.put(m.RESTORED, at, 0, org)
    made.put(m.CREDIT_LINE, at, 0, org)
    made.put(m.HOLDS, at, round(rate / 30), org)
    made.put(m.ORPHAN_HOLDS, at, 0, org)
    hours = max(left, 0) / rate if rate else math.inf
    if rate:
        made.put(m.EXHAUSTION, at, at + hours * HOUR, org)
    made.put(m.STAGE, at, 0 if hours > 24 else 1 if left > 0 else 2, org)


def _decided(made: _Week, at: int, chance: random.Random, decided: dict[tuple[str, str], float]) -> None:
    kinds = (
        ("allow", "ok", 9),
        ("deny", "no_credits", 0.5),
        ("deny", "budget_exhausted", 0.3),
        ("deny", "unpriced", 0.05),
    )
    for decision, reason, often in kinds:
        decided[decision, reason] += sum(chance.random() < often / 20 for _ in range(20))
        made.put(m.ADMISSIONS, at, decided[decision, reason], decision, reason)
    total = sum(value for (kind, _), value in decided.items() if kind != "token")
    decided["token", "refused"] += chance.random() < 0.08
    made.put(m.AUTH_FAILURES, at, decided["token", "refused"], "refused")
    for le, part in (("0.005", 0.7), ("0.01", 0.96), ("0.025", 0.995), ("+Inf", 1.0)):
        made.at(f"{m.ADMISSION_DURATION.name}_bucket", "gauge", (("le", le),), at, total * part)


def _health(made: _Week, at: int, chance: random.Random) -> None:
    away = END - 30 * HOUR < at < END - 29 * HOUR
    late = 2 * HOUR * (at - (END - 30 * HOUR)) / HOUR if away else 0
    for source, slow in (("slurm-hpc", 0.35), ("apolo-cloud", 0.12)):
        down = away and source == "apolo-cloud"
        made.put(m.SOURCE_UP, at, 0 if down else 1, source)
        made.put(m.SOURCE_LAST_SUCCESS, at, at - (late if down else chance.uniform(0, 15)), source)
        made.put(m.METER_LAG, at, late if down else chance.uniform(1, 16), source)
        made.put(m.SOURCE_FAILURES, at, round(late / 15) if down else 0, source)
        made.put(m.SOURCE_DURATION, at, slow * chance.uniform(0.8, 1.3), source)
        made.put(m.ROUND_DURATION, at, slow * chance.uniform(1.0, 1.6), source)
    made.put(m.UNBILLABLE, at, 2 if at > END - 5 * DAY else 0, "slurm-hpc", "no_org")
    single: list[tuple[Metric, Callable[[], float]]] = [
        (m.RELOAD_OK, lambda: 1),
        (m.RELOAD_TIME, lambda: START + 6 * DAY),
        (m.LEDGER_UP, lambda: 1),
        (m.LEDGER_EPOCH, lambda: START),
        (m.LEDGER_DRIFT, lambda: 0),
        (m.LEDGER_VERIFIED, lambda: at - at % DAY),
    ]
    for metric, value in single:
        made.put(metric, at, value())
    for preset, rate in RATES.items():
        dearer = preset == "gpu-large" and at >= START + 6 * DAY
        for cluster in ("hpc", "cloud"):
            made.put(m.RATE, at, 42.0 if dearer else rate, cluster, "job", preset)
    made.put(m.RATE, at, STORAGE_RATE, "hpc", "storage", "default")
    made.put(m.UNPRICED, at, 0, "hpc", "job", "gpu-trial")
    for job in ("credits-exporter", "credits-enforcer"):
        found = made.families.setdefault("up", ("gauge", {}))[1]
        found.setdefault((("job", job),), []).append((at, "1"))
