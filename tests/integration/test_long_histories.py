"""Hundreds of polls of a busy cluster, with jobs that move between orgs and volumes that grow and shrink."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from redis.asyncio import UnixDomainSocketConnection

from ledger.connect import connect
from ledger.store import open_ledger
from ledger.verify import verify
from tests.crash_history import SOURCE, History
from tests.crash_worker import rounds_of
from tests.histories import T0
from tests.integration.test_charges_equal_the_model import Bench, bench

pytestmark = pytest.mark.redis


@pytest.mark.parametrize("seed", [0, 29, 47, 49])  # in the latter three a job is suspended just before it moves
async def test_a_long_history_is_charged_to_the_micro_credit(seed: int, valkey_url: str) -> None:
    history = History.of(seed, polls=200)
    async with bench(valkey_url, [T0]) as it:
        await it.ledger.rates.publish(history.plan())
        while (poll := history.after(await it.ledger.charging.source_mark(SOURCE))) is not None:
            await it.take(history.snapshot(poll))
            if poll % 50 == 0:
                it.restart()
        runs, buckets = history.expected()
        assert {run: micro for run, micro in (await it.totals()).items() if micro} == runs
        assert await it.buckets() == buckets
        report = await verify(it.ledger)
        assert report["ok"], report["differences"]


def stalling(rng: random.Random) -> type[UnixDomainSocketConnection]:
    """Connections that now and then let others go first, and sometimes many of them."""

    class Stalling(UnixDomainSocketConnection):
        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            await asyncio.sleep(rng.random() * 0.02 if rng.random() < 0.03 else 0)
            await super().send_packed_command(command, check_health)

    return Stalling


async def export(url: str, history: History, rng: random.Random) -> None:
    async with open_ledger(url, epoch_us=T0) as ledger:
        pool: Any = ledger.client.connection_pool
        await pool.disconnect()
        pool.connection_class = stalling(rng)
        pool.reset()
        rounds = rounds_of(ledger)
        while (poll := history.after(since := await ledger.charging.source_mark(SOURCE))) is not None:
            if rng.random() < 0.05:
                rounds = rounds_of(ledger)
            await rounds.take(history.snapshot(poll), since)


@pytest.mark.parametrize("seed", [0, 6, 21])
async def test_exporters_that_overtake_each_other_charge_like_one(seed: int, valkey_url: str) -> None:
    history = History.of(seed, polls=100)
    async with connect(valkey_url, None) as client:
        await client.flushall()
    async with open_ledger(valkey_url, epoch_us=T0) as ledger:
        await ledger.rates.publish(history.plan())
        await asyncio.gather(*(export(valkey_url, history, random.Random(seed + n)) for n in range(2)))
        it = Bench(ledger, valkey_url)
        runs, buckets = history.expected()
        assert {run: micro for run, micro in (await it.totals()).items() if micro} == runs
        assert await it.buckets() == buckets
        report = await verify(ledger)
        assert report["ok"], report["differences"]
