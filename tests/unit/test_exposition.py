"""Exposition text: exact amounts, and label values as the library writes them."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from exporter.exposition import credits_text, decimal_text, family
from exporter.metric_names import AVAILABLE, SPENT, WORKLOADS, Metric
from exporter.org_lines import LiveSums, OrgLines
from ledger.money import MICRO_MAX
from ledger.org_state import Amounts, Live, OrgState, Row

# Everything a ledger lets through as a name, and more: quotes, backslashes, line ends, what looks like syntax.
hostile = st.text(
    st.one_of(st.sampled_from('\\"\n\r\t{}=, #\u2028\x00é漢🙂'), st.characters(exclude_categories=["Cs"])),
    max_size=12,
)
amounts = st.integers(-MICRO_MAX, MICRO_MAX)


class _Library:
    """The same samples as families of prometheus_client."""

    def __init__(self, metric: Metric, samples: list[tuple[tuple[str, ...], float]]) -> None:
        self._metric = metric
        self._samples = samples

    def collect(self) -> Any:
        kind = CounterMetricFamily if self._metric.type == "counter" else GaugeMetricFamily
        made = kind(self._metric.name, self._metric.help, labels=list(self._metric.labels))
        for values, number in self._samples:
            made.add_metric(list(values), number)
        return [made]


def _families(text: str, openmetrics: bool) -> Any:
    found = (parse_openmetrics if openmetrics else parse_text)(text)
    return [
        (f.name, f.documentation, f.type, sorted((s.name, sorted(s.labels.items()), s.value) for s in f.samples))
        for f in found
    ]


@pytest.mark.parametrize("openmetrics", [False, True])
@pytest.mark.parametrize("metric", [SPENT, AVAILABLE, WORKLOADS])
@given(data=st.data())
def test_ours_and_the_librarys_text_are_the_same_families_to_a_parser(
    metric: Metric, openmetrics: bool, data: st.DataObject
) -> None:
    labels = st.tuples(*[hostile] * len(metric.labels))
    samples = data.draw(st.dictionaries(labels, st.integers(0, 10**9), max_size=4))
    ours = "\n".join([*family(metric, ((k, credits_text(v)) for k, v in samples.items()), openmetrics), ""])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Library(metric, [(k, v / 1e6) for k, v in samples.items()]))
    theirs = (generate_openmetrics if openmetrics else generate_latest)(registry).decode()
    if openmetrics:
        ours += "# EOF\n"
    assert _families(theirs, openmetrics) == _families(ours, openmetrics)


@given(amounts)
def test_an_amount_is_written_to_its_last_digit(micro: int) -> None:
    assert Decimal(micro).scaleb(-6) == Decimal(credits_text(micro))


@given(st.integers(-(10**30), 10**30), st.integers(1, 9))
def test_a_decimal_has_all_its_digits(amount: int, digits: int) -> None:
    text = decimal_text(amount, digits)
    assert Fraction(text) * 10**digits == amount  # a Decimal would be rounded to 28 digits
    assert digits == len(text.partition(".")[2])


def test_of_samples_with_the_same_labels_the_last_one_counts() -> None:
    assert family(AVAILABLE, [(("a",), "1"), (("a",), "2")], False)[-1] == 'credits_available{org="a"} 2'


def test_a_sample_needs_a_value_for_each_label() -> None:
    with pytest.raises(ValueError, match="shorter"):
        family(SPENT, [(("only one",), "1")], False)


def _state(*totals: int) -> OrgState:
    state = OrgState("acme")
    for number, micro in enumerate(totals):
        state.row_number(Row("c", "p", f"u{number}", "job", "small", ""))
        state.totals[number] = Amounts(micro)
    return state


def _spent(lines: OrgLines) -> list[str]:
    found: list[str] = []
    lines.spent(str, found)
    return sorted(line.rpartition(" ")[2] for line in found)


def test_a_row_shows_once_it_is_committed() -> None:
    state = _state(5)
    lines = OrgLines(state)
    state.row_number(Row("c", "p", "planned", "job", "small", ""))
    assert _spent(lines) == ["5"]
    state.totals[1] = Amounts(7)
    assert _spent(lines) == ["5", "7"]


def test_a_counter_does_not_fall_when_the_server_lost_its_latest_writes() -> None:
    before = OrgLines(_state(100, 200))
    lost = _state(100, 150)
    after = OrgLines(lost, before)
    assert _spent(after) == ["100", "200"]
    lost.totals[1].micro = 260  # the time is charged again, and more
    assert _spent(after) == ["100", "260"]


def test_a_counter_does_not_fall_over_two_losses_either() -> None:
    first = OrgLines(_state(200))
    second = OrgLines(_state(150), first)
    third = OrgLines(_state(120), second)
    assert _spent(third) == ["200"]


def test_what_runs_is_added_up_over_users_and_sources() -> None:
    state = _state(1, 1)
    state.row_number(Row("c", "p", "", "storage", "default", ""))
    state.live = {"one": {0: Live(3 * 10**12, 2, 0), 2: Live(10**12, 1, 500)}, "two": {1: Live(0, 4, 0)}}
    sums = LiveSums()
    OrgLines(state).live(sums, lambda *facts: False)
    assert list(sums.workloads.values()) == [6, 1] or list(sums.workloads.values()) == [1, 6]
    assert list(sums.burn.values()) == [4 * 10**12]
    assert list(sums.stored.values()) == [500]
    assert sums.unpriced == {("c", "job", "small"): 4}
