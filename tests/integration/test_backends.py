"""The same ledger on every kind of server: Valkey, Redis 7.0 and a cluster of three nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import pytest

from ledger import keys, lua
from ledger.admission import AdmissionRequest, Terms
from ledger.connect import connect
from ledger.errors import IdempotencyConflict, LedgerUnavailable
from ledger.exhaustion import ORG_TIER, Act, TierState
from ledger.model import Code, Observation, RatePlan, RateTable, Snapshot
from ledger.org_state import Row
from ledger.plan import Plan, pack
from ledger.rollups import roll_up
from ledger.store import Ledger
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from ledger.verify import verify
from tests.crash_history import SOURCE, History
from tests.histories import HOUR, MINUTE, ORGS, SPAN, T0
from tests.integration.test_charges_equal_the_model import Bench
from tests.servers import ServerProcess, cluster_options, form_cluster, free_port, newest_log

pytestmark = pytest.mark.redis

CREDIT = 1_000_000
TERMS = Terms(hold_us=15 * MINUTE)


class Now:
    us = T0

    def __call__(self) -> int:
        return self.us


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    nodes = [
        ServerProcess(tmp_path_factory.mktemp("node"), port=free_port(), options=cluster_options()).start()
        for _ in range(3)
    ]
    asyncio.run(form_cluster(nodes))
    yield f"redis+cluster://127.0.0.1:{nodes[0].port}"
    for node in nodes:
        node.kill9()


@pytest.fixture(
    params=[
        "valkey",
        pytest.param("redis", marks=pytest.mark.redis_server),
        pytest.param("cluster", marks=pytest.mark.slow),
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def ledger(url: str, now: Now) -> AsyncIterator[Ledger]:
    """An empty ledger at T0, where `small` costs 4 credits an hour: a hold of 15 minutes is one credit."""
    async with connect(url, None) as client:
        await client.flushall()
        ledger = Ledger(client, T0, now)
        await ledger.rates.publish(RatePlan("default", ((0, RateTable({"small": 4_000_000_000})),)))
        yield ledger


async def funds(ledger: Ledger, org: str = "acme") -> tuple[int, int, int, int, int]:
    """(granted, expired, spent, held, overdraft) in credits; fails unless everything adds up."""
    balance = await ledger.accounts.balance(org)
    assert balance.available_micro == (
        balance.granted_micro - balance.expired_micro - balance.spent_micro - balance.held_micro
    )
    report = await verify(ledger)
    assert report["ok"], report["differences"]
    figures = (
        balance.granted_micro, balance.expired_micro, balance.spent_micro, balance.held_micro, balance.overdraft_micro
    )  # fmt: skip
    a, b, c, d, e = (micro // CREDIT for micro in figures)
    return a, b, c, d, e


def job(number: int, started: int, ended: int | None = None) -> Observation:
    return Observation(f"job-{number}", "job", "acme", "vision", "ann", "small", "", started, ended)


async def poll(ledger: Ledger, now: Now, at: int, *workloads: Observation) -> None:
    now.us = at
    await Bench(ledger, "").take(Snapshot(SOURCE, "default", at, workloads))


async def test_a_grant_is_given_once_for_its_key_for_ever(ledger: Ledger, now: Now) -> None:
    first = await ledger.accounts.grant("acme", 5 * CREDIT, key="k", who="ann", reason="trial")
    assert not first.replayed
    await poll(ledger, now, T0 + 2 * HOUR, job(1, T0, T0 + 2 * HOUR))  # all of it is spent, and more
    now.us = T0 + 10_000 * HOUR
    again = await ledger.accounts.grant("acme", 5 * CREDIT, key="k", who="bob", reason="trial")
    assert again.replayed
    assert again.record == first.record
    with pytest.raises(IdempotencyConflict, match="5 credits"):
        await ledger.accounts.grant("acme", 6 * CREDIT, key="k", who="ann", reason="trial")
    await ledger.accounts.grant("beta", 6 * CREDIT, key="k", who="ann")  # keys are the org's own
    assert await funds(ledger) == (5, 0, 8, 0, 3)


async def test_many_grants_of_one_key_at_once_are_one(ledger: Ledger) -> None:
    receipts = await asyncio.gather(*(ledger.accounts.grant("acme", CREDIT, key="k", who="ann") for _ in range(20)))
    assert sum(not receipt.replayed for receipt in receipts) == 1
    assert await funds(ledger) == (1, 0, 0, 0, 0)


async def test_the_soonest_to_expire_is_spent_first_and_the_rest_expires(ledger: Ledger, now: Now) -> None:
    await ledger.accounts.grant("acme", 100 * CREDIT, key="for ever", who="ann")
    await ledger.accounts.grant("acme", 10 * CREDIT, key="day", who="ann", expires_us=T0 + 24 * HOUR)
    await ledger.accounts.grant("acme", 3 * CREDIT, key="hour", who="ann", expires_us=T0 + HOUR)
    await ledger.accounts.grant("acme", 7 * CREDIT, key="later", who="ann", effective_us=T0 + 30 * HOUR)
    await poll(ledger, now, T0 + HOUR, job(1, T0, T0 + HOUR))  # 4 credits: 3 of the hour, 1 of the day
    assert await funds(ledger) == (113, 0, 4, 0, 0)
    now.us = T0 + 24 * HOUR
    assert await funds(ledger) == (113, 9, 4, 0, 0)
    now.us = T0 + 30 * HOUR
    assert await funds(ledger) == (120, 9, 4, 0, 0)


async def test_an_overdraft_is_paid_by_the_next_grant(ledger: Ledger, now: Now) -> None:
    await ledger.accounts.grant("acme", CREDIT, key="a", who="ann")
    await poll(ledger, now, T0 + HOUR, job(1, T0, T0 + HOUR))
    assert await funds(ledger) == (1, 0, 4, 0, 3)
    await ledger.accounts.grant("acme", 10 * CREDIT, key="b", who="ann", expires_us=T0 + 2 * HOUR)
    assert await funds(ledger) == (11, 0, 4, 0, 0)
    now.us = T0 + 2 * HOUR
    assert await funds(ledger) == (11, 7, 4, 0, 0)


async def test_a_commit_is_done_once_and_only_on_the_state_it_was_made_from(ledger: Ledger) -> None:
    charging, row = ledger.charging, Row("default", "vision", "ann", "job", "small", "")
    await charging.note_org("acme")
    state = await charging.load("acme")
    plan = Plan("acme", SOURCE, taken_us=T0 + HOUR)
    plan.new_rows.append(state.row_number(row))
    plan.add((T0, T0 + HOUR), 0, 4 * CREDIT, HOUR)
    packed = pack(plan, state, T0)

    async def commit(what: Any) -> bytes:
        answer: bytes = (await ledger.scripts.charge(what.script_keys, [what.payload, ""]))[0]
        return answer

    assert await commit(packed) == b"ok"
    assert await commit(packed) == b"replayed"
    assert await commit(pack(plan, state, T0)) == b"conflict"
    state = await charging.load("acme")
    await ledger.budgets.put("acme", "vision", None, CREDIT, who="ann", period="day")
    assert await commit(pack(Plan("acme", SOURCE, taken_us=T0 + 2 * HOUR), state, T0)) == b"stale"
    assert (await ledger.accounts.balance("acme")).spent_micro == 4 * CREDIT


async def test_a_hold_ends_with_its_job_or_by_release_or_by_its_time(ledger: Ledger, now: Now) -> None:
    await ledger.accounts.grant("acme", 3 * CREDIT, key="a", who="ann")
    request = AdmissionRequest(cluster="default", org="acme", project="vision", user="ann", preset="small")
    metered, released, _ = [
        await ledger.admissions.admit(
            AdmissionRequest(**{**{f: getattr(request, f) for f in request.__struct_fields__}, "workload_id": name}),
            TERMS,
        )
        for name in ("job-1", "job-2", "job-3")
    ]
    assert await funds(ledger) == (3, 0, 0, 3, 0)
    refused = await ledger.admissions.admit(request, TERMS)
    assert (refused.allowed, refused.code) == (False, Code.NO_CREDITS)

    assert metered.hold_id is not None
    await poll(ledger, now, T0, job(1, T0))  # it runs: what it has set aside now is the meter's
    assert await ledger.admissions.release("acme", metered.hold_id) is None
    assert released.hold_id is not None
    assert await ledger.admissions.release("acme", released.hold_id) == CREDIT
    assert (await ledger.accounts.balance("acme")).holds == 1
    now.us = T0 + 15 * MINUTE
    assert (await ledger.accounts.balance("acme")).holds == 0
    await poll(ledger, now, T0 + 15 * MINUTE, job(1, T0, T0 + 15 * MINUTE))
    assert await funds(ledger) == (3, 0, 1, 0, 0)
    assert not await ledger.client.hgetall(keys.of_org("acme").held)


async def test_a_stage_its_entry_and_its_event_are_one_step_and_one_acts_at_a_time(ledger: Ledger, now: Now) -> None:
    store, grace = ledger.exhaustion, TierState(3, T0, T0 + 10)
    assert await store.lead("one", 60)
    assert not await store.lead("other", 60)
    assert await store.lead("one", 0) is False  # given up
    assert await store.lead("other", 60)
    entry = {"type": "stage", "event": "e1", "stage": "grace", "org": "acme", "at": "2026-11-22T10:00:00Z"}
    event = msgspec.json.encode(entry)
    for _ in range(2):  # its answer was lost
        assert await store.write("acme", ORG_TIER, TierState(), grace, entry, event)
    await store.note("acme", ORG_TIER, "slurm", "7", Act("signal", T0))
    state = await store.read("acme")
    assert (state.stages, state.outbox) == ({ORG_TIER: grace}, [event])
    assert state.acted == {(ORG_TIER, "slurm", "7"): Act("signal", T0)}
    for _ in range(2):  # as if it was killed in between
        await ledger.notices.note(entry)
    await store.passed_on("acme", event)
    assert (await store.read("acme")).outbox == []
    assert [body for _, body in await ledger.notices.events("0-0", 10)] == [event]
    assert not await store.write("acme", ORG_TIER, TierState(), None, None)


async def test_a_budget_set_before_the_last_charge_of_the_period_before_it(ledger: Ledger, now: Now) -> None:
    await ledger.accounts.grant("acme", 1000 * CREDIT, key="a", who="ann")
    await poll(ledger, now, T0 + 24 * HOUR - MINUTE, job(1, T0))
    now.us = T0 + 24 * HOUR + MINUTE
    await ledger.budgets.put("acme", "vision", None, 100 * CREDIT, who="ann", period="day")
    await poll(ledger, now, T0 + 25 * HOUR, job(1, T0))
    (state,) = await ledger.budgets.states("acme")
    assert state.spent_micro == 4 * CREDIT
    assert (await verify(ledger))["ok"]
    await ledger.budgets.put("acme", "vision", None, 100 * CREDIT, who="ann", period="day", timezone="Asia/Tokyo")
    (state,) = await ledger.budgets.states("acme")
    assert state.spent_micro == 10 * 4 * CREDIT  # the day began at 15:00 UTC
    assert (await verify(ledger))["ok"]


async def test_a_grant_waits_for_the_disk(
    make_server: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, unsynced = make_server(), make_server(appendfsync="no")
    async with connect(synced.url, None) as client:
        await Ledger(client, T0).accounts.grant("acme", CREDIT, key="a-key-on-disk", who="ann")
        assert b"a-key-on-disk" in newest_log(synced.directory).read_bytes()
    monkeypatch.setattr(lua, "_WAIT_MS", 50)
    async with connect(unsynced.url, None) as client:
        ledger = Ledger(client, T0)
        for _ in range(2):  # it was written, but nobody may rely on it yet, the second time as little as the first
            with pytest.raises(LedgerUnavailable, match="did not confirm the write to its disk"):
                await ledger.accounts.grant("acme", CREDIT, key="k", who="ann")
        await client.config_set("appendfsync", "always")
        assert (await ledger.accounts.grant("acme", CREDIT, key="k", who="ann")).replayed
        assert await funds(ledger) == (1, 0, 0, 0, 0)


async def test_a_published_rate_waits_for_the_disk(
    make_server: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, unsynced = make_server(), make_server(appendfsync="no")
    plan = RatePlan("on-disk", ((0, RateTable({"p": 1})),))
    async with connect(synced.url, None) as client:
        assert await Ledger(client, T0).rates.publish(plan)
        assert b"on-disk" in newest_log(synced.directory).read_bytes()
    monkeypatch.setattr(lua, "_WAIT_MS", 50)
    async with connect(unsynced.url, None) as client:
        with pytest.raises(LedgerUnavailable, match="did not confirm the write to its disk"):
            await Ledger(client, T0).rates.publish(plan)


async def test_rounds_over_several_orgs_and_everything_that_reads_them(ledger: Ledger, now: Now) -> None:
    history = History.of(seed=29, polls=40)
    await ledger.client.delete(keys.rates("default"))
    await ledger.rates.publish(history.plan())
    for org in ORGS:
        await ledger.accounts.upsert(org, who="ann", contact="ops")
        await ledger.budgets.put(org, "vision", None, CREDIT, who="ann", period="day")
        await ledger.budgets.put(org, "vision", "ann", CREDIT, who="ann", period="month")
    for org in ORGS:
        await ledger.accounts.grant(org, 10**9, key="k", who="ann", effective_us=T0)
    it = Bench(ledger, "")
    for number, at in enumerate(history.polls):
        now.us = at
        await it.take(history.snapshot(number))
    runs, buckets = history.expected()
    assert {run: micro for run, micro in (await it.totals()).items() if micro} == runs
    assert await it.buckets() == buckets
    now.us = T0 + 60 * 24 * HOUR
    assert await roll_up(ledger, now.us)
    report = await usage(ledger, UsageQuery(from_us=T0, to_us=T0 + SPAN + HOUR, group_by=("org",)))
    assert sum(row.micro for row in report.rows) == sum(runs.values())
    assert {balance.org for balance in await ledger.accounts.balances()} == set(ORGS)
    for org in ORGS:
        assert len(await ledger.budgets.states(org)) == 2
        await ledger.budgets.remove(org, "vision", "ann", who="ann")
        entries, _ = await ledger.accounts.journal(org)
        assert {entry["type"] for entry in entries} >= {"org", "grant"}
        assert await funds(ledger, org)
