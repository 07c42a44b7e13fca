"""Budgets on a real ledger: a period starts by the calendar of its zone, and counts what it used before it was set."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exporter.books import Books
from exporter.rounds import Rounds
from ledger.budgets import Budget
from ledger.clock import from_us, to_us
from ledger.connect import Client, connect
from ledger.errors import InvalidRequest
from ledger.model import Kind, Observation, RatePlan, RateTable, Snapshot
from ledger.periods import bounds
from ledger.store import Ledger
from ledger.verify import verify

HOUR = 3_600_000_000
MINUTE = 60_000_000
DAY = 24 * HOUR
CREDIT = 1_000_000
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
    "Pacific/Chatham", "America/St_Johns", "Pacific/Apia", "America/Havana", "Africa/Casablanca", "Asia/Tehran",
)  # fmt: skip
MOMENTS = st.integers(to_us(datetime(2009, 1, 1, tzinfo=UTC)), to_us(datetime(2032, 1, 1, tzinfo=UTC)))


class Now:
    def __init__(self, us: int) -> None:
        self.us = us

    def __call__(self) -> int:
        return self.us


class Nothing:
    """A source that is never fetched: its snapshots are handed to `take`."""

    name, cluster = "s", "c"

    async def fetch(self, since_us: int | None) -> Snapshot:
        raise AssertionError

    async def close(self) -> None: ...


@settings(max_examples=400)
@given(MOMENTS, st.sampled_from(ZONES), st.sampled_from(["day", "week", "month"]), st.integers(0, 6))
def test_periods_tile_time_and_start_at_local_midnight(us: int, zone: str, period: str, week_start: int) -> None:
    start, end = bounds(period, zone, week_start, us)
    assert end is not None
    assert start <= us < end
    assert bounds(period, zone, week_start, start) == (start, end)
    assert bounds(period, zone, week_start, end - 1) == (start, end)
    assert bounds(period, zone, week_start, end)[0] == end
    tz = ZoneInfo(zone)
    local = from_us(start).astimezone(tz)
    before = (from_us(start) - timedelta(microseconds=1)).astimezone(tz)
    assert before.date() < local.date()  # the first instant of its day, midnight or what comes after a gap
    if period == "week":
        assert local.weekday() == week_start
    if period == "month":
        assert local.day == 1 or before.month != local.month


def test_a_total_never_starts_anew() -> None:
    assert bounds("total", "Asia/Kolkata", 0, 123) == (0, None)


def work(org: str, project: str, user: str, started: int, ended: int | None) -> Observation:
    return Observation(f"{org}-{project}-{user}-{started}", Kind.JOB, org, project, user, "small", "", started, ended)


@settings(max_examples=10)
@given(st.sampled_from(ZONES), st.sampled_from(["day", "week", "month", "total"]), st.integers(0, 10**6))
async def test_a_budget_set_late_counts_what_one_set_before_had_counted(
    valkey_url: str, zone: str, period: str, seed: int
) -> None:
    async with connect(valkey_url, None) as client:
        await client.flushall()
        chance = random.Random(seed)
        start = to_us(datetime(2026, chance.choice([3, 4, 10, 11]), chance.randrange(1, 28), tzinfo=UTC))
        now = Now(start)
        ledger = Ledger(client, start, now)
        await ledger.rates.publish(RatePlan("c", ((0, RateTable({"small": 3_333_333_333})),)))
        jobs = []
        for org in ("early", "late"):
            inner = random.Random(seed)
            for number in range(8):
                begins = start + inner.randrange(40 * HOUR)
                ends = None if inner.random() < 0.3 else begins + inner.randrange(1, 20 * HOUR)
                jobs.append(work(org, f"p{number % 2}", f"u{number % 3}", begins, ends))
        asked: dict[str, Any] = {"who": "test", "period": period, "timezone": zone, "week_start": seed % 7}
        for user in (None, "u1"):
            await ledger.budgets.put("early", "p1", user, 100 * CREDIT, **asked)
        rounds = Rounds(Books(ledger), Nothing(), 0)
        taken, late_from = start, chance.randrange(12)
        for number in range(14):
            if number == late_from:
                for user in (None, "u1"):
                    await ledger.budgets.put("late", "p1", user, 100 * CREDIT, **asked)
            taken += chance.randrange(1, 6 * HOUR)
            now.us = taken
            seen = [job for job in jobs if job.started_us is not None and job.started_us <= taken]
            listed = [
                job if job.ended_us is None or job.ended_us <= taken
                else replace(job, ended_us=None)
                for job in seen
            ]  # fmt: skip
            await rounds.take(Snapshot("s", "c", taken, listed), None)
            if number >= late_from:
                early, late = [[s.spent_micro for s in await ledger.budgets.states(o)] for o in ("early", "late")]
                assert early == late
        report = await verify(ledger)
        assert report["ok"], report["differences"]


async def test_a_new_period_starts_by_itself(any_client: Client) -> None:
    now = Now(to_us(datetime(2026, 3, 28, 22, 30, tzinfo=UTC)))  # 23:30 in Berlin, the night the clocks go forward
    ledger = Ledger(any_client, now.us - DAY, now)
    await ledger.rates.publish(RatePlan("c", ((0, RateTable({"small": 1_000_000_000})),)))
    await ledger.accounts.grant("acme", 1000 * CREDIT, key="k", who="test")
    await ledger.budgets.put("acme", "p", None, 2 * CREDIT, who="test", period="day", timezone="Europe/Berlin")
    rounds = Rounds(Books(ledger), Nothing(), 0)
    job = [work("acme", "p", "u", now.us - HOUR, None)]
    for hours, spent in ((0, 1_000_000), (1, 500_000), (23, 22_500_000), (24, 500_000)):
        now.us = to_us(datetime(2026, 3, 28, 22, 30, tzinfo=UTC)) + hours * HOUR
        await rounds.take(Snapshot("s", "c", now.us, job), None)
        [state] = await ledger.budgets.states("acme")
        assert (hours, state.spent_micro) == (hours, spent)
    assert state.ends_us is not None
    assert state.ends_us - state.starts_us == 24 * HOUR
    assert (await verify(ledger))["ok"]


async def test_zero_is_zero_and_a_budget_that_is_removed_is_gone(client: Client) -> None:
    ledger = Ledger(client, 0)
    zero = await ledger.budgets.put("acme", "p", "u", 0, who="test")
    assert (zero.remaining_micro, zero.budget.limit_micro) == (0, 0)
    before = await ledger.budgets.read("acme")
    assert await ledger.budgets.put("acme", "p", "u", 0, who="test") == zero
    assert await ledger.budgets.read("acme") == before  # the same again changes nothing
    await ledger.budgets.put("acme", "p", None, CREDIT, who="test")
    assert [b.user for b in await ledger.budgets.remove("acme", "p", "u", who="test")] == ["u"]
    assert [s.budget.user for s in await ledger.budgets.states("acme")] == [None]
    assert await ledger.budgets.remove("acme", "p", "u", who="test") == []
    entries, _ = await ledger.accounts.journal("acme")
    assert [entry["type"] for entry in entries] == ["budget", "budget", "budget_removed"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"timezone": "Europe/Berln"}, {"timezone": "../../etc/passwd"}, {"timezone": ""}, {"timezone": "Europe"},
        {"period": "year"}, {"week_start": 7}, {"limit_micro": -1}, {"limit_micro": 2**60}, {"project": ""},
    ],
)  # fmt: skip
async def test_a_budget_that_makes_no_sense_is_refused(client: Client, wrong: dict[str, Any]) -> None:
    ledger = Ledger(client, 0)
    facts: dict[str, Any] = {"org": "acme", "project": "p", "user": None, "limit_micro": 1, "who": "test", **wrong}
    with pytest.raises(InvalidRequest):
        await ledger.budgets.put(**facts)


def test_a_budget_covers_its_project_or_one_user_in_it() -> None:
    assert Budget("i", "p", None, 1, "day").covers("p", "anyone")
    assert not Budget("i", "p", "u", 1, "day").covers("p", "other")
    assert not Budget("i", "p", "u", 1, "day").covers("q", "u")
