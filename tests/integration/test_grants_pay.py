"""Which grant pays: those in force when the work ran, the soonest to expire first, however it is polled."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.verify import verify
from tests.histories import HOUR, MINUTE, T0
from tests.integration.test_charges_equal_the_model import Bench, bench

pytestmark = pytest.mark.redis

# 60 credits an hour: a credit a minute.
PLAN = RatePlan("default", ((0, RateTable(presets={"p": 60_000_000_000})),))
CREDIT = 1_000_000


async def poll(bench_: Bench, clock: list[int], at: int, ended: int | None = None) -> None:
    """A job that runs from T0 on, seen at an instant."""
    clock[0] = at
    job = Observation("job", "job", "acme", "", "", "p", started_us=T0, ended_us=ended)
    await bench_.take(Snapshot("test", "default", at, [job]))


async def give(bench_: Bench, key: str, amount: int, starts: int, expires: int | None) -> None:
    await bench_.ledger.accounts.grant(
        "acme", amount * CREDIT, key=key, who="t", effective_us=starts, expires_us=expires
    )


async def left(bench_: Bench) -> tuple[int, int, int]:
    """(expired, spent, left) in credits."""
    balance = await bench_.ledger.accounts.balance("acme")
    return balance.expired_micro // CREDIT, balance.spent_micro // CREDIT, balance.left_micro // CREDIT


async def test_the_soonest_to_expire_is_spent_first(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        await give(bench_, "a", 100, T0, None)
        await give(bench_, "b", 100, T0, T0 + 3 * HOUR)
        await give(bench_, "c", 20, T0, T0 + 2 * HOUR)
        await poll(bench_, clock, T0 + 50 * MINUTE, T0 + 50 * MINUTE)
        clock[0] = T0 + 2 * HOUR
        assert await left(bench_) == (0, 50, 170)
        clock[0] = T0 + 3 * HOUR
        assert await left(bench_) == (70, 50, 100)


@pytest.mark.parametrize("minutes", [[130], [50, 130], [60, 65, 70, 75, 130]])
async def test_what_is_used_after_a_grant_expired_is_not_paid_by_it(valkey_url: str, minutes: list[int]) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        await poll(bench_, clock, T0)
        await give(bench_, "a", 1000, T0, None)
        await give(bench_, "b", 100, T0, T0 + 70 * MINUTE)
        for minute in minutes:
            await poll(bench_, clock, T0 + minute * MINUTE)
        # 70 minutes are paid by b, 60 by a; 30 of b are gone.
        assert await left(bench_) == (30, 130, 940)


async def test_an_overdraft_is_paid_from_the_soonest_to_expire(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        await poll(bench_, clock, T0 + 30 * MINUTE, T0 + 30 * MINUTE)
        await give(bench_, "a", 100, T0 + HOUR, None)
        await give(bench_, "b", 100, T0 + HOUR, T0 + 2 * HOUR)
        await give(bench_, "c", 1, T0 + 50 * MINUTE, None)
        clock[0] = T0 + HOUR
        await give(bench_, "d", 1, T0 + HOUR, None)
        clock[0] = T0 + 3 * HOUR
        assert await left(bench_) == (70, 30, 102)


@dataclass(frozen=True)
class Given:
    amount: int
    starts: int
    expires: int | None


END = 150
minutes_ = st.integers(0, 180)
givens = st.builds(
    lambda amount, a, b: Given(amount, min(a, b), max(a, b) if a != b else None),
    st.integers(1, 120),
    minutes_,
    minutes_,
)


@given(grants=st.lists(givens, max_size=5), polls=st.lists(st.integers(1, END), max_size=6, unique=True))
async def test_polling_never_changes_what_expires(grants: list[Given], polls: list[int], valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        for n, g in enumerate(grants):
            expires = None if g.expires is None else T0 + g.expires * MINUTE
            await give(bench_, f"{n:02}", g.amount, T0 + g.starts * MINUTE, expires)
        for minute in sorted(polls):
            await poll(bench_, clock, T0 + minute * MINUTE)
        await poll(bench_, clock, T0 + 180 * MINUTE, T0 + END * MINUTE)
        clock[0] = T0 + 4 * HOUR
        found = await left(bench_)
        report = await verify(bench_.ledger)
        assert report["ok"], report["differences"]
    rest = [g.amount for g in grants]
    order = sorted(range(len(grants)), key=lambda i: (grants[i].expires or 10**9, grants[i].starts, i))
    debt = 0
    for minute in range(240):
        debt += minute < END
        for i in order:
            g = grants[i]
            if g.starts <= minute and (g.expires is None or minute < g.expires):
                paid = min(rest[i], debt)
                rest[i] -= paid
                debt -= paid
    expired = sum(rest[i] for i, g in enumerate(grants) if g.expires is not None)
    assert found == (expired, END, sum(rest) - expired - debt)
