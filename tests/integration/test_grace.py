"""Every job has its own whole grace; one enforcer acts at a time; an event has one id, whatever happens."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from enforcer.actions.base import Outcome
from enforcer.lease import Lease
from enforcer.stages import Stage
from ledger import keys
from ledger.connect import Client
from ledger.errors import LedgerUnavailable
from ledger.exhaustion import ORG_TIER, TierState
from tests.integration.test_admission_crashes import start
from tests.stages_lab import CREDIT, MINUTE, Cluster, Scheduler


async def test_a_job_that_starts_late_in_the_grace_has_a_whole_one(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1")
    assert await cluster.after(14) == Stage.GRACE
    await cluster.after(9)
    cluster.start("late")
    await cluster.after(0.5)
    assert cluster.scheduler.done == [("signal", "1"), ("signal", "late")]
    await cluster.after(0.5)
    assert cluster.scheduler.done[2:] == [("stop", "1")]
    cluster.start("2")  # so that there is too little for what runs
    for _ in range(8):
        await cluster.after(1)
    assert ("stop", "late") not in cluster.scheduler.done
    await cluster.after(1.5)
    assert ("stop", "late") in cluster.scheduler.done
    assert ("stop", "2") not in cluster.scheduler.done


async def test_the_grace_begins_when_the_signal_is_delivered(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(CREDIT, "1")
    cluster.scheduler.deaf = {"1"}
    assert await cluster.after(14) == Stage.GRACE
    for _ in range(9):
        await cluster.after(1)
    cluster.scheduler.deaf = set()
    await cluster.after(0.5)
    assert await cluster.after(9) == Stage.ACT
    assert cluster.scheduler.done == [("signal", "1")]
    await cluster.after(1)
    assert cluster.scheduler.done == [("signal", "1"), ("suspend", "1")]


async def test_what_cannot_be_told_is_acted_upon_after_a_whole_grace_of_trying(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(CREDIT, "1")
    cluster.scheduler.deaf = {"1"}
    await cluster.after(14)
    for _ in range(9):
        await cluster.after(1)
    assert cluster.scheduler.done == []
    await cluster.after(1)
    assert cluster.scheduler.done == [("suspend", "1")]


async def test_while_no_enforcer_was_there_nobody_had_a_grace(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1", "2")
    cluster.scheduler.deaf = {"2"}
    assert await cluster.after(14) == Stage.GRACE
    assert await cluster.after(30) == Stage.ACT  # nobody looked in between
    assert cluster.scheduler.done == [("signal", "1"), ("stop", "1")]
    cluster.scheduler.deaf = set()
    cluster.start("3")
    await cluster.after(1)
    assert sorted(cluster.scheduler.done[2:]) == [("signal", "2"), ("signal", "3")]
    await cluster.after(9)
    assert len(cluster.scheduler.done) == 4
    await cluster.after(1)
    assert sorted(cluster.scheduler.done[4:]) == [("stop", "2"), ("stop", "3")]


async def test_what_runs_and_has_enough_is_left_alone_while_others_wait_to_go_on(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(9 * CREDIT, *"123456789")
    assert await cluster.after(1) == Stage.GRACE
    assert await cluster.after(10) == Stage.ACT
    assert len(cluster.scheduler.done) == 18  # all are told and suspended, with more than 2 credits left
    cluster.start("x")
    for _ in range(15):
        assert await cluster.after(1) == Stage.ACT  # the nine would need 9
    assert len(cluster.scheduler.done) == 18
    for _ in range(10):
        await cluster.after(1)
    assert cluster.scheduler.done[18:] == [("signal", "x")]  # now it has too little
    await cluster.after(10)
    assert cluster.scheduler.done[19:] == [("suspend", "x")]


async def test_a_job_that_was_queued_again_is_another_run_and_told_again(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1")
    assert await cluster.after(14) == Stage.GRACE
    await cluster.after(9)
    cluster.start("1")  # under the same id
    await cluster.after(1)
    assert cluster.scheduler.done == [("signal", "1"), ("signal", "1")]
    await cluster.after(10)
    assert cluster.scheduler.done[2:] == [("stop", "1")]


async def test_a_scheduler_without_signals_gives_as_long_a_grace(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1")
    cluster.scheduler.outcome = Outcome.CANNOT
    await cluster.after(14)
    await cluster.after(9)
    assert [what for what, _ in cluster.scheduler.done] == ["signal"]
    cluster.scheduler.outcome = Outcome.DONE
    await cluster.after(1)
    assert [what for what, _ in cluster.scheduler.done] == ["signal", "stop"]


async def test_the_reason_says_why_since_when_and_how_it_goes_on(client: Client) -> None:
    for then, back in (("suspend", "goes on by itself"), ("stop", "can be submitted again")):
        await client.flushall()
        cluster = Cluster(client, then)
        await cluster.ledger.accounts.upsert("acme", who="test", contact="billing@example.org")
        await cluster.setup(CREDIT, "1")
        await cluster.after(14)
        await cluster.after(10)
        told, done = cluster.scheduler.reasons
        for text in (told, done):
            assert text.startswith("Org acme has too few credits for what runs since 2026-11-18T")
            assert f"{back} once there are credits. Ask billing@example.org for credits." in text
        assert f"will be {then.rstrip('e')}{'p' if then == 'stop' else ''}ed at 2026-11-18T" in told
        assert f"So this was {then.rstrip('e')}{'p' if then == 'stop' else ''}ed;" in done


class Broken(Scheduler):
    """Fails in a way that nobody thought of, for one job."""

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        if workload_id == "1":
            raise KeyError("items")
        return await super().signal(workload_id, reason)


async def test_a_fault_in_what_is_done_for_one_job_stops_no_other_job_and_no_other_org(client: Client) -> None:
    cluster = Cluster(client, scheduler=Broken())
    await cluster.ledger.accounts.upsert("zeta", who="test")  # looked at after acme
    await cluster.setup(CREDIT, "1", "2")
    assert await cluster.after(0.1, org="zeta") == Stage.BLOCK
    assert cluster.scheduler.done == [("signal", "2")]


class Deaf:
    """A webhook that answers after a long time."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def note(self, event: Mapping[str, Any]) -> None: ...

    async def deliver(self) -> None:
        self.asked.set()
        await asyncio.Event().wait()


async def test_a_slow_receiver_of_events_keeps_nobody_running_on(client: Client) -> None:
    cluster = Cluster(client, interval=0.05, notifier=Deaf())
    await cluster.setup(CREDIT, "1")
    running = asyncio.create_task(cluster.reaper.run())
    async with asyncio.timeout(10):
        await cluster.notifier.asked.wait()
        cluster.now += 14 * MINUTE
        await cluster.meter()
        while not cluster.scheduler.done:  # noqa: ASYNC110 - another task does it
            await asyncio.sleep(0.01)
        cluster.reaper.stop()
        await running


class Slow(Scheduler):
    """Its signal takes until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.go = asyncio.Event()

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        self.asked.set()
        await self.go.wait()
        return await super().signal(workload_id, reason)


async def test_the_lease_is_kept_through_a_long_round_and_short_after_a_kill(client: Client) -> None:
    slow = Slow()
    one, other = Cluster(client, interval=1, scheduler=slow), Cluster(client, interval=1)
    await one.setup(CREDIT, "1")
    looking = asyncio.create_task(one.after(14))
    await slow.asked.wait()
    loop = asyncio.get_running_loop()
    until = loop.time() + 4  # the lease is of three intervals
    while loop.time() < until:
        assert not await other.reaper.round()
        await asyncio.sleep(0.2)
    slow.go.set()
    assert await looking == Stage.GRACE
    start = loop.time()  # it is never heard of again
    while not await other.reaper.round():
        assert loop.time() - start < 4
        await asyncio.sleep(0.1)


async def test_after_kill_9_of_the_enforcer_another_acts_within_three_intervals(
    client: Client, valkey_url: str, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"redis: {{url: '{valkey_url}'}}\nenforcer: {{listen: '127.0.0.1:0'}}\nmetering: {{interval_seconds: 1}}\n"
    )

    async def leader(*others: bytes) -> bytes:
        while (found := await client.get(keys.REAPER) or b"") in (b"", *others):  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.05)
        return found

    async with asyncio.timeout(60):
        one = await start("tests.enforcer_worker", str(settings))
        first = await leader()
        other = await start("tests.enforcer_worker", str(settings))
        assert other.stdout is not None
        assert (await other.stdout.readline()).startswith(b"http")
        one.send_signal(signal.SIGKILL)
        await one.wait()
        async with asyncio.timeout(5):  # three intervals, and a look
            second = await leader(first)
        assert other.stdin is not None
        other.stdin.write(b"\n")  # it ends in order, and leaves the lease to others at once
        await other.wait()
        assert await client.get(keys.REAPER) != second


async def test_who_lost_the_lease_stops_in_the_middle_of_a_round(client: Client) -> None:
    slow = Slow()
    cluster = Cluster(client, interval=1, scheduler=slow)
    await cluster.setup(CREDIT, *(str(number) for number in range(20)))
    cluster.now += 14 * MINUTE
    await cluster.meter()
    looking = asyncio.create_task(cluster.reaper.round())
    await slow.asked.wait()
    await client.set(keys.REAPER, "another")
    async with asyncio.timeout(5):
        while cluster.reaper._lease._until:  # noqa: ASYNC110 - the renewal finds out
            await asyncio.sleep(0.02)
    slow.go.set()
    assert not await looking
    assert 0 < len(slow.done) <= 8  # those that were under way
    assert cluster.metrics.stages == {}


async def test_a_lease_given_up_is_free_at_once(client: Client) -> None:
    store = Cluster(client).ledger.exhaustion
    one, other = Lease(store, 60), Lease(store, 60)
    assert await one.take()
    await other.give_up()
    assert not await other.take()
    await one.give_up()
    assert await other.take()


async def test_a_stage_is_written_once_and_from_what_it_was_decided_from(any_client: Client) -> None:
    store = Cluster(any_client).ledger.exhaustion
    none, warn, grace = TierState(), TierState(1, 5), TierState(3, 7, 9)
    for _ in range(2):
        assert await store.write("acme", ORG_TIER, none, warn, {"stage": "warn"}, b"{}")
    assert not await store.write("acme", ORG_TIER, none, grace, {"stage": "grace"}, b"{}")
    assert await store.write("acme", ORG_TIER, warn, grace, {"stage": "grace"}, b"{}")
    state = await store.read("acme")
    assert (state.stages, state.outbox) == ({ORG_TIER: grace}, [b"{}", b"{}"])
    assert await any_client.xlen(keys.of_org("acme").journal) == 2  # type: ignore[union-attr]
    assert await store.write("acme", ORG_TIER, grace, None, {"stage": "ok"})
    assert (await store.read("acme")).stages == {}


class Post:
    """Takes events, or fails before or after."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.fails = ""

    async def note(self, event: Mapping[str, Any]) -> None:
        if self.fails == "before":
            raise LedgerUnavailable("gone")
        self.events.append(event)
        if self.fails == "after":
            raise LedgerUnavailable("gone")

    async def deliver(self) -> None: ...


@pytest.mark.parametrize("fails", ["", "before", "after"])
async def test_an_event_is_never_lost_and_has_one_id(client: Client, fails: str) -> None:
    post = Post()
    cluster = Cluster(client, notifier=post)
    await cluster.setup(CREDIT, "1")
    post.fails = fails
    try:
        await cluster.after(14)
    except LedgerUnavailable:
        post.fails = ""
        await cluster.after(0.1)
    assert len({event["event"] for event in post.events}) == 1
    assert len(post.events) == (2 if fails == "after" else 1)
    assert {event["stage"] for event in post.events} == {"grace"}
    assert await cluster.stages() == ["grace"]
    assert (await cluster.ledger.exhaustion.read("acme")).outbox == []
