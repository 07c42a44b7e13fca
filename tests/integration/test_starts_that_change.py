"""A start that is told otherwise each time (a list made by a script, say): time is charged once all the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.verify import verify
from tests.histories import HOUR, MINUTE, SECOND, T0
from tests.integration.test_charges_equal_the_model import Bench, bench

pytestmark = pytest.mark.redis

# A credit a minute.
PLAN = RatePlan("default", ((0, RateTable({"p": 60_000_000_000})),))


def job(start: int, end: int | None = None) -> Observation:
    return Observation("job", "job", "acme", "", "", "p", "", start, end)


async def charged(bench_: Bench) -> tuple[int, int]:
    """(micro-credits, microseconds) in all; nothing was given back, and the ledger agrees with itself."""
    state = await bench_.ledger.charging.load("acme")
    assert not any(amounts.refunded_micro or amounts.refunded_us for amounts in state.totals.values())
    report = await verify(bench_.ledger)
    assert report["ok"], report["differences"]
    return sum(a.micro for a in state.totals.values()), sum(a.us for a in state.totals.values())


@given(
    polls=st.lists(
        st.tuples(st.integers(1, 40), st.integers(-3 * SECOND, 3 * SECOND), st.booleans()), min_size=1, max_size=12
    ),
    ends=st.booleans(),
)
async def test_time_is_charged_once_from_the_start_first_told(
    polls: list[tuple[int, int, bool]], ends: bool, valkey_url: str
) -> None:
    clock = [T0 + HOUR]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        for minutes, shift, restarts in polls:
            clock[0] += minutes * MINUTE
            await bench_.take(Snapshot("test", "default", clock[0], [job(T0 + HOUR + shift)]))
            if restarts:
                bench_.restart()
        until = clock[0]
        if ends:
            until += 5 * MINUTE
            for minutes, shift in ((10, polls[-1][1]), (20, polls[-1][1])):  # ended, and listed again so
                clock[0] += minutes * MINUTE
                await bench_.take(Snapshot("test", "default", clock[0], [job(T0 + HOUR + shift, until)]))
        micro, us = await charged(bench_)
        assert us == until - (T0 + HOUR + polls[0][1])
        assert us // 60 - 2 * len(polls) <= micro <= us // 60  # each start is a run with a floor of its own


async def test_a_start_moved_earlier_is_not_charged_for_what_was_charged(valkey_url: str) -> None:
    clock = [T0 + 10 * MINUTE]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        await bench_.take(Snapshot("test", "default", clock[0], [job(T0 + MINUTE)]))
        for minutes in (20, 30):
            clock[0] = T0 + minutes * MINUTE
            await bench_.take(Snapshot("test", "default", clock[0], [job(T0)]))
            bench_.restart()
        assert await charged(bench_) == (29_000_000, 29 * MINUTE)


async def test_the_run_before_a_requeue_is_charged_also_where_it_is_listed_late(valkey_url: str) -> None:
    clock = [T0 + 40 * MINUTE]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        again, before = job(T0 + 30 * MINUTE), job(T0, T0 + 20 * MINUTE)
        await bench_.take(Snapshot("test", "default", clock[0], [again]))
        # Alone, beside the other, and in a snapshot that comes late.
        for at, listed in ((35, [before]), (50, [before, again]), (60, [again, before])):
            clock[0] = max(clock[0], T0 + at * MINUTE)
            await bench_.take(Snapshot("test", "default", T0 + at * MINUTE, listed))
        assert await charged(bench_) == (50_000_000, 50 * MINUTE)
