"""Events, notices and auto top-up where keys are spread over nodes: each step is of keys of one node."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from enforcer.watch import Watch
from ledger.connect import connect
from ledger.notice_prefs import NoticePreferences, Preferences
from ledger.notices import Recipient
from ledger.purchase_step import Order, Paid
from ledger.purchases import Purchases
from ledger.store import Ledger
from ledger.top_ups import Card, Terms, TopUps
from ledger.verify import verify
from tests.integration.test_backends import cluster_url

__all__ = ["cluster_url"]  # a fixture
pytestmark = [pytest.mark.redis, pytest.mark.slow]
T0 = 1_795_000_000_000_000
CREDIT = 1_000_000


@pytest.fixture
async def ledger(cluster_url: str) -> AsyncIterator[Ledger]:
    async with connect(cluster_url, None) as client:
        await client.flushall()
        yield Ledger(client, T0)


async def test_an_event_on_its_way_to_people(ledger: Ledger) -> None:
    preferences = NoticePreferences(ledger.client, ledger.scripts)
    await ledger.accounts.grant("acme", CREDIT, key="k", who="t")
    await preferences.put("acme", Preferences(email=("ops@example.org",)), who="t")
    assert (await preferences.read("acme")).email == ("ops@example.org",)
    assert await ledger.notices.lead("me", 60)
    assert not await ledger.notices.lead("you", 60)
    event = {"event": "1", "type": "stage", "org": "acme"}
    assert await ledger.notices.note(event)
    assert not await ledger.notices.note(event)
    before = await ledger.notices.cursor("router")
    ((place, body),) = await ledger.notices.events(before, 10)
    to = [Recipient("email", "ops@example.org", "g", 0)]
    assert await ledger.notices.route(before, place, body, "acme", to)
    assert not await ledger.notices.route(before, place, body, "acme", to)
    (due,) = await ledger.notices.due(10)
    notice = await ledger.notices.take(due)
    assert notice is not None
    assert await ledger.notices.take(due) is None
    await ledger.notices.later(notice, 0)
    assert await ledger.notices.due(10) == [due]
    await ledger.notices.done(notice)
    assert await ledger.notices.due(10) == []
    await Watch(ledger, preferences).once()


async def test_an_order_of_auto_top_up(ledger: Ledger) -> None:
    top_ups, purchases = TopUps(ledger.client, ledger.scripts), Purchases(ledger.client, ledger.scripts)
    await top_ups.put("acme", Terms(50 * CREDIT, 100 * CREDIT, 300 * CREDIT, 0, True, "t"))
    await top_ups.keep_card("acme", Card("cus_1", "pm_1", "visa", "4242", "2030-04", "ord_1", 1, "t"))
    order = await top_ups.claim(await top_ups.read("acme"), 500, "usd")
    assert isinstance(order, Order)
    assert await top_ups.orgs() == ["acme"]
    assert (await top_ups.read("acme")).order == order.id
    assert await purchases.paid(Paid("acme", order.id, "pi_1", 500, "usd")) == "credited"
    after = await top_ups.read("acme")
    assert (after.order, after.month_micro) == ("", 100 * CREDIT)
    assert (await verify(ledger))["ok"]
    await top_ups.remove("acme", "t")
