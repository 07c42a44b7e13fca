"""A made-up month on a real Prometheus: outages, an exporter that moves, series born on the way, gauges at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dashboards.alerts import alerts
from exporter import metric_names
from exporter.metric_names import (
    ADMISSION_DURATION,
    ADMISSIONS,
    BUDGET_LIMIT,
    EXHAUSTION,
    GRANTED,
    LEDGER_EPOCH,
    RATE,
    RELOAD_TIME,
    SPENT,
    Metric,
)
from tests.prometheus_lab import (
    DAY,
    HOUR,
    MINUTE,
    History,
    Labels,
    Prometheus,
    Sample,
    credits_text,
    recorded,
)

START = 1_790_812_800  # 2026-10-01T00:00:00Z, from which the ledger charges
DAYS = 31
END = START + DAYS * DAY
LAST = END - MINUTE
EXPORTER_AWAY = ((5 * 1440 + 600, 8 * 1440 + 615), (20 * 1440, 20 * 1440 + 30), (26 * 1440 + 59, 26 * 1440 + 61))
PROMETHEUS_AWAY = ((12 * 1440 + 630, 12 * 1440 + 720), (15 * 1440 + 630, 16 * 1440 + 790))
MOVED = 10 * 1440
"""The minute at which the exporter came back on another machine; both are scraped for a day."""
ROWS = [
    (cluster, *rest)
    for cluster in ("hpc", "cloud")
    for rest in (
        ("acme", "vision", "ann", "job", "gpu-large", ""),
        ("acme", "vision", "bob", "app", "gpu-large", "vllm"),
        ("acme", "vision", "ann", "app", "gpu-large", "vllm"),
        ("acme", "speech", "ann", "storage", "default", ""),
        ("globex", "x", "zoë", "job", 'cpu \\"small\\"', ""),
    )
]
CHOICES = {"cluster": ".*", "org": "acme", "project": "vision", "user": "ann"}
Found = tuple[History, Prometheus]


def _served(minute: int) -> list[Labels]:
    """Target labels of the exporters that Prometheus scraped in a minute."""
    hosts = [("a", minute < MOVED + 1440), ("b", minute >= MOVED)]
    return [(("instance", f"{host}:9470"), ("job", "credits-exporter")) for host, there in hosts if there]


def _history() -> History:
    history = History(START, DAYS, EXPORTER_AWAY, PROMETHEUS_AWAY)
    births = (0, 100, 9_000, 20 * 1440 + 7)
    for seed, row in enumerate(ROWS):
        history.grow(tuple(zip(SPENT.labels, row, strict=True)), births[seed % 4] + seed, seed)
    return history


def _counters(history: History) -> Iterator[tuple[str, tuple[str, dict[Labels, list[Sample]]]]]:
    spent: dict[Labels, list[Sample]] = {}
    epoch: dict[Labels, list[Sample]] = {}
    for labels in history.values:
        for minute, micro in history.scraped(labels):
            for target in _served(minute):
                spent.setdefault(labels + target, []).append((START + minute * MINUTE, credits_text(micro)))
    oldest = next(iter(history.values))
    for minute, _ in history.scraped(oldest):
        for target in _served(minute):
            epoch.setdefault(target, []).append((START + minute * MINUTE, str(START)))
    yield SPENT.name, ("counter", spent)
    yield LEDGER_EPOCH.name, ("gauge", epoch)


def _gauges() -> Iterator[tuple[str, tuple[str, dict[Labels, list[Sample]]]]]:
    """Everything else an exporter and an enforcer serve, in the month's last hours, with labels that fit together."""
    known = {"cluster": "hpc", "org": "acme", "project": "vision", "user": "ann", "kind": "job", "period": "month"}
    special = {EXHAUSTION: END + 20 * HOUR, RELOAD_TIME: START}
    target = _served(DAYS * 1440)[0]
    times = range(END - 5 * HOUR, END, MINUTE)
    for metric in vars(metric_names).values():
        if not isinstance(metric, Metric) or metric in (SPENT, LEDGER_EPOCH, ADMISSION_DURATION):
            continue
        labels = tuple((label, known.get(label, "x")) for label in metric.labels) + target
        value = special.get(metric, 1)
        kind = "counter" if metric.type == "counter" else "gauge"
        series = {labels: [(at, str(value)) for at in times]}
        if metric == RATE:
            stored = (("cluster", "hpc"), ("kind", "storage"), ("resource", "default"), *target)
            series[stored] = [(at, "0.0001") for at in times]
            series[labels] = [(at, "1" if at < END - 2 * HOUR else "2") for at in times]
        if metric is ADMISSIONS:
            unchecked = "exception", "ledger_unavailable"
            for decision, reason in (("deny", "no_credits"), ("shadow", "no_credits"), unchecked):
                found = (("decision", decision), ("reason", reason), *target)
                series[found] = [(at, str((at - END) // 600 + 40)) for at in times]
        if metric is GRANTED:
            series[labels] = [(at, "100" if at < END - 2 * HOUR else "200") for at in times]
        if metric is BUDGET_LIMIT:
            series[labels] = [(at, "4") for at in times]
        if metric.labels == ("org", "project", "user", "period"):
            whole = tuple((label, known[label]) for label in metric.labels if label != "user") + target
            series[whole] = list(series[labels])
        yield metric.name, (kind, series)
    bucket = f"{ADMISSION_DURATION.name}_bucket"
    yield (
        bucket,
        ("unknown", {(("le", le), *target): [(at, str(at - START)) for at in times] for le in ("0.1", "+Inf")}),
    )
    jobs = ("credits-exporter", "credits-enforcer")
    yield "up", ("gauge", {(("job", job),): [(at, "1") for at in times] for job in jobs})
    alert = (("alertname", alerts()[0].name), ("alertstate", "firing"), ("org", "acme"), ("severity", "warning"))
    yield "ALERTS", ("gauge", {alert: [(at, "1") for at in times]})


@contextmanager
def month(scratch: Path) -> Iterator[Found]:
    """The month's history and the server that holds what was scraped and recorded of it."""
    history = _history()
    families = dict([*_counters(history), *_gauges()])
    away = [(START + since * MINUTE, START + until * MINUTE) for since, until in PROMETHEUS_AWAY]
    with recorded(scratch, families, span=(START, LAST), fine=(END - 2 * HOUR, MINUTE), away=away) as server:
        yield history, server
