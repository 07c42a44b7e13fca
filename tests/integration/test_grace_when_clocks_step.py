"""A grace is as long as it was said to be, however clocks are set meanwhile and however often enforcers are killed."""

from __future__ import annotations

import pytest

from enforcer.stages import Stage
from ledger import keys
from ledger.connect import Client
from tests.stages_lab import CREDIT, HOUR, MINUTE, Cluster

pytestmark = pytest.mark.redis
TOLD, STOPPED = ("signal", "1"), ("stop", "1")


async def in_grace(client: Client) -> Cluster:
    """An org whose one job was told just now that it has ten minutes."""
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1")
    assert await cluster.after(14) == Stage.GRACE
    assert cluster.scheduler.done == [TOLD]
    return cluster


async def killed(cluster: Cluster, client: Client) -> None:
    await client.delete(keys.REAPER)
    cluster.restart()


@pytest.mark.parametrize("hours", [1, 24 * 365])
async def test_clocks_set_forward_end_no_grace(client: Client, hours: int) -> None:
    cluster = await in_grace(client)
    cluster.set_clocks(hours * HOUR)
    for _ in range(18):
        assert await cluster.after(0.5) == Stage.GRACE
    assert cluster.scheduler.done == [TOLD]
    assert await cluster.after(1) == Stage.ACT
    assert cluster.scheduler.done == [TOLD, STOPPED]


async def test_clocks_set_forward_end_no_grace_of_a_job_that_started_late(client: Client) -> None:
    cluster = await in_grace(client)
    await cluster.after(9)
    cluster.start("late")
    await cluster.after(0.5)
    cluster.start("2")
    assert await cluster.after(0.5) == Stage.ACT
    assert STOPPED in cluster.scheduler.done
    cluster.set_clocks(HOUR)
    for _ in range(8):
        assert await cluster.after(1) == Stage.ACT
    assert len(cluster.scheduler.done) == 4
    await cluster.after(1.5)
    assert ("stop", "late") in cluster.scheduler.done
    assert ("stop", "2") not in cluster.scheduler.done


async def test_clocks_set_back_end_no_grace_before_the_time_that_was_told(client: Client) -> None:
    cluster = await in_grace(client)
    cluster.set_clocks(-5 * MINUTE)
    for _ in range(14):
        assert await cluster.after(1) == Stage.GRACE
    assert await cluster.after(1) == Stage.ACT
    assert cluster.scheduler.done == [TOLD, STOPPED]


async def test_what_could_not_be_told_has_a_whole_grace_of_tries_too(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1")
    cluster.scheduler.deaf = {"1"}
    await cluster.after(14)
    for _ in range(5):
        await cluster.after(1)
    cluster.set_clocks(HOUR)
    for _ in range(4):
        await cluster.after(1)
    assert cluster.scheduler.done == []
    for _ in range(10):
        await cluster.after(1)
    assert cluster.scheduler.done == [STOPPED]


async def test_what_is_left_of_a_grace_outlives_an_enforcer_and_no_more(client: Client) -> None:
    cluster = await in_grace(client)
    for _ in range(5):
        await cluster.after(1)
    await killed(cluster, client)
    cluster.set_clocks(HOUR)
    assert await cluster.after(20) == Stage.GRACE  # while nobody looked, nobody had a grace
    for _ in range(4):
        assert await cluster.after(1) == Stage.GRACE
        assert cluster.scheduler.done == [TOLD]
    assert await cluster.after(1) == Stage.ACT
    assert cluster.scheduler.done == [TOLD, STOPPED]


async def test_enforcers_that_are_killed_again_and_again_end_a_grace_all_the_same(client: Client) -> None:
    cluster = await in_grace(client)
    minutes = 0
    while STOPPED not in cluster.scheduler.done:
        await killed(cluster, client)
        for _ in range(3):  # of which two minutes are counted
            await cluster.after(1)
            minutes += 1
        assert minutes < 30
    assert minutes == 15


async def test_another_run_is_told_anew_also_after_clocks_were_set_back(client: Client) -> None:
    cluster = await in_grace(client)
    cluster.set_clocks(-10 * MINUTE)  # before the signal, by what they say
    cluster.start("1")
    for _ in range(12):
        await cluster.after(1)
    assert cluster.scheduler.done[:2] == [TOLD, TOLD]


async def test_facts_are_as_old_as_they_are_also_after_clocks_were_set_back(client: Client) -> None:
    cluster = await in_grace(client)
    await cluster.after(9)
    cluster.set_clocks(-HOUR)  # by what they say, the last snapshot is of an hour from now
    for _ in range(80):
        assert await cluster.after(1, metered=False) == Stage.GRACE
    assert cluster.scheduler.done == [TOLD]
    assert await cluster.after(1) == Stage.ACT
    assert cluster.scheduler.done == [TOLD, STOPPED]
