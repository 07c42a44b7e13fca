"""Parts of the console without a server: periods, bars, words and amounts."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import texts
from console.charts import bar_chart
from console.journal_words import TITLES, in_words
from console.pages import headers, org_url
from console.periods import read_period
from ledger.audit import CHANGES, SIGN_INS
from ledger.clock import format_time, parse_time
from ledger.errors import InvalidRequest
from ledger.journal import JOURNAL_TYPES
from ledger.money import HOUR_US, MICRO_MAX, format_micro

NOW = parse_time("2026-11-19T14:25:00Z")


def bounds(query: dict[str, str], zone: str = "UTC") -> tuple[str, str, str]:
    period = read_period(query, zone, NOW)
    return format_time(period.since_us), format_time(period.until_us), period.step


def test_periods_end_with_the_current_step() -> None:
    assert bounds({"period": "24h"}) == ("2026-11-18T15:00:00Z", "2026-11-19T15:00:00Z", "hour")
    assert bounds({"period": "7d"}) == ("2026-11-13T00:00:00Z", "2026-11-20T00:00:00Z", "day")
    assert bounds({"period": "30d"}) == ("2026-10-21T00:00:00Z", "2026-11-20T00:00:00Z", "day")
    assert bounds({"period": "month"}) == ("2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", "day")
    assert bounds({"period": "last-month"}) == ("2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z", "day")


def test_days_are_days_of_the_zone_also_where_the_clock_changes() -> None:
    zone = "Europe/Berlin"
    october = bounds({"period": "last-month"}, zone)
    assert october == ("2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z", "day")
    asked = {"from": "2026-10-25", "to": "2026-10-25"}
    assert bounds(asked, zone) == ("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z", "hour")


def test_the_last_day_counts_in_full_and_steps_grow_with_the_period() -> None:
    assert bounds({"from": "2026-11-01", "to": "2026-11-02"})[2] == "hour"
    assert bounds({"from": "2026-01-01", "to": "2026-03-31"}) == (
        "2026-01-01T00:00:00Z", "2026-04-01T00:00:00Z", "day",
    )  # fmt: skip
    assert bounds({"from": "2025-01-01", "to": "2026-06-30"})[2] == "week"
    assert bounds({"from": "2020-01-01", "to": "2026-12-31"})[2] == "month"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"period": "forever"}, "period: 'forever' is none of"),
        ({"from": "2026-11-01"}, "to: expected a day"),
        ({"from": "2026-11-03", "to": "2026-11-01"}, "to: expected a day that is not before"),
        ({"from": "1. 11.", "to": "2026-11-01"}, "from: '1. 11.' is not a day"),
        ({"from": "2026-11-01", "to": "9999-12-31"}, "to: "),
        ({"from": "0001-01-01", "to": "2026-11-01"}, "to: "),
    ],
)
def test_a_period_that_is_none_is_said(query: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said.replace(".", r"\.")):
        bounds(query)


@given(st.text(max_size=12), st.text(max_size=12), st.text(max_size=6))
def test_whatever_is_asked_is_a_period_or_refused(first: str, last: str, name: str) -> None:
    try:
        period = read_period({"from": first, "to": last, "period": name}, "America/St_Johns", NOW)
    except InvalidRequest:
        return
    assert 0 <= period.since_us < period.until_us


@given(st.lists(st.integers(0, MICRO_MAX), min_size=1, max_size=80), st.sampled_from(["wide", "narrow"]))
def test_bars_stay_inside_their_chart_and_are_as_tall_as_their_share(sums: list[int], kind: str) -> None:
    since = NOW - NOW % HOUR_US
    chart = bar_chart([(since + n * HOUR_US, micro) for n, micro in enumerate(sums)], "hour", "UTC", kind)
    assert len(chart.bars) == len(sums)
    floor = Decimal(chart.ticks[0][0])
    for bar, micro in zip(chart.bars, sums, strict=True):
        assert chart.left <= Decimal(bar.x)
        assert Decimal(bar.x) + Decimal(bar.width) <= chart.width
        assert Decimal(bar.y) + Decimal(bar.height) == floor
        assert Decimal(bar.y) >= 0
        assert bar.is_none == (micro == 0)
        assert bar.said.endswith(f"{format_micro(micro)} credits")
    tallest = max(range(len(sums)), key=lambda n: sums[n])
    assert Decimal(chart.bars[tallest].height) == max(Decimal(bar.height) for bar in chart.bars)


@given(st.integers(-MICRO_MAX, MICRO_MAX))
def test_an_amount_keeps_its_exact_value_beside_what_is_shown(micro: int) -> None:
    text = format_micro(micro)
    shown = texts.credits_of(micro)
    assert f'value="{text}"' in shown
    assert shown.striptags().replace(",", "").replace("−", "-").replace(" ", "") == text


def test_durations_are_said_in_two_units() -> None:
    assert texts.duration(0) == "under a minute"
    assert texts.duration(5 * texts.MINUTE_US) == "5 min"
    assert texts.duration(HOUR_US) == "1 h"
    assert texts.duration(2 * HOUR_US + 5 * texts.MINUTE_US) == "2 h 5 min"
    assert texts.duration(25 * HOUR_US) == "1 day 1 h"
    assert texts.duration(30 * 24 * HOUR_US) == "30 days"


def test_times_say_their_zone() -> None:
    assert texts.when(NOW).striptags() == "19 Nov 2026, 14:25 UTC"
    assert texts.when("2026-11-19T14:25:00Z", "Europe/Berlin", seconds=True).striptags() == "19 Nov 2026, 15:25:00 CET"
    assert (texts.when(None), texts.when(in_words({}).at)) == ("–", "–")
    assert texts.zone_or_utc("../etc/passwd") == "UTC"


def test_shares_are_whole_and_something_shows() -> None:
    assert (texts.share(0, 100), texts.share(1, 10**9), texts.share(50, 100), texts.share(200, 100)) == (0, 1, 50, 100)
    assert (texts.percent(1, 3), texts.percent(0, 0), texts.percent(5, 0)) == ("33.3 %", "0 %", "100 %")
    assert (texts.percent(2, 3), texts.percent(99_999, 100_000), texts.percent(3, 2)) == ("66.7 %", "99.9 %", "150 %")


def test_entries_of_the_journal_in_words() -> None:
    grant = in_words({"type": "grant", "at": "2026-11-19T14:25:00Z", "who": "a", "credits": "5", "source": "gift",
                      "reason": "school", "key": "k", "expires_at": None})  # fmt: skip
    assert (grant.title, grant.credits, grant.reason, grant.tone) == ("Credits granted, a gift", "5", "school", "good")
    assert grant.more == [("source", "gift"), ("key", "k")]
    taken = in_words({"type": "withdrawal", "at": "2026-11-19T14:25:00Z", "who": "payments", "credits": "2.5"})
    assert (taken.credits, taken.tone) == ("-2.5", "bad")
    there = {"type": "transfer", "at": "2026-11-19T14:25:00Z", "who": "a", "from_org": "acme", "to_org": "globex"}
    sent, got = in_words({**there, "credits": "-3", "from": "10.0.0.1"}), in_words({**there, "credits": "3"})
    assert (sent.title, sent.credits, sent.tone) == ("Transfer to globex", "-3", "bad")
    assert ("address", "10.0.0.1") in sent.more
    assert (got.title, got.credits, got.tone) == ("Transfer from acme", "3", "good")
    new = in_words({"type": "moon_phase", "at": "2026-11-19T14:25:00Z", "who": "x", "project": "p", "user": "u"})
    assert (new.title, new.about, new.credits) == ("Moon phase", ["p", "u"], None)


def test_every_page_allows_nothing_from_elsewhere() -> None:
    policy = headers(["https://pay.example"])["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "form-action 'self' https://pay.example;" in policy
    assert "unsafe" not in policy
    assert org_url("a/b ?#", "usage") == "/console/orgs/a%2Fb%20%3F%23/usage"


def test_every_type_of_a_journals_entries_has_a_title() -> None:
    assert {*JOURNAL_TYPES, *CHANGES, *SIGN_INS} == set(TITLES)


def test_instants_that_an_entry_tells_of_are_by_the_clocks_of_the_zone() -> None:
    assert ">1 Dec 2026, 01:00:00 <" in str(texts.told("2026-12-01T00:00:00Z", "Europe/Berlin"))
    assert texts.told("1970-01-01T00:00:00Z", "UTC") == "the beginning"
    for text in ("<b>", "2026-12-01", "at 2026-12-01T00:00:00Z", "2026-99-01T00:00:00Z"):
        assert texts.told(text, "UTC") == text


def test_an_instant_in_a_sentence_is_by_the_clocks_of_the_zone() -> None:
    assert texts.when_text("2026-12-31T23:30:00Z", "Europe/Berlin") == "1 Jan 2027, 00:30 CET"
    assert texts.when_text("2026-07-01T00:00:00Z", "UTC") == "1 Jul 2026, 00:00 UTC"
