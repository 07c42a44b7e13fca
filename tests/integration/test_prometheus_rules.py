"""Dashboards and rules on a real Prometheus that holds a month: no query fails, and totals are the ledger's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from dashboards.alerts import alerts
from dashboards.build import all_dashboards
from dashboards.promql import Scope, total, trend
from exporter.metric_names import (
    SPENT,
)
from tests import prometheus_month
from tests.prometheus_lab import (
    DAY,
    HOUR,
    MINUTE,
    History,
    Labels,
    Prometheus,
    as_grafana,
)
from tests.prometheus_month import CHOICES, END, LAST, START, Found

pytestmark = pytest.mark.prometheus


@pytest.fixture(scope="module", name="month")
def _month(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    with prometheus_month.month(tmp_path_factory.mktemp("prometheus")) as found:
        yield found


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
            if panel["type"] == "stat":
                continue
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
def test_a_figure_has_one_answer(month: Found, made: dict[str, Any]) -> None:
    """Also those whose colour hangs on which of their queries answers."""
    _, server = month
    for panel in made["panels"]:
        if panel["type"] == "stat":
            answers = [server.instant(as_grafana(one["expr"], CHOICES, DAY), LAST) for one in panel["targets"]]
            assert sum(map(len, answers)) == 1, panel["title"]


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
