"""What was let in while the ledger was away gets no hold any more once it is charged, or over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from enforcer.admission.desk import Desk
from exporter.books import Books
from exporter.rounds import Rounds
from ledger import keys
from ledger.admission import AdmissionRequest
from ledger.clock import now_us
from ledger.connect import Client
from ledger.model import Code, Observation, Snapshot
from ledger.verify import verify
from tests.integration.test_let_through import a_desk, journaled
from tests.stages_lab import CREDIT, MINUTE, Nothing

pytestmark = pytest.mark.redis
SECOND = 1_000_000


@pytest.fixture
async def desk(client: Client, tmp_path: Path) -> AsyncIterator[Desk]:
    async with a_desk(client, tmp_path / "spool") as desk:
        await desk.ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="test")
        yield desk


async def let_through(desk: Desk, workload_id: str | None = None, count: int = 1) -> str:
    """The id of the hold that is to be made once the ledger is back."""
    desk.aftermath.is_away = True
    request = AdmissionRequest(
        cluster="c", org="acme", project="p", user="u", preset="small", workload_id=workload_id, count=count
    )
    decision = await desk.decide(request, who="test", via="test")
    assert decision.code is Code.LEDGER_UNAVAILABLE
    assert decision.hold_id is not None
    return decision.hold_id


async def charge(desk: Desk, *jobs: tuple[str, str | None, bool]) -> None:
    """A round in which jobs are first listed: (id, hold it names, whether it is over already)."""
    taken = now_us()
    listed = [
        Observation(
            name, "job", "acme", "p", "u", "small", "", taken - SECOND, taken - SECOND // 2 if over else None,
            hold_id=hold,
        )
        for name, hold, over in jobs
    ]  # fmt: skip
    rounds = Rounds(Books(desk.ledger), Nothing(), 15 * MINUTE)
    await rounds.take(Snapshot("s", "c", taken, listed), None)


async def caught_up(desk: Desk) -> set[str]:
    """The holds there are once the enforcer has told the ledger."""
    waiting = len(desk.aftermath._spool.waiting)
    desk.aftermath.start()
    await journaled(desk.ledger, waiting)
    async with asyncio.timeout(10):
        while desk.aftermath._spool.waiting:  # noqa: ASYNC110 - another task empties it
            await asyncio.sleep(0.01)
    assert (await verify(desk.ledger))["ok"]
    found = await desk.ledger.client.hkeys(keys.of_org("acme").holds)  # type: ignore[misc]
    return {name.decode() for name in found}


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_job_that_names_its_hold_is_held_no_more_once_it_was_charged(desk: Desk, is_over: bool) -> None:
    charged, waits = await let_through(desk), await let_through(desk)
    await charge(desk, ("1", charged, is_over))
    assert await caught_up(desk) == {waits}


async def test_a_hold_that_was_made_after_all_and_has_ended_is_not_made_again(desk: Desk) -> None:
    hold = await let_through(desk)
    # Its answer came too late: it was made, its job started, and only then the enforcer knows that the ledger is there.
    item = desk.aftermath._spool.waiting[0]
    assert (await desk.ledger.admissions.admit(item.request, item.terms)).hold_id == hold
    await charge(desk, ("1", hold, False))
    assert await caught_up(desk) == set()


@pytest.mark.parametrize("count", [1, 3])
async def test_work_that_is_charged_by_its_own_id_is_held_no_more(desk: Desk, count: int) -> None:
    await let_through(desk, "7", count)
    await charge(desk, ("7", None, False))
    assert await caught_up(desk) == set()


async def test_an_array_of_which_some_tasks_are_charged_is_held_for_the_others(desk: Desk) -> None:
    hold = await let_through(desk, count=3)
    item = desk.aftermath._spool.waiting[0]
    await charge(desk, ("1", hold, False))
    await charge(desk, ("1", hold, False))  # it was queued again
    before = await desk.ledger.accounts.balance("acme")
    assert before.holds == 0
    assert await caught_up(desk) == {hold}
    after = await desk.ledger.accounts.balance("acme")
    assert after.held_micro - before.held_micro == item.required_micro // 3 * 2
    await charge(desk, ("2", hold, False), ("3", hold, True))
    assert (await desk.ledger.accounts.balance("acme")).holds == 0
    # Should the enforcer not know that it did: nothing is held once more.
    decision = await desk.ledger.admissions.admit(replace(item.request, was_let_in=True), item.terms)
    assert (decision.allowed, decision.hold_id) == (True, None)
    assert (await verify(desk.ledger))["ok"]


async def test_an_array_of_which_all_tasks_are_charged_is_held_no_more(desk: Desk) -> None:
    hold = await let_through(desk, count=2)
    await charge(desk, ("1", hold, False), ("2", hold, True))
    assert await caught_up(desk) == set()


async def test_what_is_held_late_ends_with_its_first_charge(desk: Desk) -> None:
    hold = await let_through(desk)
    assert await caught_up(desk) == {hold}
    await charge(desk, ("1", hold, False))
    assert await desk.ledger.client.hlen(keys.of_org("acme").holds) == 0  # type: ignore[misc]
    assert (await verify(desk.ledger))["ok"]


async def test_what_was_settled_is_forgotten_after_an_hour(desk: Desk) -> None:
    await charge(desk, ("1", "acme.1", False))
    client, names = desk.ledger.client, keys.of_org("acme")
    score = await client.zscore(names.settled, "acme.1")
    assert score is not None
    assert 50 * MINUTE < score * 1000 - now_us() < 70 * MINUTE
    await client.zadd(names.settled, {"acme.1": 1, f"acme.1{keys.US}c{keys.US}1": 1})
    await charge(desk, ("2", "acme.2", False))
    found = [name.decode() for name in await client.zrange(names.settled, 0, -1)]
    assert found == ["acme.2", f"acme.2{keys.US}c{keys.US}2", f"acme.2{keys.US}"]
