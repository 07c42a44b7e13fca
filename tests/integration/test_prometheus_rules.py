"""Dashboards and rules on a real Prometheus that holds a month: no query fails, and totals are the ledger's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from dashboards.alerts import alerts
from dashboards.build import all_dashboards
from dashboards.promql import Scope, checkpoint, total, trend
from dashboards.rules import CHECKPOINTED, recording_rules
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
    as_grafana,
    backfill,
    credits_text,
    openmetrics,
    prometheus,
)

pytestmark = pytest.mark.prometheus

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
            for decision, reason in (("deny", "no_credits"), ("shadow", "no_credits"), ("allow", "ledger_unavailable")):
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


def _recorded(server: Prometheus) -> Iterator[tuple[str, tuple[str, dict[Labels, list[Sample]]]]]:
    """What the recording rules would have recorded, by the server's own evaluation of them."""
    checkpoints = {checkpoint(metric) for metric in CHECKPOINTED}
    for group in recording_rules()["groups"]:
        for rule in group["rules"]:
            hourly = rule["record"] in checkpoints
            first, step = (START + 59 * MINUTE, HOUR) if hourly else (END - 2 * HOUR, MINUTE)
            found = {}
            for labels, samples in server.range(rule["expr"], first, LAST, step).items():
                plain = tuple((key, value.replace("\\", "\\\\").replace('"', '\\"')) for key, value in labels)
                minutes = [(int(at), value, (int(at) - START) // MINUTE) for at, value in samples]
                found[tuple(pair for pair in plain if pair[0] != "__name__")] = [
                    (at, value)
                    for at, value, minute in minutes
                    if not any(since <= minute < until for since, until in PROMETHEUS_AWAY)
                ]
            yield rule["record"], ("unknown", found)


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    scratch = tmp_path_factory.mktemp("prometheus")
    data, config = scratch / "data", scratch / "prometheus.yml"
    data.mkdir()
    config.write_text("global: {}\n")
    history = _history()
    backfill(openmetrics(dict([*_counters(history), *_gauges()])), scratch, data)
    # The rules that read others' results need those first.
    for _ in range(2):
        with prometheus(config, data) as server:
            recorded = {name: series for name, series in dict(_recorded(server)).items() if _new(server, name)}
        backfill(openmetrics({name: series for name, series in recorded.items() if series[1]}), scratch, data)
    with prometheus(config, data) as server:
        yield history, server


def _new(server: Prometheus, name: str) -> bool:
    return not server.instant(f"last_over_time({{__name__={name!r}}}[31d])".replace("'", '"'), LAST)


def _expected(history: History, known: Callable[[Labels, int], int], group: Sequence[str], start: int, end: int) -> Any:
    sums: dict[Labels, int] = {}
    for labels in history.values:
        key = tuple((name, value.replace('\\"', '"')) for name, value in sorted(labels) if name in group and value)
        sums[key] = sums.get(key, 0) + known(labels, end) - known(labels, start)
    return {key: micro for key, micro in sums.items() if micro}


def _asked(server: Prometheus, group: Sequence[str], start: int, end: int) -> dict[Labels, int]:
    found = server.instant(as_grafana(total(SPENT, Scope(), group), {}, end - start), end)
    micro = {labels: round(value * 1_000_000) for labels, value in found.items()}
    return {labels: value for labels, value in micro.items() if value}


def _at(day: float) -> int:
    return START + round(day * DAY)


KNOWN = {
    "the whole month": (0, 30.99),
    "from before the ledger began": (-400, 30.99),
    "within a day": (3.2, 3.9),
    "an hour": (3.2, 3.2 + 1 / 24),
    "starts in an outage of the exporter": (7, 25),
    "starts days into it": (8.2, 9),
    "ends in it": (2, 6.9),
    "starts and ends in it": (6, 8),
    "starts in one outage and ends in another": (6.1, 20.01),
    "series are born inside": (1, 9),
    "over the move to another machine": (9.5, 12),
    "both machines are scraped at the end": (9.5, 10.5),
    "both machines are scraped at the start": (10.5, 14),
    "over outages of Prometheus": (11, 18),
    "just after an outage": (8.4272, 20.0211),
    "over the checkpoint that an outage took": (26.02, 26.06),
}


@pytest.mark.parametrize("days", list(KNOWN.values()), ids=list(KNOWN))
@pytest.mark.parametrize("group", [(), ("org",), ("org", "project", "user"), SPENT.labels], ids=len)
def test_a_total_is_the_ledgers_to_the_micro_credit(month: Found, days: tuple[float, float], group: Any) -> None:
    history, server = month
    start, end = _at(days[0]), _at(days[1])
    assert _expected(history, history.ledger, group, start, end) == _asked(server, group, start, end)


@pytest.mark.parametrize("days", [(12.46, 14), (11, 12.49), (12.45, 12.48), (15.5, 20)])
def test_a_range_that_ends_where_prometheus_was_away_counts_what_it_last_saw(month: Found, days: Any) -> None:
    history, server = month
    start, end = _at(days[0]), _at(days[1])
    assert _expected(history, history.seen, ("org",), start, end) == _asked(server, ("org",), start, end)


def test_hours_into_such_an_outage_the_last_checkpoint_counts(month: Found) -> None:
    history, server = month
    start, end = _at(16), _at(20)
    before = START + (15 * 1440 + 10 * 60 - 1) * MINUTE
    assert _expected(history, history.ledger, ("org",), before, end) == _asked(server, ("org",), start, end)


@pytest.mark.parametrize("cut", [2.1, 7, 10.5, 16, 20.005])
def test_parts_of_a_range_add_up_to_it(month: Found, cut: float) -> None:
    _, server = month
    parts = [_asked(server, (), start, end)[()] for start, end in ((_at(1), _at(cut)), (_at(cut), _at(25)))]
    assert _asked(server, (), _at(1), _at(25))[()] == sum(parts)


def test_a_range_longer_than_prometheus_remembers_is_not_known_rather_than_wrong(month: Found) -> None:
    _, server = month
    # The ledger is older than the range, but Prometheus saw nothing of it at the range's start.
    younger = as_grafana(total(SPENT, Scope(), ("org",)), {}, 40 * DAY)
    younger = re.sub(r">= time\(\)", f">= {40 * DAY} + time()", younger)
    assert server.instant(younger, LAST) == {}


def test_nothing_spent_is_nought_not_unknown(month: Found) -> None:
    _, server = month
    expr = as_grafana(total(SPENT, Scope({"org": 'org="nobody"'})), {}, DAY)
    assert server.instant(expr, LAST) == {(): 0}


@pytest.mark.parametrize(("first", "last", "step"), [(1, 30, DAY), (4, 11, 6 * HOUR), (25, 28, HOUR)])
def test_the_bars_of_a_trend_add_up_to_the_total_between_their_checkpoints(
    month: Found, first: int, last: int, step: int
) -> None:
    history, server = month
    expr = as_grafana(trend(SPENT, Scope(), ("org",)), {}, step)
    found = server.range(expr, _at(first), _at(last), step)
    # A checkpoint is made in the minute before the hour.
    expected = _expected(history, history.ledger, ("org",), _at(first) - step - MINUTE, _at(last) - MINUTE)
    bars = {labels: sum(round(float(value) * 1_000_000) for _, value in row) for labels, row in found.items()}
    assert expected == bars


def _queries() -> Iterator[Any]:
    for made in all_dashboards():
        for panel in made["panels"]:
            for target in panel.get("targets", ()):
                name = f"{made['uid']}-{panel['title']}-{target['refId']}"
                yield pytest.param(target["expr"], target["instant"], id=name)
        for mark in made["annotations"]["list"]:
            yield pytest.param(mark["expr"], False, id=f"{made['uid']}-{mark['name']}")


@pytest.mark.parametrize(("expr", "instant"), list(_queries()))
def test_a_dashboards_query_has_an_answer(month: Found, expr: str, instant: bool) -> None:
    _, server = month
    if instant:
        assert server.instant(as_grafana(expr, CHOICES, DAY), LAST)
    else:
        assert server.range(as_grafana(expr, CHOICES, HOUR), END - 4 * HOUR, END - HOUR + 1, HOUR)


@pytest.mark.parametrize("made", all_dashboards(), ids=lambda made: made["uid"])
def test_a_dashboards_choices_are_those_there_are(month: Found, made: dict[str, Any]) -> None:
    _, server = month
    for variable in made["templating"]["list"][1:]:
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        match = as_grafana(selector, CHOICES, DAY)
        found = server.get(f"label/{label}/values", **{"match[]": match, "start": str(START), "end": str(END)})
        assert CHOICES[label] in {*found, ".*"}
        if label == "cluster":
            assert found == ["cloud", "hpc"]
        if label == "user" and made["uid"] == "credits-project":
            assert found == ["ann", "bob"]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alerts_expression_runs(month: Found, alert: Any) -> None:
    _, server = month
    server.instant(alert.expr, LAST)
