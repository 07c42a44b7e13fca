"""Two sources that list the same work of one cluster: it is charged once, and nothing else is charged less for it."""

from __future__ import annotations

from collections import Counter

import pytest

from exporter.rounds import Rounds
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.verify import verify
from tests.histories import MINUTE, T0
from tests.integration.test_charges_equal_the_model import bench

pytestmark = pytest.mark.redis

# A credit a minute.
PLAN = RatePlan("default", ((0, RateTable({"p": 60_000_000_000})),))
CREDIT = 1_000_000


class _Other:
    name = "other"
    cluster = "default"


def seen(name: str, org: str = "acme", ended: int | None = None) -> Observation:
    """A new object each time, as sources make them; what it replaces may leave it its place in memory."""
    return Observation(name, "job", org, "", "", "p", "", T0, ended)


async def test_what_both_list_is_charged_once_and_the_rest_in_full(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock, epoch=T0) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        other = Rounds(bench_.books, _Other(), hold_us=0)  # type: ignore[arg-type]
        for minute in range(1, 40):
            clock[0] = T0 + minute * MINUTE
            await bench_.take(Snapshot("test", "default", clock[0], [seen("both"), seen("mine")]))
            since = await bench_.ledger.charging.source_mark("other")
            shot = Snapshot("other", "default", clock[0], [seen("theirs"), seen("both"), seen(f"new-{minute}")])
            assert not (await other.take(shot, since)).failed
            totals = {name.partition("@")[0]: micro for name, micro in (await bench_.totals()).items()}
            exact = minute * CREDIT
            wanted = {"both": exact, "mine": exact, "theirs": exact, f"new-{minute}": exact}
            assert {name: totals.get(name) for name in wanted} == wanted
        report = await verify(bench_.ledger)
        assert report["ok"], report["differences"]


async def test_an_older_snapshot_of_the_other_takes_nothing_over(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock, epoch=T0) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        other = Rounds(bench_.books, _Other(), hold_us=0)  # type: ignore[arg-type]
        await bench_.take(Snapshot("test", "default", T0 + 20 * MINUTE, [seen("both")]))
        assert not (await other.take(Snapshot("other", "default", T0 + 15 * MINUTE, [seen("both")]), None)).failed
        await bench_.take(Snapshot("test", "default", T0 + 30 * MINUTE, [seen("both")]))
        assert (await bench_.ledger.accounts.balance("acme")).spent_micro == 30 * CREDIT
        report = await verify(bench_.ledger)
        assert report["ok"], report["differences"]


@pytest.mark.parametrize("restarts", [False, True], ids=["beside", "renamed"])
@pytest.mark.parametrize("is_over", [False, True], ids=["runs", "over"])
async def test_what_the_other_lists_in_another_org_is_charged_once(
    is_over: bool, restarts: bool, valkey_url: str
) -> None:
    clock = [T0]
    async with bench(valkey_url, clock, epoch=T0) as bench_:
        await bench_.ledger.rates.publish(PLAN)
        await bench_.take(Snapshot("test", "default", T0 + 10 * MINUTE, [seen("both")]))
        if restarts:
            bench_.restart()
        other = Rounds(bench_.books, _Other(), hold_us=0)  # type: ignore[arg-type]
        ended = T0 + 15 * MINUTE if is_over else None
        since = None
        for minute in (5, 20, 30):  # the first one is older than what is charged already
            shot = Snapshot(
                "other", "default", T0 + minute * MINUTE, [seen("both", "beta", ended if minute > 5 else None)]
            )
            assert not (await other.take(shot, since)).failed
            since = shot.taken_us
        spent = Counter[str]()
        for (org, *_), micro in (await bench_.buckets()).items():
            spent[org] += micro
        assert spent == ({"acme": 15 * CREDIT} if is_over else {"acme": 20 * CREDIT, "beta": 10 * CREDIT})
        report = await verify(bench_.ledger)
        assert report["ok"], report["differences"]
