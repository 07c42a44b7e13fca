"""Usage for any period: exact, whatever it is cut and grouped by."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import keys, usage_reader
from ledger.clock import INSTANT_MAX_US, format_time, parse_time, to_us
from ledger.connect import again
from ledger.errors import InvalidRequest, UnknownOrg
from ledger.model import Observation
from ledger.money import parse_credits
from ledger.rollups import roll_up
from ledger.usage import usage
from ledger.usage_report import GROUPS, UsageQuery, UsageReport
from ledger.verify import verify
from tests.histories import HOUR, MINUTE, SPAN, T0, Life, Prices, app_lists, instants, lives, price_lists, snapshot
from tests.usage_lab import UsageLab, job, usage_lab, volume

pytestmark = pytest.mark.redis
ALL = UsageQuery(from_us=T0, to_us=T0 + 2 * SPAN)


async def history(lab: UsageLab, data: st.DataObject, *, corrections: bool = False) -> tuple[list[Life], Prices, int]:
    """Charges of random lives, polled at random; and up to when everything is charged."""
    lives_ = data.draw(lives(), "lives")
    prices = Prices()
    prices.put(0, data.draw(price_lists), data.draw(app_lists))
    await lab.ledger.rates.publish(prices.plan("default"))
    for t in sorted(data.draw(st.lists(instants(), min_size=1, max_size=4), "polls")):
        shot = snapshot(lives_, t, 3 * SPAN)
        if corrections and data.draw(st.booleans()):
            # Seen as still running, though it ended: the next snapshot takes that back.
            shot = replace(shot, workloads=[replace_end(w) for w in shot.workloads])
        await lab.take(t, shot.workloads)
        prices.put(lab.clock[0], data.draw(price_lists), data.draw(app_lists))
        await lab.ledger.rates.publish(prices.plan("default"))
    end = T0 + SPAN
    await lab.take(end, snapshot(lives_, end, 3 * SPAN).workloads)
    return lives_, prices, end


def replace_end(listed: Observation) -> Observation:
    """As if it still ran and was never suspended."""
    return msgspec.structs.replace(listed, ended_us=None, suspended=())


def amounts(report: UsageReport) -> list[int]:
    """Sums over all rows: credits, time, and both given back."""
    return [sum(row.sums[column] for row in report.rows) for column in range(4)]


@given(data=st.data())
async def test_any_split_of_a_period_adds_up_to_the_whole(data: st.DataObject, valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await history(lab, data, corrections=True)
        groups = tuple(data.draw(st.lists(st.sampled_from(GROUPS), unique=True), "groups"))
        whole = await usage(lab.ledger, replace(ALL, group_by=groups))
        cuts = sorted({ALL.from_us, ALL.to_us, *data.draw(st.lists(instants(), max_size=4), "cuts")})
        parts = [await usage(lab.ledger, replace(ALL, from_us=a, to_us=b, group_by=groups)) for a, b in pairwise(cuts)]
        assert all(part.is_exact for part in parts)
        assert amounts(whole) == [sum(column) for column in zip(*map(amounts, parts), strict=True)]
        by_names: dict[object, list[int]] = {}
        for part in parts:
            for row in part.rows:
                sums = by_names.setdefault(row.key, [0, 0, 0, 0])
                by_names[row.key] = [x + y for x, y in zip(sums, row.sums, strict=True)]
        assert {row.key: row.sums for row in whole.rows} == by_names


@given(data=st.data())
async def test_every_grouping_and_every_step_gives_the_same_total(data: st.DataObject, valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await history(lab, data, corrections=True)
        a, b = sorted(data.draw(st.lists(instants(), min_size=2, max_size=2, unique=True), "period"))
        plain = amounts(await usage(lab.ledger, replace(ALL, from_us=a, to_us=b, group_by=())))
        groups = tuple(data.draw(st.lists(st.sampled_from(GROUPS), unique=True), "groups"))
        step = data.draw(st.sampled_from([None, "hour", "day", "week", "month"]))
        zone = data.draw(
            st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "America/St_Johns"])
        )
        query = replace(ALL, from_us=a, to_us=b, group_by=groups, step=step, timezone=zone)
        assert plain == amounts(await usage(lab.ledger, query))
        if data.draw(st.booleans(), "rolled up"):
            await roll_up(lab.ledger, T0 + 400 * 24 * HOUR)
            assert plain == amounts(await usage(lab.ledger, query))
        if not (a - T0) % HOUR and a == T0:
            spent = sum(balance.spent_micro for balance in await lab.ledger.accounts.balances())
            assert spent == amounts(await usage(lab.ledger, replace(ALL, group_by=groups)))[0]


@given(data=st.data())
async def test_a_period_costs_what_an_independent_account_says(data: st.DataObject, valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        lives_, prices, end = await history(lab, data)
        a, b = sorted(data.draw(st.lists(instants(), min_size=2, max_size=2, unique=True), "period"))
        report = await usage(lab.ledger, replace(ALL, from_us=a, to_us=b, group_by=("workload",)))
        expected: dict[tuple[str, int], int] = {}
        for life in lives_:
            if life.start < end and (life.end is None or life.end > T0):
                before, after = (int(prices.cost(life, min(t, end), 0)) for t in (a, b))
                if after - before:
                    expected[life.id, life.start] = after - before
        found = {(row.legs[0][0].id, row.legs[0][0].started_us): row.micro for row in report.rows if row.micro}
        assert expected == found


async def test_half_an_hour_inside_an_hour_is_told_exactly(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 3 * HOUR, [job("j", T0 + 15 * MINUTE, T0 + 2 * HOUR)])
        query = replace(ALL, from_us=T0 + 30 * MINUTE, to_us=T0 + 60 * MINUTE, group_by=("project", "user"))
        shape = (await usage(lab.ledger, query)).shape()
        assert shape["rows"] == [{"project": "vision", "user": "ann", "credits": "20.25", "hours": "0.5"}]
        assert (shape["from"], shape["exact_from"], shape["exact"]) == (
            "2026-11-01T00:30:00Z",
            "2026-11-01T00:30:00Z",
            True,
        )
        assert shape["total"] == "20.25"


async def test_the_shape_is_that_of_the_contract(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 3 * HOUR, [job("j", T0, T0 + 2 * HOUR), job("k", T0, org="beta", preset="cpu-small")])
        shape = (await usage(lab.ledger, replace(ALL, to_us=T0 + 3 * HOUR))).shape()
        assert shape == {
            "from": "2026-11-01T00:00:00Z",
            "to": "2026-11-01T03:00:00Z",
            "exact_from": "2026-11-01T00:00:00Z",
            "exact_to": "2026-11-01T03:00:00Z",
            "exact": True,
            "group_by": ["org"],
            "rows": [
                {"org": "acme", "credits": "81", "hours": "2"},
                {"org": "beta", "credits": "3", "hours": "3"},
            ],
            "total": "84",
            "total_hours": "5",
            "next": None,
        }


async def test_a_workload_comes_with_its_life_its_legs_and_the_rates_it_was_billed_at(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        pause = ((T0 + HOUR, T0 + HOUR + 30 * MINUTE),)
        await lab.take(T0 + 3 * HOUR, [job("j", T0, suspended=pause)])
        await lab.take(T0 + 4 * HOUR, [job("j", T0, T0 + 4 * HOUR, suspended=pause)])
        query = replace(ALL, from_us=T0 + HOUR, to_us=T0 + 3 * HOUR, group_by=("workload",))
        (row,) = (await usage(lab.ledger, query)).shape()["rows"]
        assert row == {
            "workload": "j",
            "id": "j",
            "kind": "job",
            "started_at": "2026-11-01T00:00:00Z",
            "ended_at": "2026-11-01T04:00:00Z",
            "legs": [
                {
                    "cluster": "default",
                    "project": "vision",
                    "user": "ann",
                    "resource": "gpu-large",
                    "app": None,
                    "credits": "60.75",
                    "hours": "1.5",
                    "intervals": [{"from": "2026-11-01T01:30:00Z", "to": "2026-11-01T03:00:00Z", "rate": "40.5"}],
                }
            ],
            "credits": "60.75",
            "hours": "1.5",
        }


async def test_a_requeued_job_is_two_workloads_of_one_id(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 5 * HOUR, [job("j", T0, T0 + HOUR), job("j", T0 + 2 * HOUR, T0 + 4 * HOUR)])
        rows = (await usage(lab.ledger, replace(ALL, group_by=("workload",)))).shape()["rows"]
        assert [(row["id"], row["started_at"], row["hours"]) for row in rows] == [
            ("j", "2026-11-01T00:00:00Z", "1"),
            ("j", "2026-11-01T02:00:00Z", "2"),
        ]


async def test_what_was_given_back_stands_beside_what_was_charged(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 10 * HOUR, [job("j", T0)])
        await lab.take(T0 + 11 * HOUR, [job("j", T0, T0 + 2 * HOUR)])
        (row,) = (await usage(lab.ledger, ALL)).shape()["rows"]
        assert row == {"org": "acme", "credits": "405", "hours": "10", "refunded": "324", "refunded_hours": "8"}
        shape = (await usage(lab.ledger, replace(ALL, group_by=("org", "workload")))).shape()
        assert [(r["id"], r["credits"], r.get("refunded")) for r in shape["rows"]] == [
            (None, "324", "324"),
            ("j", "81", None),
        ]
        assert (shape["total"], shape["total_refunded"]) == ("405", "324")


@pytest.mark.parametrize(
    ("zone", "step", "begins"),
    [
        ("UTC", "day", ["2026-10-24T00:00:00Z", "2026-10-25T00:00:00Z", "2026-10-26T00:00:00Z"]),
        # The clocks go back an hour: that Sunday has 25 hours.
        ("Europe/Berlin", "day", ["2026-10-23T22:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"]),
        ("Asia/Kolkata", "day", ["2026-10-23T18:30:00Z", "2026-10-24T18:30:00Z", "2026-10-25T18:30:00Z"]),
        ("Asia/Kathmandu", "week", ["2026-10-18T18:15:00Z", "2026-10-25T18:15:00Z"]),
        ("America/St_Johns", "month", ["2026-10-01T02:30:00Z"]),
    ],
)  # fmt: skip
async def test_steps_follow_the_clocks_of_their_zone(valkey_url: str, zone: str, step: str, begins: list[str]) -> None:
    start, end = parse_time("2026-10-24T06:00:00Z"), parse_time("2026-10-26T06:00:00Z")
    async with usage_lab(valkey_url, epoch=start) as lab:
        await lab.take(end, [job("j", start, preset="cpu-small")])
        query = UsageQuery(from_us=start, to_us=end, group_by=(), step=step, timezone=zone)
        rows = (await usage(lab.ledger, query)).shape()["rows"]
        assert begins == [row["at"] for row in rows]
        edges = [start, *map(parse_time, begins[1:]), end]
        assert [(b - a) / HOUR for a, b in pairwise(edges)] == [float(row["hours"]) for row in rows]


async def test_hours_of_a_half_hour_zone_begin_at_half_past(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 2 * HOUR, [job("j", T0, preset="cpu-small")])
        query = replace(ALL, group_by=(), step="hour", timezone="Asia/Kolkata", to_us=T0 + 2 * HOUR)
        rows = (await usage(lab.ledger, query)).shape()["rows"]
        assert [(row["at"], row["credits"]) for row in rows] == [
            ("2026-10-31T23:30:00Z", "0.5"),
            ("2026-11-01T00:30:00Z", "1"),
            ("2026-11-01T01:30:00Z", "0.5"),
        ]


async def test_storage_is_shared_out_inside_an_hour_and_exact_on_its_edges(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        for minute, size in ((0, 10**12), (70, 3 * 10**12), (110, 10**12), (180, 0)):
            await lab.take(T0 + minute * MINUTE, [volume("v", size)])
        whole = await usage(lab.ledger, replace(ALL, group_by=("workload",)))
        per_minute = [
            (await usage(lab.ledger, replace(ALL, from_us=T0 + m * MINUTE, to_us=T0 + (m + 10) * MINUTE))).total_micro
            for m in range(0, 180, 10)
        ]
        assert all(micro >= 0 for micro in per_minute)
        assert sum(per_minute) == whole.total_micro == 433_333


async def test_pages_give_every_row_once(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 2 * HOUR, [job(f"j{n}", T0, user=f"u{n % 3}") for n in range(10)])
        query = replace(ALL, group_by=("user", "workload"), step="hour", to_us=T0 + 2 * HOUR)
        seen, cursor = [], None
        while True:
            page = (await usage(lab.ledger, query)).shape(limit=3, cursor=cursor)
            assert len(page["rows"]) <= 3
            seen += page["rows"]
            cursor = page["next"]
            if cursor is None:
                break
        assert seen == (await usage(lab.ledger, query)).shape()["rows"]
        assert len(seen) == 20


@pytest.mark.parametrize("cursor", ["", "x", "!!", "W10", "WzEsMl0", "bnVsbA"])
async def test_a_cursor_that_is_none_is_refused(valkey_url: str, cursor: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 2 * HOUR, [job("j", T0)])
        with pytest.raises(InvalidRequest, match="cursor"):
            (await usage(lab.ledger, ALL)).shape(limit=3, cursor=cursor)


@pytest.mark.parametrize("name", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "＝1"])
async def test_a_name_is_no_formula_in_csv(valkey_url: str, name: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 2 * HOUR, [job(name, T0, project=name, user='a "quoted", name')])
        report = await usage(lab.ledger, replace(ALL, group_by=("project", "user", "workload")))
        header, row, total = csv.reader(io.StringIO("".join(report.csv())))
        assert header == [
            "project",
            "user",
            "workload",
            "id",
            "kind",
            "started_at",
            "ended_at",
            "credits",
            "hours",
            "refunded",
        ]
        assert row[:4] == [f"'{name}", 'a "quoted", name', f"'{name}", f"'{name}"]
        assert total == ["total", "", "", "", "", "", "", "81", "2", ""]


async def test_filters_take_what_they_name(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        work = [
            job("a", T0, preset="cpu-small"),
            job("b", T0, preset="cpu-small", project="nlp", user="bob"),
            job("c", T0, preset="cpu-small", app="vllm", org="beta"),
        ]
        await lab.take(T0 + HOUR, work)
        for wanted, total in (
            ({}, "5.5"), ({"org": "acme"}, "2"), ({"project": "nlp"}, "1"), ({"user": "ann"}, "4.5"),
            ({"kind": "app"}, "3.5"), ({"cluster": "other"}, "0"), ({"org": "acme", "user": "bob"}, "1"),
        ):  # fmt: skip
            for groups in (("org",), ("workload",)):
                report = await usage(lab.ledger, replace(ALL, group_by=groups, **wanted))  # type: ignore[arg-type]
                assert report.shape()["total"] == total, (wanted, groups)
        with pytest.raises(UnknownOrg):
            await usage(lab.ledger, replace(ALL, org="gamma"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"group_by": ("team",)}, "group_by 'team'"),
        ({"group_by": ("org", "org")}, "each name once"),
        ({"step": "year"}, "step 'year'"),
        ({"to_us": T0}, "before `to`"),
        ({"timezone": "Europe/Berlni"}, "did you mean 'Europe/Berlin'"),
        ({"timezone": "../etc/passwd"}, "timezone"),
        ({"step": "day", "from_us": T0, "to_us": INSTANT_MAX_US + 1}, "between 1970 and 2255"),
        ({"step": "day", "from_us": -HOUR, "to_us": 0}, "between 1970 and 2255"),
    ],
)
async def test_a_wrong_question_is_refused_with_what_would_be_right(
    valkey_url: str, change: dict[str, object], says: str
) -> None:
    async with usage_lab(valkey_url) as lab:
        with pytest.raises(InvalidRequest, match=says):
            await usage(lab.ledger, replace(ALL, **change))  # type: ignore[arg-type]


async def test_what_is_charged_after_a_period_while_it_is_asked_for_is_not_of_it(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + HOUR, [job("j1", T0)])

        async def slow(ask: Any) -> Any:
            answer = await again(ask)
            if getattr(ask, "__qualname__", "").startswith("OrgReader.add_buckets"):
                await lab.take(T0 + 2 * HOUR, [job("j1", T0)])
            return answer

        monkeypatch.setattr(usage_reader, "again", slow)
        found = await usage(lab.ledger, replace(ALL, from_us=T0, to_us=T0 + HOUR))
        assert found.shape()["total"] == "40.5"


async def test_a_roll_up_is_used_and_a_late_charge_is_seen_all_the_same(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        late = T0 + 70 * 24 * HOUR
        await lab.take(late, [job("j", T0, preset="cpu-small")])
        assert await roll_up(lab.ledger, late) > 70
        december = UsageQuery(
            from_us=to_us(datetime(2026, 12, 1, tzinfo=UTC)), to_us=to_us(datetime(2027, 1, 1, tzinfo=UTC))
        )
        assert (await usage(lab.ledger, december)).total_micro == 31 * 24 * 1_000_000
        await lab.take(late + HOUR, [job("late", T0 + 40 * 24 * HOUR, T0 + 40 * 24 * HOUR + HOUR, preset="cpu-small")])
        assert (await usage(lab.ledger, december)).total_micro == (31 * 24 + 1) * 1_000_000
        assert await roll_up(lab.ledger, late) == 2
        assert await roll_up(lab.ledger, late) == 0
        assert (await usage(lab.ledger, december)).total_micro == (31 * 24 + 1) * 1_000_000


async def test_verify_finds_a_roll_up_that_is_wrong(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        await lab.take(T0 + 70 * 24 * HOUR, [job("j", T0, preset="cpu-small")])
        await roll_up(lab.ledger, T0 + 70 * 24 * HOUR)
        report = await verify(lab.ledger)
        assert report["ok"]
        assert report["checked"]["roll-ups"] == 72
        client: Any = lab.ledger.client
        names = keys.of_org("acme")
        month, day = f"m{parse_time('2026-12-01T00:00:00Z') // 1_000_000}", f"d{T0 // 1_000_000 + 86400}"
        for name in (month, day):
            await client.hincrby(names.rollup(name), "0", 1)
        found = (await verify(lab.ledger))["differences"]
        assert sorted(one["what"] for one in found) == [f"roll-up {day}", f"roll-up {month}"]


def test_the_lab_begins_at_midnight_in_no_zone_of_the_tests() -> None:
    assert format_time(T0) == "2026-11-01T00:00:00Z"
    assert datetime(2026, 11, 1, tzinfo=ZoneInfo("Asia/Kolkata")).astimezone(UTC).minute == 30
    assert parse_credits("81") == 81_000_000
