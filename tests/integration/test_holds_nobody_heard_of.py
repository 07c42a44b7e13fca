"""A hold of which nobody was told ends at once: who asked was given up on, or has gone, when the ledger said yes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from enforcer.admission.desk import Desk
from ledger.admission import AdmissionRequest
from ledger.connect import Client
from ledger.hold_ids import new_hold_id
from tests.integration.test_let_through import a_desk
from tests.stages_lab import CREDIT

pytestmark = pytest.mark.redis


@pytest.fixture(params=["deny", "allow"])
async def desk(client: Client, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Desk]:
    async with a_desk(client, tmp_path / "spool", on_ledger_down=request.param) as desk:
        await desk.ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="test")
        await desk.ledger.admissions.quote(a_request())  # so that the budgets of the org are at hand
        yield desk


def a_request() -> AdmissionRequest:
    return AdmissionRequest(
        cluster="c", org="acme", project="p", user="u", preset="small", hold_id=new_hold_id("acme")
    )  # fmt: skip


async def holds(desk: Desk) -> int:
    return (await desk.ledger.accounts.balance("acme")).holds


async def released(desk: Desk) -> None:
    """Returns once the one hold is gone."""
    assert await holds(desk) == 1
    desk.aftermath.start()
    async with asyncio.timeout(10):
        while await holds(desk):  # noqa: ASYNC110 - the enforcer ends it by the side
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("is_shared", [False, True], ids=["its own time", "shared time"])
async def test_an_answer_that_comes_as_its_handler_is_cancelled(
    desk: Desk, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Any = desk.ledger.admissions._calls
    real = calls.ask

    def ask(*arguments: Any) -> Any:
        asked = real(*arguments)
        asked.answer.add_done_callback(lambda _: deciding.cancel())
        return asked

    monkeypatch.setattr(calls, "ask", ask)
    until = desk.until() if is_shared else None
    deciding = asyncio.create_task(desk.decide(a_request(), who="test", via="test", until=until))
    with pytest.raises(asyncio.CancelledError):
        await deciding
    await released(desk)


async def test_an_answer_that_was_lost_once_and_is_not_heard_when_it_is_given_again(desk: Desk) -> None:
    request = a_request()
    await desk.ledger.admissions.admit(request, desk.terms)
    decision = await desk.decide(request, who="test", via="test")
    assert (decision.replayed, decision.hold_id) == (True, request.hold_id)
    desk.unheard(request, decision)
    await released(desk)
