"""Amounts that leave what the ledger can count: refused before anything is written, and no other org waits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from msgspec.structs import replace

from exporter.rounds import Rounds
from ledger import keys
from ledger.errors import TooLarge
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.money import MICRO_MAX
from ledger.verify import verify
from tests.histories import HOUR, MINUTE, T0
from tests.integration.test_charges_equal_the_model import Bench, bench

pytestmark = pytest.mark.redis

# The dearest rates there are; 60 credits an hour for `p`.
PLAN = RatePlan("default", ((0, RateTable({"p": 60_000_000_000, "dear": MICRO_MAX}, {}, {"dear": MICRO_MAX})),))
JOB = Observation("job", "job", "acme", "", "", "p", "", T0)


async def take(bench_: Bench, at: int, *workloads: Observation) -> None:
    await bench_.take(Snapshot("test", "default", at, list(workloads)))


def volume(size: int) -> list[Observation]:
    return [Observation("volume", "storage", "acme", "", "", "dear", bytes=size)]


def jobs(count: int) -> list[Observation]:
    return [replace(JOB, id=f"dear-{n}", resource="dear") for n in range(count)]


@pytest.mark.parametrize(
    ("what", "tick"),
    [
        pytest.param(lambda: volume(2**62), MINUTE, id="more in a slot than 64 bits hold"),
        pytest.param(lambda: volume(1000 * 10**9), HOUR, id="a sum past 2^53"),
        pytest.param(lambda: jobs(5000), 1, id="set aside past 2^53, with nearly nothing spent"),
    ],
)
async def test_nothing_of_it_is_charged_and_everybody_else_is(
    what: Callable[[], list[Observation]], tick: int, valkey_url: str
) -> None:
    clock = [T0 + MINUTE]
    async with bench(valkey_url, clock, epoch=T0) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        mine, other = JOB, replace(JOB, org="zeta")
        await take(bench_, clock[0], mine, other)
        client: Any = bench_.ledger.client

        async def kept() -> dict[bytes, bytes]:
            return {k: v for k, v in (await client.hgetall(keys.of_org("acme").spent)).items() if k[-1:].isdigit()}

        extra = [o if o.kind == "storage" else replace(o, started_us=T0 + 2 * MINUTE) for o in what()]
        with suppress(TooLarge):
            await take(bench_, T0 + 2 * MINUTE, mine, other, *extra)
        before = await kept()
        for n in range(1, 5):
            clock[0] = T0 + 2 * MINUTE + n * tick
            with pytest.raises(TooLarge, match=r"org 'acme'.*look at its rates"):
                await take(bench_, clock[0], mine, other, *extra)
            if n % 2:
                bench_.restart()
        assert await kept() == before
        zeta = await bench_.ledger.accounts.balance("zeta")
        assert zeta.spent_micro == (clock[0] - T0) // 60  # a credit a minute
        report = await verify(bench_.ledger)
        assert report["ok"], report["differences"]


class _OtherCluster:
    name = "other"
    cluster = "other"


async def test_what_could_not_be_committed_leaves_no_gap_for_a_source_of_another_cluster(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sources share an org's state in memory: what one noted in it, and could not commit, is not there for others."""
    clock = [T0 + MINUTE]
    async with bench(valkey_url, clock, epoch=T0) as bench_:
        for cluster in ("default", "other"):
            await bench_.ledger.rates.publish(RatePlan(cluster, PLAN.steps))
        other = Rounds(bench_.books, _OtherCluster(), hold_us=0)  # type: ignore[arg-type]
        await take(bench_, clock[0], JOB)
        charging = bench_.ledger.charging
        hold_limits = charging.hold_limits

        async def too_large_first(*arguments: Any) -> Any:
            monkeypatch.undo()
            with pytest.raises(TooLarge):
                await take(bench_, T0 + 2 * MINUTE, JOB, *(replace(o, started_us=T0 + MINUTE) for o in jobs(5000)))
            return await hold_limits(*arguments)

        monkeypatch.setattr(charging, "hold_limits", too_large_first)
        report = await other.take(Snapshot("other", "other", T0 + MINUTE, [replace(JOB, id="theirs")]), None)
        assert not report.failed
        await charging.load("acme")
        assert (await verify(bench_.ledger))["ok"]


async def test_an_org_that_cannot_let_go_is_tried_once_a_round_and_so_is_who_takes_over(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [T0 + MINUTE]
    async with bench(valkey_url, clock, epoch=T0) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        mine, other = replace(JOB, resource="dear"), replace(JOB, id="theirs", org="zeta")
        await take(bench_, clock[0], mine, other)
        looks = 0
        confirm = bench_.books.confirm

        async def counted() -> None:
            nonlocal looks
            looks += 1
            await confirm()

        monkeypatch.setattr(bench_.books, "confirm", counted)
        for hours in (1100, 1101):
            clock[0] = T0 + hours * HOUR
            with pytest.raises(TooLarge) as raised:
                await take(bench_, clock[0], replace(mine, org="zeta"), other)
            assert raised.value.left == {"acme", "zeta"}, "what zeta takes over is not charged yet"
        assert looks == 2
        zeta = await bench_.ledger.accounts.balance("zeta")
        assert zeta.spent_micro == (clock[0] - T0) // 60
        assert (await verify(bench_.ledger))["ok"]
