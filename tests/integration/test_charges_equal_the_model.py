"""Invariants 2 to 6 of the ledger: whatever is observed when and how often, charges are exact."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.books import Books
from exporter.rounds import Rounds
from ledger import keys
from ledger.connect import connect
from ledger.lua import text
from ledger.model import Snapshot
from ledger.org_state import decode_amounts, decode_rows
from ledger.runs import Run
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from tests.histories import HOUR, SPAN, T0, Life, Prices, app_lists, instants, lives, price_lists, snapshot

pytestmark = pytest.mark.redis


class Bench:
    """A ledger under test, with a clock that only moves on."""

    def __init__(self, ledger: Ledger, url: str) -> None:
        self.ledger = ledger
        self.url = url
        self.books = Books(ledger)
        self.rounds = Rounds(self.books, _NoSource(), hold_us=15 * 60 * 1_000_000)  # type: ignore[arg-type]

    def restart(self) -> None:
        """Forget everything that is only in memory."""
        self.books = Books(self.ledger)
        self.rounds = Rounds(self.books, _NoSource(), hold_us=15 * 60 * 1_000_000)  # type: ignore[arg-type]

    async def take(self, shot: Snapshot) -> None:
        since = await self.ledger.charging.source_mark("test")
        report = await self.rounds.take(shot, since)
        assert not report.failed

    async def totals(self) -> dict[str, int]:
        """Micro-credits per run (id and start), over all orgs and legs, from the run records."""
        found: dict[str, int] = defaultdict(int)
        for org in await self.ledger.accounts.orgs():
            names = keys.of_org(org)
            client = self.ledger.client
            fields = {text(k): text(v) for k, v in (await client.hgetall(names.org)).items()}
            rows = decode_rows(await client.hgetall(names.rows))
            for data in [*await client.hvals(names.runs), *await client.hvals(names.ended)]:
                run = Run.decode(org, data)
                row = rows[run.row]
                run.line = (await self.books.lines(run.cluster))(row.kind, row.resource, row.app, run.bills_app)
                mark = fields.get(f"mark:{run.source}")
                cost, _ = run.cumulative(run.charged_until(int(mark) if mark else None))
                found[f"{run.id}@{run.started_us}"] += cost // 3_600_000_000_000_000_000_000
        return found

    async def buckets(self) -> dict[tuple[str, int, str, str, str], int]:
        """Micro-credits by org, hour, project, user and preset."""
        found: dict[tuple[str, int, str, str, str], int] = {}
        for org in await self.ledger.accounts.orgs():
            names = keys.of_org(org)
            rows = decode_rows(await self.ledger.client.hgetall(names.rows))
            for hour in await self.ledger.client.zrange(names.hours, 0, -1):
                us = int(hour) * 1_000_000
                for number, amounts in decode_amounts(await self.ledger.client.hgetall(names.bucket(us))).items():
                    row = rows[number]
                    key = org, us, row.project, row.user, f"{row.resource}/{row.app}"
                    if amounts.micro:
                        found[key] = found.get(key, 0) + amounts.micro
                    assert not amounts.refunded_micro
        return found


class _NoSource:
    name = "test"
    cluster = "default"


@asynccontextmanager
async def bench(url: str, clock: list[int], epoch: int = T0) -> AsyncIterator[Bench]:
    async with connect(url, None) as client:
        await client.flushall()
    async with open_ledger(url, epoch_us=epoch, clock=lambda: clock[0]) as ledger:
        yield Bench(ledger, url)


def _expect(lives_: list[Life], prices: Prices, last_seen: dict[int, int]) -> dict[str, int]:
    expected: dict[str, int] = {}
    for number, until in last_seen.items():
        life = lives_[number]
        expected[f"{life.id}@{life.start}"] = floor(prices.cost(life, until, 0))
    return {run: micro for run, micro in expected.items() if micro}


Buckets = dict[tuple[str, int, str, str, str], int]


def _expect_buckets(lives_: list[Life], prices: Prices, last_seen: dict[int, int]) -> Buckets:
    expected: Buckets = defaultdict(int)
    for number, until in last_seen.items():
        life = lives_[number]
        hour = T0 - 3 * HOUR
        before = 0
        cumulated = Fraction(0)
        while hour < until:
            cumulated += prices.cost(life, min(hour + HOUR, until), hour)
            micro = floor(cumulated) - before
            before = floor(cumulated)
            if micro:
                expected[life.org, hour, life.project, life.user, f"{life.preset}/{life.app}"] += micro
            hour += HOUR
    return dict(expected)


@given(data=st.data())
async def test_polling_restarts_duplicates_order_and_lateness_never_change_a_charge(
    data: st.DataObject, valkey_url: str
) -> None:
    lives_ = data.draw(lives(), "lives")
    retention = data.draw(st.sampled_from([0, HOUR // 2, 10 * HOUR]), "retention")
    polls = sorted(data.draw(st.lists(instants(), min_size=1, max_size=8), "polls"))
    prices = Prices()
    prices.put(0, data.draw(price_lists), data.draw(app_lists))
    clock = [T0]
    last_seen: dict[int, int] = {}
    async with bench(valkey_url, clock) as bench_:
        await bench_.ledger.rates.publish(prices.plan("default"))
        pending = list(polls)
        while pending:
            shuffled = data.draw(st.booleans()) and len(pending) > 1
            t = pending.pop(data.draw(st.integers(0, len(pending) - 1)) if shuffled else 0)
            hidden = frozenset(data.draw(st.sets(st.integers(0, len(lives_) - 1), max_size=2)))
            shot = snapshot(lives_, t, retention, hidden, data.draw(st.booleans()))
            clock[0] = max(clock[0], t)
            for _ in range(data.draw(st.sampled_from([1, 1, 1, 2]))):
                await bench_.take(shot)
            for number, life in enumerate(lives_):
                if any(o.id == life.id and o.started_us == life.start for o in shot.workloads):
                    last_seen[number] = max(t, last_seen.get(number, 0))
            if data.draw(st.booleans()):
                bench_.restart()
            if data.draw(st.sampled_from([False, False, True])):
                prices.put(clock[0], data.draw(price_lists), data.draw(app_lists))
                await bench_.ledger.rates.publish(prices.plan("default"))
        spent = {k: v for k, v in (await bench_.totals()).items() if v}
        assert spent == _expect(lives_, prices, last_seen)
        assert await bench_.buckets() == _expect_buckets(lives_, prices, last_seen)
        report = await verify(bench_.ledger)
        assert report["ok"], report["differences"]


@given(data=st.data())
async def test_two_exporters_at_once_charge_like_one(data: st.DataObject, valkey_url: str) -> None:
    lives_ = data.draw(lives(), "lives")
    polls = sorted(data.draw(st.lists(instants(), min_size=1, max_size=6), "polls"))
    prices = Prices()
    prices.put(0, data.draw(price_lists), data.draw(app_lists))
    clock = [T0]
    async with bench(valkey_url, clock) as one:
        other = Bench(one.ledger, valkey_url)
        await one.ledger.rates.publish(prices.plan("default"))
        for t in polls:
            clock[0] = t
            shot = snapshot(lives_, t, SPAN)
            await asyncio.gather(one.take(shot), other.take(shot))
        seen = {n: polls[-1] for n, life in enumerate(lives_) if life.start <= polls[-1]}
        assert {k: v for k, v in (await one.totals()).items() if v} == _expect(lives_, prices, seen)
        assert await one.buckets() == _expect_buckets(lives_, prices, seen)
        report = await verify(one.ledger)
        assert report["ok"], report["differences"]
