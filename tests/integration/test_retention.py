"""Retention changes no total, at any tier and in any period that is still told apart, and charges nothing twice."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import keys, retention
from ledger.clock import now_us
from ledger.errors import InvalidRequest
from ledger.retention import retain
from ledger.rollups import roll_up
from ledger.statement import statement
from ledger.usage import usage
from ledger.usage_report import GROUPS, UsageQuery, UsageReport
from ledger.verify import verify
from tests.histories import HOUR, SPAN, T0, lives, snapshot
from tests.usage_lab import UsageLab, job, usage_lab, volume

pytestmark = pytest.mark.redis
DAY = 24 * HOUR
LATER = T0 + 500 * DAY
ALL = UsageQuery(from_us=T0, to_us=T0 + 600 * DAY)


async def is_clean(lab: UsageLab) -> bool:
    report = await verify(lab.ledger)
    assert report["ok"], report["differences"]
    return True


def sums(report: UsageReport) -> dict[object, list[int]]:
    return {tuple(row.names.items()): row.sums for row in report.rows}


async def balances(lab: UsageLab) -> list[Any]:
    return [(b.org, b.spent_micro, b.left_micro) for b in await lab.ledger.accounts.balances()]


@given(data=st.data())
async def test_no_total_changes(data: st.DataObject, valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        lives_ = data.draw(lives(), "lives")
        await lab.ledger.accounts.grant("acme", 10**9, key="g", who="test")
        await lab.ledger.budgets.put("acme", "vision", None, 10**9, who="test", period="day", timezone="Asia/Kolkata")
        await lab.ledger.budgets.put("acme", "vision", "ann", 10**9, who="test", period="month")
        for at in (T0 + 7 * HOUR, T0 + SPAN):
            await lab.take(at, snapshot(lives_, at, 3 * SPAN).workloads)
        late = T0 + data.draw(st.integers(2, 20), "late") * DAY + data.draw(st.integers(0, 10**11))
        await lab.take(late, snapshot(lives_, T0 + SPAN, 3 * SPAN).workloads)
        if data.draw(st.booleans(), "rolled up before"):
            await roll_up(lab.ledger, LATER)
        groups = tuple(data.draw(st.lists(st.sampled_from(GROUPS[:-1]), unique=True), "groups"))
        edges = sorted(data.draw(st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True), "days"))
        query = replace(ALL, from_us=T0 + edges[0] * DAY, to_us=T0 + edges[1] * DAY, group_by=groups)
        before = sums(await usage(lab.ledger, query)), sums(await usage(lab.ledger, replace(ALL, group_by=groups)))
        held, closing = await balances(lab), (await statement(lab.ledger, "acme", "2026-12")).shape()
        now = late + data.draw(st.integers(40, 200), "pass") * DAY
        await lab.take(now, [w for w in snapshot(lives_, T0 + SPAN, 0).workloads if w.ended_us is None][:0])
        kept = data.draw(st.sampled_from([(62, 62), (None, 62), (62, None), (100, 62), (62, 100)]), "days kept")
        await retain(lab.ledger, now, run_days=kept[0], hour_days=kept[1])
        assert await is_clean(lab)
        if data.draw(st.booleans(), "rolled up after"):
            await roll_up(lab.ledger, LATER)
        after = sums(await usage(lab.ledger, query)), sums(await usage(lab.ledger, replace(ALL, group_by=groups)))
        assert before == after
        assert held == await balances(lab)
        assert closing == {
            **(await statement(lab.ledger, "acme", "2026-12")).shape(),
            "charged_until": closing["charged_until"],
        }
        workloads = await usage(lab.ledger, replace(query, group_by=(*groups, "workload")))
        assert sum(row.micro for row in workloads.rows) == sum(s[0] for s in after[0].values())
        assert await is_clean(lab)


async def two_old_jobs(lab: UsageLab) -> None:
    """One of two hours, one that was charged too long and corrected; everything is long over."""
    await lab.take(T0 + 10 * HOUR, [job("a", T0 + HOUR, T0 + 3 * HOUR), job("b", T0)])
    await lab.take(T0 + 11 * HOUR, [job("a", T0 + HOUR, T0 + 3 * HOUR), job("b", T0, T0 + 5 * HOUR)])
    await lab.take(LATER, [])


async def test_old_runs_are_forgotten_and_old_hours_become_days(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await two_old_jobs(lab)
        done = await retain(lab.ledger, LATER)
        assert (done.runs, done.hours) == (2, 9)
        names = keys.of_org("acme")
        client: Any = lab.ledger.client
        assert await client.hlen(names.ended) == 0
        assert await client.hlen(keys.claims("default")) == 0
        assert [int(hour) for hour in await client.zrange(names.hours, 0, -1)] == [T0 // 1_000_000]
        assert await is_clean(lab)
        again = await retain(lab.ledger, LATER)
        assert (again.runs, again.hours) == (0, 0)
        rows = (await usage(lab.ledger, replace(ALL, group_by=("workload",)))).shape()
        assert rows["rows"] == [
            {
                "workload": None, "id": None, "kind": None, "started_at": None, "ended_at": None, "legs": [],
                "credits": "486", "hours": "12", "refunded": "202.5", "refunded_hours": "5",
            }
        ]  # fmt: skip
        assert rows["total"] == "486"


async def test_bounds_that_are_not_kept_any_more_are_said(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await two_old_jobs(lab)
        await retain(lab.ledger, LATER, hour_days=None)
        query = replace(ALL, from_us=T0 + 90 * 60_000_000, to_us=T0 + 2 * HOUR)
        shape = (await usage(lab.ledger, query)).shape()
        assert (shape["exact_from"], shape["exact_to"], shape["exact"]) == (
            "2026-11-01T01:00:00Z",
            "2026-11-01T02:00:00Z",
            False,
        )
        await retain(lab.ledger, LATER)
        shape = (await usage(lab.ledger, replace(query, step="hour"))).shape()
        assert (shape["exact_from"], shape["exact_to"], shape["exact"]) == (
            "2026-11-01T00:00:00Z",
            "2026-11-02T00:00:00Z",
            False,
        )
        assert shape["total"] == "486"


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York"])
async def test_statements_of_months_kept_by_day_charge_nothing_twice(valkey_url: str, zone: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.ledger.accounts.grant("acme", 10**10, key="g", who="test", source="gift")
        await lab.take(T0 + 35 * DAY, [job("j1", T0 + 25 * DAY, T0 + 35 * DAY)])
        await lab.take(LATER, [])
        assert (await retain(lab.ledger, LATER)).hours
        first, second = [await statement(lab.ledger, "acme", month, zone) for month in ("2026-11", "2026-12")]
        assert (first.to_us, first.closing_micro) == (second.from_us, second.opening_micro)
        assert first.charged_micro + second.charged_micro == 10 * 24 * 40_500_000


@pytest.mark.parametrize("restart", [False, True])
async def test_a_forgotten_run_that_is_listed_again_is_counted_and_not_charged(valkey_url: str, restart: bool) -> None:
    async with usage_lab(valkey_url) as lab:
        await two_old_jobs(lab)
        spent = await balances(lab)
        await retain(lab.ledger, LATER)
        if restart:
            lab.restart()
        again = [
            job("a", T0 + HOUR, T0 + 3 * HOUR),
            job("b", T0, T0 + 7 * HOUR),
            job("a", T0 + HOUR, T0 + 3 * HOUR, org="beta"),
            job("unknown", T0, T0 + HOUR),
        ]
        for minute in range(3):
            await lab.take(LATER + minute * 60_000_000, again)
        assert [b for b in await balances(lab) if b[1]] == spent
        assert (await lab.ledger.charging.unbillable())["test", "too_late"] == 3
        assert await is_clean(lab)


async def test_a_run_that_seemed_over_and_goes_on_is_charged_from_the_bound_on(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 10 * HOUR, [job("j", T0, preset="cpu-small")])
        await lab.take(LATER, [])
        assert (await retain(lab.ledger, LATER)).runs == 1
        await lab.take(LATER + HOUR, [job("j", T0, preset="cpu-small")])
        assert [b[1] for b in await balances(lab)] == [(10 + 400 * 24 + 1) * 1_000_000]
        assert await is_clean(lab)


async def test_a_live_exporter_goes_on_beside_retention(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        old = [
            job("long", T0, preset="cpu-small"),
            *(job(f"j{n}", T0, T0 + HOUR, preset="cpu-small") for n in range(30)),
        ]
        await lab.take(T0 + 2 * HOUR, [*old, volume("v", 10**12)])
        for at in (100, 200, 300):
            await lab.take(T0 + at * DAY, [*old, volume("v", at * 10**12)])
            # The finished ones are still listed, so they are known in memory.
            await asyncio.gather(
                retain(lab.ledger, T0 + at * DAY, run_days=62, hour_days=62),
                lab.take(T0 + at * DAY + HOUR, [*old, volume("v", at * 10**12)]),
            )
            assert await is_clean(lab)
        client: Any = lab.ledger.client
        assert await client.hlen(keys.of_org("acme").ended) < 5
        report = await usage(lab.ledger, replace(ALL, to_us=T0 + 301 * DAY, group_by=("kind",)))
        job_row = next(row for row in report.rows if row.names["kind"] == "job")
        assert job_row.micro == (300 * 24 + 1 + 30) * 1_000_000


async def test_old_journal_entries_are_folded_into_a_sum(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        accounts = lab.ledger.accounts
        for number in range(5):
            await accounts.grant("acme", 10**6 * (number + 1), key=f"k{number}", who="test")
        await accounts.upsert("acme", who="test", contact="ann")
        await two_old_jobs(lab)
        await lab.take(now_us() + 400 * DAY, [])
        assert (await retain(lab.ledger, now_us() + 10 * DAY, journal_days=62)).entries == 0
        done = await asyncio.gather(*(retain(lab.ledger, now_us() + 100 * DAY, journal_days=62) for _ in range(3)))
        assert sum(one.entries for one in done) == 7
        assert (await accounts.journal("acme"))[0] == []
        assert await is_clean(lab)
        await accounts.grant("acme", 10**6, key="k0", who="test")
        await accounts.grant("acme", 10**6, key="new", who="test")
        assert len((await accounts.journal("acme"))[0]) == 1
        assert len(await accounts.grants("acme")) == 7
        assert await is_clean(lab)


async def test_nothing_newer_than_the_last_snapshot_is_old(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 10 * HOUR, [job("a", T0, T0 + HOUR)])
        done = await retain(lab.ledger, LATER)
        assert (done.runs, done.hours) == (0, 0)


async def test_a_crash_between_two_steps_does_no_harm(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with usage_lab(valkey_url) as lab:
        await two_old_jobs(lab)
        before = sums(await usage(lab.ledger, ALL))

        async def crash(*_: object) -> None:
            raise RuntimeError("crash")

        for name in ("_fold", "_drop_claims"):
            with monkeypatch.context() as patch:
                patch.setattr(retention._Forgetting, name, crash)
                with pytest.raises(RuntimeError, match="crash"):
                    await retain(lab.ledger, LATER)
            assert await is_clean(lab)
            assert before == sums(await usage(lab.ledger, ALL))
        await lab.take(LATER + HOUR, [job("a", T0 + HOUR, T0 + 3 * HOUR)])
        await lab.take(LATER + 2 * DAY, [])
        await retain(lab.ledger, LATER + 2 * DAY)
        assert before == sums(await usage(lab.ledger, ALL))
        assert await is_clean(lab)


@pytest.mark.parametrize("days", [0, 61, -1])
async def test_too_short_a_time_is_refused(valkey_url: str, days: int) -> None:
    async with usage_lab(valkey_url) as lab:
        with pytest.raises(InvalidRequest, match="62"):
            await retain(lab.ledger, LATER, run_days=days)
