"""Asked again: a hold that waits longer, work that is charged by now, and orgs that nobody ever set up."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from ledger import keys
from ledger.admission import AdmissionRequest, Terms
from ledger.connect import Client
from ledger.hold_ids import new_hold_id
from ledger.model import Code, Observation, Snapshot
from ledger.verify import verify
from ledger.waiting_holds import WaitingHolds
from tests.histories import HOUR, MINUTE, T0
from tests.integration.test_charges_equal_the_model import Bench, bench
from tests.integration.test_holds_end_with_their_jobs import admitted

pytestmark = pytest.mark.redis
JOB = AdmissionRequest(
    cluster="default", org="acme", project="x", user="ann", preset="p", workload_id="7", max_runtime_us=HOUR
)


async def held(bench_: Bench) -> int:
    assert (await verify(bench_.ledger))["ok"]
    return (await bench_.ledger.accounts.balance("acme")).held_micro


async def test_a_repetition_answers_when_the_hold_expires_by_now(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await admitted(bench_, workload="other")
        ledger = bench_.ledger
        asked = replace(JOB, hold_id=new_hold_id("acme"))
        first = await ledger.admissions.admit(asked)
        assert first.hold_expires_us == T0 + 15 * MINUTE
        clock[0] = T0 + MINUTE
        same_request, same_work = asked, replace(JOB, hold_id=new_hold_id("acme"))
        for request in (same_request, same_work):
            again = await ledger.admissions.admit(request)
            assert (again.replayed, again.hold_id, again.hold_expires_us) == (
                True, first.hold_id, first.hold_expires_us,
            )  # fmt: skip
        clock[0] = T0 + 8 * MINUTE  # it waits in the queue
        assert first.hold_id is not None
        await WaitingHolds(ledger.client, 15 * MINUTE, lambda: clock[0]).keep([first.hold_id], ["acme"])
        for request in (same_request, same_work):
            again = await ledger.admissions.admit(request)
            assert (again.hold_id, again.hold_expires_us) == (first.hold_id, T0 + 23 * MINUTE)


async def test_work_that_is_charged_needs_no_second_hold(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await admitted(bench_, workload="7")
        ledger = bench_.ledger
        runs = Observation("7", "job", "acme", "x", "ann", "p", "", T0)
        clock[0] = T0 + 2 * MINUTE
        await bench_.take(Snapshot("test", "default", clock[0], [runs]))
        before = await held(bench_)
        for request in (JOB, replace(JOB, dry_run=True)):
            again = await ledger.admissions.admit(request)
            assert (again.allowed, again.code, again.hold_id, again.hold_expires_us) == (True, Code.OK, None, None)
            assert "is charged already" in again.reason
        assert await held(bench_) == before
        for other in (replace(JOB, workload_id="8"), replace(JOB, cluster="elsewhere"), replace(JOB, count=2)):
            decision = await ledger.admissions.admit(other, Terms())
            assert decision.hold_id is not None or decision.code is Code.UNPRICED
        # Over, it is no more than its name.
        clock[0] = T0 + 4 * MINUTE
        over = Observation("7", "job", "acme", "x", "ann", "p", "", T0, T0 + 3 * MINUTE)
        await bench_.take(Snapshot("test", "default", clock[0], [over]))
        await ledger.admissions.release("acme", (await ledger.admissions.admit(JOB)).hold_id or "")
        assert (await ledger.admissions.admit(JOB)).hold_id is not None
        assert (await verify(ledger))["ok"]


async def test_orgs_that_nobody_knows_leave_nothing_behind(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await admitted(bench_)
        client: Client = bench_.ledger.client
        before = sorted(await client.keys("*"))
        for number in range(200):
            request = replace(JOB, org=f"made up {number}", workload_id=str(number))
            decision = await bench_.ledger.admissions.admit(request, Terms(unknown_org="allow"))
            assert (decision.allowed, decision.code, decision.hold_id) == (True, Code.OK, None)
            assert "Nobody has set up org" in decision.reason
        assert sorted(await client.keys("*")) == before
        assert await client.hlen(keys.of_org("made up 1").holds) == 0  # type: ignore[misc]
