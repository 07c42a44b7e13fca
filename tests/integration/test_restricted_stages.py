"""Work that a restricted grant still pays for is not stopped; work that none pays for is."""

from __future__ import annotations

import pytest

from enforcer.stages import Stage
from ledger.admission import AdmissionRequest
from ledger.connect import Client
from tests.stages_lab import CREDIT, HOUR, Cluster

pytestmark = pytest.mark.redis


async def _grant(cluster: Cluster, micro: int, *presets: str) -> None:
    cluster.grants += 1
    await cluster.ledger.accounts.grant("acme", micro, key=str(cluster.grants), who="test", presets=presets)


async def test_only_what_no_grant_pays_for_is_suspended_and_goes_on_when_one_does(any_client: Client) -> None:
    cluster = Cluster(any_client)
    await cluster.setup(4 * CREDIT, "small", "large")
    cluster.presets["large"] = "large"
    await _grant(cluster, 100 * CREDIT, "large")
    assert await cluster.after(0) == Stage.WARN
    # The restricted one pays first for the large job, so the other 4 credits are an hour of the small one.
    balance = await cluster.ledger.accounts.balance("acme")
    assert (balance.left_micro, balance.burn_micro) == (104 * CREDIT, 8 * CREDIT)
    assert balance.exhausted_us == balance.at_us + HOUR
    assert await cluster.after(50) == Stage.GRACE
    assert cluster.scheduler.done == [("signal", "small")]
    assert "preset small of cluster c" in cluster.scheduler.reasons[0]
    assert await cluster.after(10) == Stage.ACT
    assert cluster.scheduler.done[1:] == [("suspend", "small")]
    assert (await cluster.ledger.accounts.balance("acme")).stage == "suspend"
    for _ in range(3):
        assert await cluster.after(60) == Stage.ACT
    balance = await cluster.ledger.accounts.balance("acme")
    assert balance.owed_micro == 0
    assert (balance.spent_micro, balance.left_micro) == (20 * CREDIT, 84 * CREDIT)
    for preset, code in (("small", "no_credits"), ("large", "ok")):
        request = AdmissionRequest(cluster="c", org="acme", project="p", user="u", preset=preset)
        decision = await cluster.ledger.admissions.admit(request)
        assert (decision.code, decision.available_micro) == (code, 0 if preset == "small" else 82 * CREDIT)
        if decision.hold_id:
            await cluster.ledger.admissions.release("acme", decision.hold_id)
    # More for the other preset changes nothing for it, more for any work does.
    await _grant(cluster, 100 * CREDIT, "large")
    assert await cluster.after(1) == Stage.ACT
    await cluster.grant(50 * CREDIT)
    assert await cluster.after(1) <= Stage.WARN
    assert cluster.scheduler.done[2:] == [("resume", "small")]
    assert (await cluster.ledger.accounts.balance("acme")).stage in ("ok", "warn")
    assert (await cluster.ledger.exhaustion.read("acme")).acted == {}


async def test_restricted_work_runs_out_by_itself(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(2 * CREDIT, "large")
    cluster.presets["large"] = "large"
    await _grant(cluster, 1000 * CREDIT, "small")
    assert await cluster.after(0) == Stage.WARN
    assert await cluster.after(20) == Stage.GRACE
    assert await cluster.after(10) == Stage.ACT
    assert cluster.scheduler.done == [("signal", "large"), ("stop", "large")]


async def test_a_credit_line_is_used_up_before_anything_is_stopped(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1")
    await cluster.ledger.accounts.upsert("acme", who="test", credit_line_micro=3 * CREDIT)
    assert await cluster.after(0) == Stage.WARN
    assert await cluster.after(30) == Stage.WARN
    balance = await cluster.ledger.accounts.balance("acme")
    assert (balance.available_micro, balance.overdraft_micro, balance.stage) == (-2 * CREDIT, CREDIT, "warn")
    assert balance.exhausted_us == cluster.now + HOUR // 2
    assert await cluster.after(16) == Stage.GRACE
    assert await cluster.after(10) == Stage.ACT
    assert cluster.scheduler.done == [("signal", "1"), ("stop", "1")]
    assert (await cluster.ledger.accounts.balance("acme")).usable_micro == 4 * CREDIT - 4 * CREDIT * 56 // 60


async def test_what_was_told_apart_late_is_not_acted_upon_before(client: Client) -> None:
    """A restricted grant comes while jobs run that were set aside in one sum."""
    cluster = Cluster(client)
    await cluster.setup(4 * CREDIT, "small", "large")
    cluster.presets["large"] = "large"
    assert await cluster.after(0) == Stage.WARN
    await _grant(cluster, 100 * CREDIT, "large")
    assert await cluster.after(1, metered=False) == Stage.WARN
    assert await cluster.after(0) == Stage.WARN
    running = (await cluster.ledger.exhaustion.read("acme")).running
    assert sum(micro for field, micro in running.items() if field.startswith("c")) == running[""]
    assert cluster.scheduler.done == []
