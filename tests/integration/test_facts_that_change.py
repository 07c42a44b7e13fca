"""Corrected facts, volumes that grow, workloads that change hands: still exact, and nothing charged twice."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ledger import keys
from ledger.lua import text
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.org_state import decode_amounts, decode_rows
from ledger.runs import merge_intervals
from ledger.verify import verify
from tests.histories import HOUR, MINUTE, SPAN, T0, Life, instants
from tests.integration.test_charges_equal_the_model import Bench, bench

pytestmark = pytest.mark.redis

NANO = 1_234_567_891
PLAN = RatePlan("default", ((0, RateTable({"p": NANO, "q": 3 * NANO}, {}, {"disk": 98_765})),))


async def _rows(bench_: Bench) -> dict[tuple[str, str, str], list[int]]:
    """[spent, refunded] micro-credits by org, project and resource."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for org in await bench_.ledger.accounts.orgs():
        names = keys.of_org(org)
        rows = decode_rows(await bench_.ledger.client.hgetall(names.rows))
        for number, amounts in decode_amounts(await bench_.ledger.client.hgetall(names.spent)).items():
            row = rows[number]
            entry = found.setdefault((org, row.project, row.resource), [0, 0])
            entry[0] += amounts.micro
            entry[1] += amounts.refunded_micro
    return found


async def _clean(bench_: Bench) -> None:
    report = await verify(bench_.ledger)
    assert report["ok"], report["differences"]


@given(data=st.data())
async def test_a_correction_gives_back_what_was_charged_too_much_and_is_journaled(
    data: st.DataObject, valkey_url: str
) -> None:
    polls = sorted(data.draw(st.lists(instants(HOUR), min_size=1, max_size=6, unique=True)))
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        for t in polls:
            clock[0] = t
            edges = sorted(data.draw(st.lists(instants().filter(lambda i, t=t: i <= t), max_size=4, unique=True)))
            pauses = merge_intervals(list(zip(edges[0::2], edges[1::2], strict=False)))
            ended = data.draw(st.one_of(st.none(), instants().filter(lambda i, t=t: T0 < i <= t)))
            fact = Observation("job-1", "job", "acme", "x", "ann", "p", "", T0, ended, pauses)
            await bench_.take(Snapshot("test", "default", t, [fact]))
            if data.draw(st.booleans()):
                bench_.restart()
        life = Life("job-1", "acme", "x", "ann", "p", "", T0, ended, tuple((a, b or SPAN) for a, b in pauses))
        net = floor(sum(Fraction(NANO * (b - a), 1000 * HOUR) for a, b in life.billable(polls[-1])))
        spent, refunded = (await _rows(bench_)).get(("acme", "x", "p"), [0, 0])
        assert net == spent - refunded
        fields = {text(k): text(v) for k, v in (await bench_.ledger.client.hgetall(keys.of_org("acme").org)).items()}
        assert int(fields.get("granted:refund", 0)) == refunded
        entries, _ = await bench_.ledger.accounts.journal("acme")
        assert all(e["type"] == "correction" and e["workload"] == "job-1" for e in entries)
        assert bool(entries) == bool(refunded)
        balance = await bench_.ledger.accounts.balance("acme")
        assert balance.granted_micro - balance.spent_micro == -net
        await _clean(bench_)


@given(data=st.data())
async def test_storage_is_charged_for_the_bytes_last_reported_from_snapshot_to_snapshot(
    data: st.DataObject, valkey_url: str
) -> None:
    polls = sorted(data.draw(st.lists(instants(), min_size=2, max_size=50, unique=True)))
    restarts = data.draw(st.booleans())
    clock = [T0]
    total, last, last_at = Fraction(0), None, 0
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        for t in polls:
            clock[0] = t
            size = data.draw(st.one_of(st.none(), st.sampled_from([0, 5 * 10**12, 10**13, 7 * 10**12 + 1])))
            complete = data.draw(st.sampled_from([True, True, False]))
            listed = [] if size is None else [Observation("vol-1", "storage", "acme", "x", "", "disk", bytes=size)]
            await bench_.take(Snapshot("test", "default", t, listed, complete))
            if size is not None:
                if last is not None:
                    total += Fraction(98_765 * last * (t - last_at), 10**9 * 1000 * HOUR)
                last, last_at = size, t
            elif complete:
                last = None
            if restarts and data.draw(st.booleans()):
                bench_.restart()
        spent = (await _rows(bench_)).get(("acme", "x", "disk"), [0, 0])
        assert [floor(total), 0] == spent
        await _clean(bench_)


@given(data=st.data())
async def test_a_workload_that_changes_hands_is_charged_to_whom_it_was_last_reported_for(
    data: st.DataObject, valkey_url: str
) -> None:
    polls = sorted(data.draw(st.lists(instants(HOUR), min_size=2, max_size=7, unique=True)))
    end = data.draw(st.one_of(st.none(), instants(HOUR)))
    hands = st.tuples(st.sampled_from(["acme", "beta"]), st.sampled_from("xy"), st.sampled_from("pq"))
    clock = [T0]
    expected: dict[tuple[str, str, str], Fraction] = defaultdict(Fraction)
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        since, owner, legs = T0, None, 0
        for t in polls:
            clock[0] = t
            now = data.draw(hands)
            over = end is not None and end <= t
            fact = Observation("job-1", "job", now[0], now[1], "ann", now[2], "", T0, end if over else None)
            await bench_.take(Snapshot("test", "default", t, [fact]))
            if owner is None:
                owner = now
            until = min(t, end) if end is not None else t
            if since < until:
                rate = NANO * (3 if owner[2] == "q" else 1)
                expected[owner] += Fraction(rate * (until - since), 1000 * HOUR)
                since = until
            if not over and owner != now:
                owner, legs = now, legs + 1
            if data.draw(st.booleans()):
                bench_.restart()
        got = await _rows(bench_)
        assert floor(sum(expected.values())) == sum(spent for spent, _ in got.values())
        for owner, exact in expected.items():
            assert abs(got[owner][0] - exact) <= legs + 1
        assert all(refunded == 0 for _, refunded in got.values())
        await _clean(bench_)


async def test_a_run_that_overlaps_the_one_before_is_not_charged_for_the_same_time_twice(valkey_url: str) -> None:
    clock = [T0 + HOUR]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        first = Observation("job-1", "job", "acme", "x", "ann", "p", "", T0)
        await bench_.take(Snapshot("test", "default", T0 + HOUR, [first]))
        clock[0] = T0 + 2 * HOUR
        corrected = replace(first, started_us=T0 + 30 * MINUTE)
        await bench_.take(Snapshot("test", "default", T0 + 2 * HOUR, [corrected]))
        assert (await _rows(bench_))["acme", "x", "p"] == [2 * (NANO // 1000), 0]
        await _clean(bench_)


@given(data=st.data())
async def test_suspended_time_of_which_only_the_sum_is_known_is_not_charged(
    data: st.DataObject, valkey_url: str
) -> None:
    """What Slurm tells: when the last suspension began or ended, and how long all before it took."""
    edges = sorted(data.draw(st.lists(instants(), min_size=2, max_size=8, unique=True)))
    pauses = tuple(zip(edges[0::2], edges[1::2], strict=False))
    start = T0 - HOUR
    life = Life("job-1", "acme", "x", "ann", "p", "", start, None, pauses)
    polls = sorted(data.draw(st.lists(instants(), min_size=1, max_size=6, unique=True)))
    clock = [T0]
    async with bench(valkey_url, clock, epoch=start) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        for t in polls:
            clock[0] = t
            begun = [p for p in pauses if p[0] <= t]
            fact = Observation("job-1", "job", "acme", "x", "ann", "p", "", start)
            if begun:
                a, b = begun[-1]
                open_now = b > t
                instant = a if open_now else b
                before = sum(min(y, instant) - x for x, y in begun if x < instant)
                fact = replace(fact, suspended=((a, None),) if open_now else (), suspended_before=(instant, before))
            await bench_.take(Snapshot("test", "default", t, [fact]))
            if data.draw(st.booleans()):
                bench_.restart()
        billed = sum(b - a for a, b in life.billable(polls[-1]))
        assert [floor(Fraction(NANO * billed, 1000 * HOUR)), 0] == (await _rows(bench_)).get(("acme", "x", "p"), [0, 0])
        await _clean(bench_)


async def test_what_is_over_and_listed_in_another_org_is_looked_up_once(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [T0 + 10 * HOUR]
    job = Observation("job", "job", "acme", "x", "", "p", "", T0, T0 + HOUR)

    def listed(org: str, at: int, ended: int = T0 + HOUR) -> Snapshot:
        return Snapshot("test", "default", at, [replace(job, id=str(n), org=org, ended_us=ended) for n in range(50)])

    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        await bench_.take(listed("acme", T0 + 2 * HOUR))
        charging = bench_.ledger.charging
        asked: list[str] = []
        find_ended = charging.find_ended

        async def note(org: str, *arguments: Any) -> Any:
            asked.append(org)
            return await find_ended(org, *arguments)

        monkeypatch.setattr(charging, "find_ended", note)
        for hour in (3, 4, 5):
            await bench_.take(listed("beta", T0 + hour * HOUR))
        assert asked == ["beta", "acme"]
        bench_.books.doubt(["acme"])
        await bench_.take(listed("beta", T0 + 6 * HOUR))
        assert asked == ["beta", "acme"] * 2
        await bench_.take(listed("beta", T0 + 7 * HOUR, T0 + HOUR // 2))  # the scheduler corrects their ends
        assert (await _rows(bench_))["acme", "x", "p"] == [50 * (NANO // 1000), 50 * (NANO // 1000 - NANO // 2000)]
        assert not any(org == "beta" for org, *_ in await _rows(bench_))
        await _clean(bench_)


async def test_volumes_that_are_back_cost_one_question_up_to_when_their_source_is_charged(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        volumes = [Observation(f"v{n}", "storage", "acme", "", "", "disk", bytes=10**12) for n in range(20)]
        asked = 0
        charging = bench_.ledger.charging
        source_mark = charging.source_mark

        async def counted(source: str) -> int | None:
            nonlocal asked
            asked += 1
            return await source_mark(source)

        monkeypatch.setattr(charging, "source_mark", counted)
        for minute, listed in ((1, volumes), (2, []), (3, volumes), (4, volumes)):
            clock[0] = T0 + minute * MINUTE
            await bench_.rounds.take(Snapshot("test", "default", clock[0], listed), clock[0] - MINUTE)
        assert asked == 1
        a_minute_of_each = 98_765 * 1000 // 60_000
        assert (await bench_.ledger.accounts.balance("acme")).spent_micro == 20 * a_minute_of_each, "not while away"
