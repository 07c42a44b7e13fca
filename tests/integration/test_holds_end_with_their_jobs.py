"""A hold ends with its job: by being metered, once for each task, or by a job that never had anything to bill."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ledger.admission import AdmissionRequest
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.money import MICRO, NANO
from ledger.verify import verify
from tests.histories import HOUR, MINUTE, T0
from tests.integration.test_charges_equal_the_model import Bench, bench

pytestmark = pytest.mark.redis
PLAN = RatePlan("default", ((0, RateTable({"p": 60 * NANO})),))


async def admitted(bench_: Bench, count: int = 1, workload: str | None = None, limit_us: int = HOUR) -> str:
    await bench_.ledger.rates.publish(PLAN)
    await bench_.ledger.accounts.grant("acme", 1000 * MICRO, key="k", who="t")
    request = AdmissionRequest(
        cluster="default", org="acme", project="x", user="ann", kind="job", preset="p", app=None,
        workload_id=workload, max_runtime_us=limit_us, count=count, dry_run=False,
    )  # fmt: skip
    decision = await bench_.ledger.admissions.admit(request)
    assert decision.hold_id is not None, decision
    return decision.hold_id


def task(name: str, hold: str | None, started: int, ended: int | None = None) -> Observation:
    return Observation(name, "job", "acme", "x", "ann", "p", "", started, ended, hold_id=hold)


async def in_holds(bench_: Bench) -> int:
    """Holds' sum in credits."""
    value = await bench_.ledger.client.hget("credits:{acme}:held", "")
    return int(value or 0) // MICRO


async def test_a_task_that_is_started_anew_takes_no_other_tasks_part_of_the_hold(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        hold = await admitted(bench_, count=4)
        assert await in_holds(bench_) == 60
        clock[0] = T0 + 2 * MINUTE
        running = [task("1", hold, T0 + MINUTE), task("2", hold, T0 + MINUTE)]
        await bench_.take(Snapshot("test", "default", T0 + 2 * MINUTE, running))
        assert await in_holds(bench_) == 30
        clock[0] = T0 + 4 * MINUTE
        again = [task("1", hold, T0 + MINUTE, T0 + 2 * MINUTE), task("1", hold, T0 + 3 * MINUTE), running[1]]
        await bench_.take(Snapshot("test", "default", T0 + 4 * MINUTE, again))
        assert await in_holds(bench_) == 30
        assert (await verify(bench_.ledger))["ok"]


async def test_a_task_that_was_changed_alone_ends_its_own_hold_and_its_part_of_the_arrays(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        array = await admitted(bench_, count=4)
        alone = await admitted(bench_, workload="2")
        assert await in_holds(bench_) == 75
        clock[0] = T0 + 2 * MINUTE
        listed = [task("2", array, T0 + MINUTE)]
        await bench_.take(Snapshot("test", "default", clock[0], listed))
        assert await in_holds(bench_) == 45
        clock[0] += MINUTE
        await bench_.take(Snapshot("test", "default", clock[0], [*listed, task("1", array, T0 + 2 * MINUTE)]))
        assert await in_holds(bench_) == 30
        assert alone.encode() not in await bench_.ledger.client.hkeys("credits:{acme}:holds")  # type: ignore[misc]
        assert (await verify(bench_.ledger))["ok"]


@pytest.mark.parametrize("by_id", [True, False])
async def test_a_job_that_ends_in_the_second_it_starts_leaves_no_hold(valkey_url: str, by_id: bool) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        hold = await admitted(bench_, workload=None if by_id else "7")
        assert await in_holds(bench_) == 15
        clock[0] = T0 + MINUTE
        failed = task("7", hold if by_id else None, T0 + 1000, T0 + 1000)
        for minute in (1, 2):
            await bench_.take(Snapshot("test", "default", T0 + minute * MINUTE, [failed]))
        assert await in_holds(bench_) == 0
        balance = await bench_.ledger.accounts.balance("acme")
        assert (balance.held_micro, balance.spent_micro, balance.holds) == (0, 0, 0)
        assert (await verify(bench_.ledger))["ok"]


async def test_a_job_that_moves_to_another_org_keeps_the_time_limit_that_only_its_hold_knew(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        job = task("1", await admitted(bench_, limit_us=20 * MINUTE), T0)
        await bench_.ledger.accounts.grant("zeta", 1000 * MICRO, key="k", who="t")
        for minute, org in ((1, "acme"), (10, "zeta"), (11, "zeta")):
            clock[0] = T0 + minute * MINUTE
            await bench_.take(Snapshot("test", "default", clock[0], [replace(job, org=org)]))
        zeta = await bench_.ledger.accounts.balance("zeta")
        assert (zeta.spent_micro, zeta.held_micro) == (1 * MICRO, 9 * MICRO)
        assert (await verify(bench_.ledger))["ok"]
