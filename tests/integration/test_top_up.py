"""Auto top-up with Stripe's official library against a stand-in: one order in flight, under the cap, charged once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from console.payments import Till
from console.reconcile import Reconciler
from console.top_up import CHARGE_WITHIN_US, OTHERS_US, TopUpRunner
from ledger.clock import now_us
from ledger.connect import Client, connect
from ledger.errors import CreditsError
from ledger.purchase_step import TOP_UP, month_of
from ledger.purchases import Purchases
from ledger.verify import verify
from tests.dying import Dying, Killed
from tests.shop import Shop, Stumbling, left_of, open_shop
from tests.standins.faults import Fault

pytestmark = pytest.mark.redis
PATH = "/v1/orgs/acme/auto-top-up"
TERMS = {"threshold": "50", "credits": "100", "monthly_cap": "300", "cool_down_minutes": 0}
CREDIT = 1_000_000
ROOT = Path(__file__).parents[2]
INTENTS = "/v1/payment_intents"


class Ahead:
    """Now, and as much later as the test says."""

    def __init__(self) -> None:
        self.us = 0

    def __call__(self) -> int:
        return now_us() + self.us


@asynccontextmanager
async def open_topped(client: Client, card: bool = True, **terms: Any) -> AsyncIterator[tuple[Shop, Ahead]]:
    """A shop whose org acme bought 10 credits with a card that it saved, and has auto top-up on."""
    ahead = Ahead()
    async with open_shop(client, ahead) as shop:
        order = await shop.buy("10", "first", save_card=card)
        shop.stripe.pay(shop.session_of(order))
        await shop.stripe.settle()
        status, shape = await shop.call("PUT", PATH, {**TERMS, **terms})
        assert status == 200, shape
        yield shop, ahead


Topped = tuple[Shop, Ahead]


@pytest.fixture
async def topped(client: Client) -> AsyncIterator[Topped]:
    async with open_topped(client) as found:
        yield found
        report = await verify(found[0].ledger)
        assert report["ok"], report["differences"]


def runner(shop: Shop) -> TopUpRunner:
    """Another process: it knows only what the ledger and the provider know."""
    return TopUpRunner(shop.ledger, shop.till)


async def shape_of(shop: Shop) -> Any:
    status, shape = await shop.call("GET", PATH, role="viewer")
    assert status == 200
    return shape


async def told(shop: Shop) -> list[tuple[str, str, bool]]:
    entries, _ = await shop.ledger.accounts.journal("acme", limit=1000)
    return [(e["outcome"], e["reason"], e["paused"]) for e in entries if e["type"] == "top_up"]


def card_of(shop: Shop) -> Any:
    (card,) = (method for method in shop.stripe.methods.values() if method["customer"] is not None)
    return card


def charges(shop: Shop) -> list[Any]:
    return [p for p in shop.stripe.payments.values() if p["metadata"].get("kind") == TOP_UP]


async def test_below_the_threshold_the_saved_card_is_charged_once(topped: Topped) -> None:
    shop, _ = topped
    before = await shape_of(shop)
    assert (before["state"], before["card"]["last4"], before["card"]["expires"]) == ("ready", "4242", "2030-04")
    assert before["card"]["agreed_by"].startswith("token:")
    for _ in range(3):
        await runner(shop).once()
    await shop.stripe.settle()
    assert await shop.balance() == "110"
    (charge,) = charges(shop)
    assert (charge["amount"], charge["status"]) == (500, "succeeded")
    after = await shape_of(shop)
    assert (after["state"], after["order"], after["ordered"]) == ("ready", None, "100")
    entries, _ = await shop.ledger.accounts.journal("acme")
    assert [e["type"] for e in entries] == ["order", "grant", "card", "top_up_terms", "order", "grant", "top_up"]
    assert entries[-2]["payment"] == charge["id"]
    assert next(e["from"] for e in entries if e["type"] == "top_up_terms") == "127.0.0.1"
    assert await told(shop) == [("done", "", False)]
    assert await runner(shop).once() == {"enough": 1}


async def test_many_enforcers_at_once_make_one_order(topped: Topped) -> None:
    shop, _ = topped
    shop.stripe.hook = ""
    await asyncio.gather(*(runner(shop).once() for _ in range(8)))
    assert len(charges(shop)) == 1
    await asyncio.gather(*(runner(shop).once() for _ in range(8)))
    assert len(charges(shop)) == 1
    assert await shop.balance() == "110"
    for _ in range(3):
        assert await shop.till.provider.news_since(0)
        await shop.reconciler.once()
    assert await shop.balance() == "110"


async def test_what_a_charge_answers_is_no_credit_until_it_is_asked_for_or_told(topped: Topped) -> None:
    shop, _ = topped
    shop.stripe.hook = ""
    await runner(shop).once()
    assert await shop.balance() == "10"
    assert (await shape_of(shop))["state"] == "in_flight"
    await runner(shop).once()
    assert await shop.balance() == "110"


async def test_the_monthly_cap_holds_and_is_told_once(client: Client) -> None:
    async with open_topped(client, threshold="1000") as (shop, ahead):
        for _ in range(6):
            await runner(shop).once()
            await shop.stripe.settle()
        assert len(charges(shop)) == 3
        assert (await shape_of(shop))["state"] == "capped"
        assert [outcome for outcome, _, _ in await told(shop)] == ["done", "done", "done", "capped"]
        ahead.us = 32 * 86_400_000_000
        await runner(shop).once()
        await shop.stripe.settle()
        assert len(charges(shop)) == 4
        assert await shop.balance() == "410"


async def test_it_cools_down_after_success_and_failure(client: Client) -> None:
    async with open_topped(client, threshold="1000", cool_down_minutes=30) as (shop, ahead):
        for expected in (1, 1):
            await runner(shop).once()
            await shop.stripe.settle()
            assert len(charges(shop)) == expected
        assert (await shape_of(shop))["state"] == "cooling"
        ahead.us = 31 * 60_000_000
        card_of(shop)["_does"] = "declines"
        await runner(shop).once()
        assert len(charges(shop)) == 2
        assert await runner(shop).once() == {"cooling": 1}


async def test_three_declines_pause_it_until_the_owner_says_go_on(topped: Topped) -> None:
    shop, _ = topped
    card_of(shop)["_does"] = "declines"
    for _ in range(6):
        await runner(shop).once()
    assert [c["status"] for c in charges(shop)] == ["canceled"] * 3
    shape = await shape_of(shop)
    assert (shape["state"], shape["paused_reason"], shape["declines"]) == ("paused", "insufficient_funds", 3)
    assert shape["ordered"] == "0"
    assert [paused for _, _, paused in await told(shop)] == [False, False, True]
    card_of(shop)["_does"] = "pays"
    assert await runner(shop).once() == {"paused": 1}
    assert (await shop.call("PUT", PATH, TERMS))[1]["state"] == "ready"
    await runner(shop).once()
    await shop.stripe.settle()
    assert await shop.balance() == "110"


@pytest.mark.parametrize("soft", [True, False])
async def test_a_card_that_asks_its_owner_pauses_it_at_once(topped: Topped, soft: bool) -> None:
    shop, _ = topped
    card = card_of(shop)
    card["_does"] = "asks"
    if soft:
        card["_soft"] = True
    await runner(shop).once()
    shape = await shape_of(shop)
    assert (shape["state"], shape["paused_reason"]) == ("paused", "authentication_required")
    assert [c["status"] for c in charges(shop)] == ["canceled"]


async def test_a_card_that_was_removed_at_stripe_pauses_it_and_is_forgotten(topped: Topped) -> None:
    shop, _ = topped
    card_of(shop)["customer"] = None
    await runner(shop).once()
    shape = await shape_of(shop)
    assert (shape["state"], shape["paused_reason"], shape["card"]) == ("paused", "card_removed", None)
    await shop.reconciler.once()
    assert (await shape_of(shop))["card"] is None
    order = await shop.buy("10", "again", save_card=True)  # a card is saved anew, at the same customer or another
    shop.stripe.pay(shop.session_of(order))
    await shop.stripe.settle()
    assert (await shop.call("PUT", PATH, TERMS))[1]["state"] == "ready"
    await runner(shop).once()
    await shop.stripe.settle()
    assert await shop.balance() == "120"


async def test_a_slow_charge_stays_in_flight_until_it_is_known(topped: Topped) -> None:
    shop, _ = topped
    card_of(shop)["_does"] = "waits"
    for _ in range(3):
        await runner(shop).once()
    (charge,) = charges(shop)
    assert (await shape_of(shop))["state"] == "in_flight"
    charge.update(status="succeeded", amount_received=charge["amount"])
    await runner(shop).once()
    assert await shop.balance() == "110"


async def test_a_charge_that_stripe_does_not_know_any_more_does_not_hang(topped: Topped) -> None:
    shop, _ = topped
    card_of(shop)["_does"] = "waits"
    await runner(shop).once()
    del shop.stripe.payments[charges(shop)[0]["id"]]
    await runner(shop).once()
    shape = await shape_of(shop)
    assert (shape["order"], shape["declines"]) == (None, 1)
    assert (await told(shop))[-1][:2] == ("failed", "payment_unknown")


FAULTS = {
    "500, then it works": [Fault(INTENTS, status=500, method="POST")],
    "500 for long": [Fault(INTENTS, status=500, method="POST", times=2)],
    "done, but the answer is lost": [Fault(INTENTS, cut=True, after=True, method="POST", times=2)],
    "done, but no answer comes": [Fault(INTENTS, silent=True, after=True, method="POST", times=2)],
    "not done, and no answer comes": [Fault(INTENTS, silent=True, method="POST", times=2)],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("webhook", [True, False])
async def test_what_goes_wrong_on_the_way_charges_once(topped: Topped, faults: list[Fault], webhook: bool) -> None:
    shop, ahead = topped
    if not webhook:
        shop.stripe.hook = ""
    for fault in faults:
        shop.stripe.faults.add(replace(fault))
    for _ in range(3):
        await runner(shop).once()
        await shop.stripe.settle()
        ahead.us += OTHERS_US + 1
    assert await shop.balance() == "110"
    assert len(charges(shop)) == 1
    assert (await shape_of(shop))["order"] is None


async def test_a_charge_whose_answer_was_lost_is_found_also_when_its_key_is_forgotten(topped: Topped) -> None:
    shop, ahead = topped
    shop.stripe.hook = ""
    shop.stripe.faults.add(Fault(INTENTS, cut=True, after=True, method="POST", times=2))
    await runner(shop).once()
    shop.stripe._known.clear()  # as after a day
    ahead.us = OTHERS_US + 1
    await runner(shop).once()
    assert len(charges(shop)) == 1
    assert await shop.balance() == "110"


async def test_what_was_never_charged_for_a_day_is_given_up_not_charged_again(topped: Topped) -> None:
    shop, ahead = topped
    shop.stripe.faults.add(Fault(INTENTS, status=500, times=2, method="POST"))
    await runner(shop).once()
    ahead.us = CHARGE_WITHIN_US + 1
    await runner(shop).once()
    assert charges(shop) == []
    assert await told(shop) == [("failed", "it could not be charged in time", False)]
    assert (await shape_of(shop))["declines"] == 0
    await runner(shop).once()
    await shop.stripe.settle()
    assert await shop.balance() == "110"


async def test_a_charge_of_another_amount_is_no_credit_and_pauses_it(topped: Topped) -> None:
    shop, _ = topped
    shop.stripe.hook = ""
    await runner(shop).once()
    charges(shop)[0]["amount_received"] = 499
    await runner(shop).once()
    assert await shop.balance() == "10"
    shape = await shape_of(shop)
    assert (shape["state"], shape["ordered"]) == ("paused", "100")
    assert "wrong_amount" in shape["paused_reason"]
    assert await shop.till.purchases.refusals() == {"wrong_amount": 1}


async def test_without_consent_no_card_is_kept(client: Client) -> None:
    async with open_topped(client, card=False) as (shop, _):
        assert (await shape_of(shop))["state"] == "no_card"
        assert await runner(shop).once() == {"no_card": 1}
        assert shop.stripe.methods == {}
        path, key = "/v1/orgs/acme/purchases", {"Idempotency_Key": "first"}
        assert (await shop.call("POST", path, {"credits": "10", "save_card": True}, **key))[0] == 409


async def test_ending_it_forgets_the_card_also_when_its_news_come_again(topped: Topped) -> None:
    shop, _ = topped
    assert (await shop.call("DELETE", PATH))[0] == 204
    assert [method["customer"] for method in shop.stripe.methods.values()] == [None]
    for event in shop.stripe.events:
        assert await shop.stripe.deliver(event) == 200
    await shop.reconciler.once()
    shape = await shape_of(shop)
    assert (shape["state"], shape["card"], shape["threshold"]) == ("off", None, None)
    assert await runner(shop).once() == {"off": 1}
    assert (await shop.call("DELETE", PATH))[0] == 204


async def test_refunds_of_top_ups_are_taken_back(topped: Topped) -> None:
    shop, _ = topped
    await runner(shop).once()
    await shop.stripe.settle()
    (charge,) = charges(shop)
    shop.stripe.refund(charge["id"], 250)
    await shop.stripe.settle()
    assert await shop.balance() == "60"


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"credits": "9"}, 422), ({"credits": "20000"}, 422), ({"threshold": "-1"}, 422), ({"monthly_cap": "99"}, 422),
        ({"cool_down_minutes": -1}, 422), ({"cool_down_minutes": 1e9}, 422), ({"more": 1}, 422),
        ({"threshold": "x"}, 422), ({"enabled": False}, 200), ({"threshold": 0}, 200),
    ],
)  # fmt: skip
async def test_terms_are_checked(topped: Topped, change: Any, status: int) -> None:
    shop, _ = topped
    assert (await shop.call("PUT", PATH, {**TERMS, **change}))[0] == status


async def test_who_may_set_it(topped: Topped) -> None:
    shop, _ = topped
    for role, status in (("viewer", 403), ("scheduler", 403), ("other", 403), (None, 401), ("admin", 200)):
        assert (await shop.call("PUT", PATH, TERMS, role))[0] == status, role
    for role, status in (("viewer", 403), ("scheduler", 403), ("other", 403), (None, 401)):
        assert (await shop.call("DELETE", PATH, role=role))[0] == status, role
    for method in ("PUT", "GET", "DELETE"):
        assert (await shop.call(method, "/v1/orgs/nobody/auto-top-up", TERMS, "admin"))[0] == 404
    assert (await shop.call("PUT", PATH, b"{"))[0] == 400


async def test_two_who_edit_do_not_overwrite_each_other(topped: Topped) -> None:
    shop, _ = topped
    await shape_of(shop)
    first = shop.answered["ETag"]
    assert (await shop.call("PUT", PATH, {**TERMS, "threshold": "60"}, If_Match=first))[0] == 200
    second = shop.answered["ETag"]
    for method, body in (("PUT", TERMS), ("DELETE", None)):
        status, problem = await shop.call(method, PATH, body, If_Match=first)
        assert (status, problem["code"]) == (412, "changed")
    assert ((await shape_of(shop))["threshold"], shop.answered["ETag"]) == ("60", second)
    assert (await shop.call("PUT", PATH, {**TERMS, "threshold": "60"}, If_Match=second))[0] == 200
    assert shop.answered["ETag"] == second  # nothing was changed
    assert (await shop.call("PUT", PATH, TERMS))[0] == 200  # the last one wins
    await runner(shop).once()  # an order is no edit
    assert (await shop.call("PUT", PATH, TERMS, If_Match="x"))[0] == 422
    assert (await shop.call("PUT", PATH, TERMS, If_Match='W/"x"'))[0] == 412
    assert (await shop.call("DELETE", PATH, If_Match=shop.answered.get("ETag", "*")))[0] == 204


async def test_while_an_order_is_in_flight_no_other_is_made(topped: Topped) -> None:
    shop, _ = topped
    card_of(shop)["_does"] = "waits"
    await runner(shop).once()
    seen = await shop.till.top_ups.read("acme")
    assert seen.order
    assert await shop.till.top_ups.claim(seen, 500, "usd") == "in_flight"
    after = await shop.till.top_ups.read("acme")
    assert (after.order, after.seq, after.month_micro) == (seen.order, seen.seq, seen.month_micro)
    assert len(charges(shop)) == 1


async def test_what_is_not_sold_any_more_is_said_once_and_not_bought(
    topped: Topped, caplog: pytest.LogCaptureFixture
) -> None:
    shop, _ = topped
    shop.till.settings = replace(shop.till.settings, minimum_micro=200 * CREDIT)
    one = runner(shop)
    assert [await one.once() for _ in range(3)] == [{"not_sold": 1}] * 3
    assert caplog.text.count("not sold") == 1
    assert charges(shop) == []


async def test_an_unlimited_org_is_never_topped_up(topped: Topped) -> None:
    shop, _ = topped
    await shop.ledger.accounts.upsert("acme", who="t", unlimited=True)
    assert await runner(shop).once() == {"enough": 1}


def mortal(shop: Shop, point: int) -> TopUpRunner:
    """A process that dies at a point."""
    points = [point]
    purchases = Purchases(shop.ledger.client, shop.ledger.scripts, shop.ledger.clock)
    purchases._commit = Dying(purchases, points)._commit  # type: ignore[method-assign]
    till = Till(
        shop.till.settings, Dying(purchases, points), Dying(shop.till.provider, points),  # type: ignore[arg-type]
        Dying(shop.till.top_ups, points),  # type: ignore[arg-type]
    )  # fmt: skip
    return TopUpRunner(shop.ledger, till)


@pytest.mark.parametrize("does", ["pays", "declines"])
async def test_killed_at_every_point_it_charges_once_and_never_hangs(client: Client, does: str) -> None:
    """First while it charges, then while the next process finds out what became of it."""
    for point in range(1, 60):
        await client.flushall()
        async with open_topped(client) as (shop, ahead):
            shop.stripe.hook = ""
            card_of(shop)["_does"] = does
            is_killed = 0
            for _ in range(2):
                try:
                    await mortal(shop, point).once()
                except Killed:
                    is_killed += 1
                ahead.us += OTHERS_US + 1
            card_of(shop)["_does"] = "pays"
            for _ in range(4):
                await runner(shop).once()
                ahead.us += OTHERS_US + 1
            assert await shop.balance() == "110", point
            assert len([c for c in charges(shop) if c["status"] == "succeeded"]) == 1, point
            shape = await shape_of(shop)
            assert (shape["order"], shape["ordered"]) == (None, "100"), point
            assert (await verify(shop.ledger))["ok"]
        if not is_killed:
            return
    raise AssertionError("more points than that")


@pytest.mark.parametrize("is_done", [True, False], ids=["charged", "not charged"])
async def test_a_process_that_is_killed_while_it_charges(client: Client, valkey_url: str, is_done: bool) -> None:
    async with open_topped(client) as (shop, _):
        shop.stripe.hook = ""
        shop.stripe.faults.add(Fault(INTENTS, silent=True, after=is_done, method="POST"))
        command = (sys.executable, "-m", "tests.top_up_worker", valkey_url, shop.stripe.url, "0")
        async with asyncio.timeout(60):
            async with _process(*command):
                while not shop.stripe.faults.count("POST", INTENTS):  # noqa: ASYNC110 - another process does it
                    await asyncio.sleep(0.02)
                while is_done and not charges(shop):  # noqa: ASYNC110 - the stand-in does it
                    await asyncio.sleep(0.02)
            assert await shop.balance() == "10"
            async with _process(*command):
                while await shop.balance() != "110":  # noqa: ASYNC110 - another process does it
                    await asyncio.sleep(0.02)
        assert len(charges(shop)) == 1
        assert (await shape_of(shop))["order"] is None


@asynccontextmanager
async def _process(*command: str) -> AsyncIterator[None]:
    """A process that is killed at the end, whatever happens."""
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


ACTS = ["look", "look", "look at once", "threshold", "buy", "deliver", "deliver twice", "reconcile", "card", "later",
        "much later", "fault", "crash", "kill", "refund", "arrive"]  # fmt: skip


@settings(max_examples=15)
@given(data=st.data())
async def test_whatever_happens_it_is_paid_less_refunded_one_in_flight_under_the_cap(
    data: st.DataObject, valkey_url: str
) -> None:
    async with connect(valkey_url, None) as client:
        await client.flushall()
        cool_down = data.draw(st.sampled_from([0, 30]), "cool-down")
        async with open_topped(client, cool_down_minutes=cool_down) as (shop, ahead):
            for name in ("purchase", "top_up_claim", "top_up_card", "top_up_terms"):
                script = getattr(shop.ledger.scripts, name)
                script.durably = script.__call__
            shop.till.purchases = Stumbling(client, shop.ledger.scripts, shop.ledger.clock)
            shop.stripe.attempts = 0  # the test delivers
            acts = data.draw(st.lists(st.sampled_from(ACTS), max_size=30), "acts")
            for number, act in enumerate(acts):
                await _act(shop, ahead, data, act, number)
                await _is_sound(shop)
            shop.till.purchases.crash = ""
            shop.stripe.faults.coming.clear()
            for payment in charges(shop):
                if payment["status"] == "processing":
                    payment["status"] = "requires_payment_method"
            for _ in range(3):
                ahead.us += OTHERS_US + 1
                with suppress(CreditsError):
                    await shop.call("PUT", PATH, {**TERMS, "enabled": False})
                    await runner(shop).once()
            await Reconciler(shop.ledger, shop.till).once()
            await _is_sound(shop)
            assert (await shape_of(shop))["order"] is None  # nothing hangs
            (balance,) = await shop.ledger.accounts.balances()
            assert balance.left_micro == sum(_expected(shop, one) for one in shop.stripe.payments.values())
            report = await verify(shop.ledger)
            assert report["ok"], report["differences"]


async def _act(shop: Shop, ahead: Ahead, data: st.DataObject, act: str, number: int) -> None:
    api = shop.stripe
    if act == "look":
        with suppress(CreditsError):
            await runner(shop).once()
    elif act == "look at once":
        await asyncio.gather(*(runner(shop).once() for _ in range(3)), return_exceptions=True)
    elif act == "kill":
        with suppress(CreditsError, Killed):
            await mortal(shop, data.draw(st.integers(1, 30), "point")).once()
    elif act == "threshold":
        with suppress(CreditsError):
            await shop.call("PUT", PATH, {**TERMS, "threshold": data.draw(st.sampled_from(["20", "1000"]))})
    elif act == "buy":
        body, path = {"credits": "10", "save_card": data.draw(st.booleans())}, "/v1/orgs/acme/purchases"
        status = 503
        while status == 503:  # the buyer asks again
            status, order = await shop.call("POST", path, body, Idempotency_Key=f"k{number}")
        assert status == 201, order
        api.pay(shop.session_of(order))
    elif act == "card":
        for card in api.methods.values():
            card["_does"] = data.draw(st.sampled_from(["pays", "pays", "declines", "asks", "waits"]))
    elif act == "later":
        ahead.us += OTHERS_US + 1
    elif act == "much later":
        ahead.us += data.draw(st.sampled_from([2, 21, 24 * 20])) * 3_600_000_000
    elif act == "fault":
        api.faults.add(data.draw(st.sampled_from([
            Fault(INTENTS, status=500, times=2), Fault(INTENTS, cut=True, after=True, times=2),
            Fault(INTENTS, status=429, method="POST"), Fault("/cancel", status=500, times=2),
        ])))  # fmt: skip
    elif act == "crash":
        shop.till.purchases.crash = data.draw(st.sampled_from(["before", "after"]))  # type: ignore[attr-defined]
    elif act == "arrive":
        for payment in charges(shop):
            if payment["status"] == "processing":
                pays = data.draw(st.booleans(), "pays")
                payment.update(status="succeeded" if pays else "requires_payment_method",
                               amount_received=payment["amount"] if pays else 0)  # fmt: skip
                if pays:
                    api._say("payment_intent.succeeded", payment)
    elif act == "refund":
        if paid := [p for p in api.payments.values() if p["status"] == "succeeded" and left_of(shop.stripe, p) > 0]:
            one = data.draw(st.sampled_from(paid))
            api.refund(one["id"], data.draw(st.integers(1, left_of(shop.stripe, one))))
    elif act == "reconcile":
        with suppress(CreditsError):
            await Reconciler(shop.ledger, shop.till).once()
    elif api.events:
        event = data.draw(st.sampled_from(api.events))
        await asyncio.gather(*(api.deliver(event) for _ in range(1 + (act == "deliver twice"))))


async def _is_sound(shop: Shop) -> None:
    """One order is in flight at most, no month's orders are over the cap, and no order was charged twice."""
    orders = [order for order in await shop.till.purchases.orders("acme") if order.kind == TOP_UP]
    assert len([order for order in orders if order.state in ("new", "pending")]) <= 1
    months: dict[str, int] = {}
    for order in orders:
        if order.state in ("new", "pending", "paid"):
            months[month_of(order.created_us)] = months.get(month_of(order.created_us), 0) + order.micro
    assert all(micro <= 300 * CREDIT for micro in months.values())
    paid = [one["metadata"]["order"] for one in charges(shop) if one["status"] in ("succeeded", "processing")]
    assert len(paid) == len(set(paid))


def _expected(shop: Shop, payment: Any) -> int:
    if payment["status"] != "succeeded":
        return 0
    micro = (100 if payment["metadata"].get("kind") == TOP_UP else 10) * CREDIT
    return micro - micro * (int(payment["amount"]) - left_of(shop.stripe, payment)) // int(payment["amount"])
