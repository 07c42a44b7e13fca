"""When rounds happen and how they end, with sources and clocks that a test moves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from exporter.books import Books
from exporter.health import LedgerHealth
from exporter.rates import RatesInForce
from exporter.rounds import Rounds
from exporter.schedule import Schedule
from exporter.source_rounds import SourceRounds
from exporter.sources.base import SourceError
from ledger.connect import Client
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from tests.exporter_lab import HOUR, T0, spent, until

pytestmark = pytest.mark.redis
NANO = 1_000_000_000


class FakeSource:
    """One job that runs since T0; answers as the test says."""

    def __init__(self, name: str = "fake", cluster: str = "default") -> None:
        self.name = name
        self.cluster = cluster
        self.taken_us = T0 + HOUR
        self.asked = 0
        self.under_way = 0
        self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.prices: RateTable | None = None

    async def fetch(self, since_us: int | None) -> Snapshot:
        self.asked += 1
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            job = Observation("a", "job", "acme", "vision", "ann", "small", started_us=T0)
            return Snapshot(self.name, self.cluster, self.taken_us, [job])
        finally:
            self.under_way -= 1

    async def rates(self) -> RateTable:
        if self.prices is None:
            raise SourceError(f"{self.name}: no prices")
        return self.prices

    async def close(self) -> None:
        pass


@pytest.fixture
async def ledger(client: Client, valkey_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(valkey_url, epoch_us=T0 - HOUR) as opened:
        await opened.rates.publish(RatePlan("default", ((0, RateTable(presets={"small": NANO})),)))
        yield opened


async def nothing() -> None:
    pass


def rounds_of(ledger: Ledger, source: FakeSource, **arguments: Any) -> SourceRounds:
    rounds = Rounds(Books(ledger), source, hold_us=0)
    return SourceRounds(rounds, LedgerHealth(), after=nothing, **arguments)


async def test_rounds_of_a_slow_source_never_overlap_and_are_told_once(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeSource()
    source.gate.clear()
    schedule = Schedule([rounds_of(ledger, source)], 0.02)
    schedule.start()
    await until(lambda: any("takes longer" in r.getMessage() for r in caplog.records))
    assert source.asked == 1
    source.gate.set()
    await until(lambda: source.asked > 3)
    await schedule.stop()
    assert source.most_at_once == 1
    assert len([r for r in caplog.records if "takes longer" in r.getMessage()]) == 1
    assert not [r for r in caplog.records if r.name.startswith("apscheduler")]


async def test_a_clock_that_goes_back_does_not_stop_the_rounds(ledger: Ledger, monkeypatch: Any) -> None:
    """The scheduler's own clock goes back an hour, so that its next round is an hour away."""
    from apscheduler.schedulers import base

    source = FakeSource()
    back = 0.0

    class Clock(base.datetime):  # type: ignore[misc]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(time.time() - back, tz)

    monkeypatch.setattr(base, "datetime", Clock)
    monkeypatch.setattr("exporter.schedule.datetime", Clock)
    schedule = Schedule([rounds_of(ledger, source)], 0.05, wall=lambda: time.time() - back)
    schedule.start()
    await until(lambda: source.asked > 2)
    back = 3600.0
    asked = source.asked
    await until(lambda: source.asked > asked + 3)
    await schedule.stop()


async def test_a_source_whose_clock_goes_back_is_charged_no_time_twice(ledger: Ledger) -> None:
    source = FakeSource()
    job = rounds_of(ledger, source)
    for taken, charged in ((T0 + 2 * HOUR, 2), (T0 + HOUR, 2), (T0 + 2 * HOUR, 2), (T0 + 3 * HOUR, 3)):
        source.taken_us = taken
        await job.once()
        assert sum((await spent(ledger)).values()) == charged * 1_000_000
        assert job.health.charged_us == T0 + charged * HOUR
    assert (await verify(ledger))["ok"]


async def test_stopping_gives_up_what_is_asked_and_ends_what_is_committed(ledger: Ledger) -> None:
    asking, committing = FakeSource("asking"), FakeSource("committing", "other")
    asking.gate.clear()
    jobs = [rounds_of(ledger, asking), rounds_of(ledger, committing)]
    rounds = jobs[1]._rounds
    take, begun, go_on = rounds.take, asyncio.Event(), asyncio.Event()

    async def slow_take(snapshot: Snapshot, since: int | None) -> Any:
        begun.set()
        await go_on.wait()
        return await take(snapshot, since)

    rounds.take = slow_take  # type: ignore[method-assign]
    schedule = Schedule(jobs, 3600)
    schedule.start()
    await begun.wait()
    await until(lambda: asking.under_way)
    stopping = asyncio.create_task(schedule.stop())
    await until(lambda: not asking.under_way)
    assert not stopping.done()
    go_on.set()
    await stopping
    assert await ledger.charging.source_mark("committing") == T0 + HOUR
    assert await ledger.charging.source_mark("asking") is None


async def test_a_commit_that_does_not_end_is_not_waited_for_for_ever(ledger: Ledger) -> None:
    source = FakeSource()
    job = rounds_of(ledger, source)
    begun = asyncio.Event()

    async def endless(snapshot: Snapshot, since: int | None) -> Any:
        begun.set()
        await asyncio.Event().wait()

    job._rounds.take = endless  # type: ignore[method-assign]
    schedule = Schedule([job], 3600, drain_seconds=0.05)
    schedule.start()
    await begun.wait()
    await schedule.stop()


async def test_a_source_that_never_answers_is_given_up(ledger: Ledger) -> None:
    source = FakeSource()
    source.gate.clear()
    job = rounds_of(ledger, source, fetch_seconds=0.02)
    with pytest.raises(SourceError, match=r"no snapshot within 0\.02 s"):
        await job.once()
    assert not job.health.up
    assert job.health.failures == 1


async def test_a_fault_of_our_own_is_told_with_its_place_and_the_next_round_goes_on(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = FakeSource()
    job = rounds_of(ledger, source)
    await job.once()
    source.error = KeyError("what nobody thought of")
    for _ in range(3):
        await job.run()
    assert job.health.failures == 3
    told = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(told) == 1
    assert told[0].exc_info
    source.error, source.taken_us = None, T0 + 4 * HOUR
    await job.run()
    assert job.health.failures == 0
    assert sum((await spent(ledger)).values()) == 4_000_000


async def test_after_a_fault_between_two_commits_the_books_are_read_again(ledger: Ledger) -> None:
    source = FakeSource()
    job = rounds_of(ledger, source)
    await job.once()
    books = job._rounds.books
    known = books.states["acme"]
    plan = job._rounds.meter.plan

    def broken(*arguments: Any) -> Any:
        plan(*arguments)  # the runs in memory have moved on, and nothing was written
        raise RuntimeError("between two commits")

    job._rounds.meter.plan = broken  # type: ignore[method-assign, assignment]
    source.taken_us = T0 + 2 * HOUR
    with pytest.raises(RuntimeError):
        await job.once()
    job._rounds.meter.plan = plan  # type: ignore[method-assign]
    await job.once()
    assert books.states["acme"] is not known
    assert sum((await spent(ledger)).values()) == 2_000_000
    assert (await verify(ledger))["ok"]


async def test_a_platforms_rates_complete_those_of_the_file(ledger: Ledger) -> None:
    source = FakeSource("platform", "cloud")
    file = {"cloud": RatePlan("cloud", ((0, RateTable(presets={"large": 5 * NANO}, unpriced="free")),))}
    rates = RatesInForce(ledger.rates, file, ["cloud"], ["cloud"])
    await rates.publish()
    assert (await ledger.rates.read("cloud"))[1] is None  # not before the platform's are known
    job = rounds_of(ledger, source, prices=(source, rates))
    with pytest.raises(SourceError, match="no prices"):
        await job.once()
    assert source.asked == 0
    source.prices = RateTable(presets={"small": 2 * NANO, "large": 3 * NANO}, apps={"vllm": NANO})
    await job.once()
    plan = (await ledger.rates.read("cloud"))[1]
    assert plan is not None
    table = plan.steps[-1][1]
    assert (table.presets, table.apps, table.unpriced) == (
        {"small": 2 * NANO, "large": 5 * NANO},
        {"vllm": NANO},
        "free",
    )
    assert rates.priced_apps("cloud") == {"vllm"}
    assert sum((await spent(ledger)).values()) == 2_000_000


async def test_an_edit_of_the_file_keeps_the_platforms_rates(ledger: Ledger) -> None:
    rates = RatesInForce(ledger.rates, {}, ["cloud"], ["cloud"])
    await rates.complete("cloud", RateTable(presets={"small": NANO}))
    await rates.publish({"cloud": RatePlan("cloud", ((0, RateTable(presets={"large": NANO})),))})
    plan = (await ledger.rates.read("cloud"))[1]
    assert plan is not None
    assert plan.steps[-1][1].presets == {"small": NANO, "large": NANO}
