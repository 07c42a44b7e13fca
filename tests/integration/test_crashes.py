"""Invariants 2 to 8 under kill -9 of everything, at any moment, with and without a lost tail of the log."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exporter.rounds import Books, Rounds
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from tests.histories import HOUR, T0
from tests.servers import ServerProcess

pytestmark = pytest.mark.redis

MakeServer = Callable[..., ServerProcess]


class NoSource:
    name = "test"
    cluster = "default"


def rounds_of(ledger: Ledger) -> Rounds:
    return Rounds(Books(ledger), NoSource(), hold_us=0)  # type: ignore[arg-type]


async def take(rounds: Rounds, hour: int, *workloads: Observation) -> None:
    since = await rounds.ledger.charging.source_mark("test")
    report = await rounds.take(Snapshot("test", "default", T0 + hour * HOUR, workloads), since)
    assert not report.failed


def job(number: int, ended_hour: int | None = None) -> Observation:
    ended = None if ended_hour is None else T0 + ended_hour * HOUR
    return Observation(f"job-{number}", "job", "acme", "vision", "ann", "small", "", T0, ended)


async def test_an_exporter_that_outlives_a_lost_tail_charges_what_was_lost_again(make_server: MakeServer) -> None:
    server = make_server()
    async with open_ledger(server.url, epoch_us=T0) as ledger:
        await ledger.rates.publish(RatePlan("default", ((0, RateTable({"small": 10**9})),)))
        rounds = rounds_of(ledger)
        await take(rounds, 1, job(1))
        before = server.log_size()
        await take(rounds, 2, job(1, ended_hour=2))
        server.stop()
        server.cut_tail(server.log_size() - before)
        server.start()
        await take(rounds, 3, job(1, ended_hour=2))
        await take(rounds, 4)
        assert (await ledger.accounts.balance("acme")).spent_micro == 2_000_000
        assert (await verify(ledger))["ok"]
