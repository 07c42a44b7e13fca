"""Hundreds of polls of a busy cluster, with jobs that move between orgs and volumes that grow and shrink."""

from __future__ import annotations

import pytest

from ledger.verify import verify
from tests.crash_history import SOURCE, History
from tests.histories import T0
from tests.integration.test_charges_equal_the_model import bench

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
