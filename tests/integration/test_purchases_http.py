"""Buying over HTTP, with Stripe's official library against a stand-in: what is paid is credited, once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import stripe
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from cli.payments import opening_till, payment_routes
from config.payments import Payments
from config.settings import EnforcerSettings, RedisSettings
from config.values import Address, Secret
from console.payments_api import PaymentsApi
from console.provider import ProviderUnavailable
from console.reconcile import Reconciler
from console.stripe_provider import StripeProvider
from enforcer.access import token_of
from enforcer.app import build_app, enforcing
from enforcer.metrics import PAYMENTS_REFUSED, EnforcerMetrics
from exporter import metric_names
from ledger.connect import Client, connect
from ledger.errors import LedgerUnavailable
from ledger.purchases import order_id_of
from ledger.store import Ledger
from ledger.verify import verify
from tests.servers import free_port
from tests.shop import SETTINGS, T0, Shop, Stumbling, left_of, open_shop
from tests.standins.faults import Fault
from tests.standins.stripe_api import DECLINED_CARD, GOOD_CARD, KEY, SECRET, StripeApi

pytestmark = pytest.mark.redis


@pytest.fixture
async def shop(client: Client) -> AsyncIterator[Shop]:
    async with open_shop(client) as shop:
        yield shop
        report = await verify(shop.ledger)
        assert report["ok"], report["differences"]


async def test_a_purchase_from_the_order_to_the_credits(shop: Shop) -> None:
    order = await shop.buy()
    assert {k: order[k] for k in ("org", "credits", "amount", "currency", "state", "paid_at", "payments")} == {
        "org": "acme", "credits": "100", "amount": "5", "currency": "usd", "state": "open", "paid_at": None,
        "payments": [],
    }  # fmt: skip
    assert await shop.buy() == order
    assert len(shop.stripe.sessions) == 1
    shop.stripe.deliveries = 3
    payment = shop.stripe.pay(shop.session_of(order))
    await shop.stripe.settle()
    assert shop.stripe.answers == [200, 200, 200]
    assert await shop.balance() == "100"
    _, listed = await shop.call("GET", "/v1/orgs/acme/purchases", role="viewer")
    (found,) = listed["items"]
    assert (found["state"], found["payments"], found["checkout_url"]) == ("paid", [payment], None)
    _, journal = await shop.call("GET", "/v1/orgs/acme/journal")
    assert [entry["type"] for entry in journal["items"]] == ["order", "grant"]
    assert journal["items"][1]["payment"] == payment


async def test_the_buyer_pays_on_the_page_and_comes_back(shop: Shop) -> None:
    order = await shop.buy("1000")
    assert order["amount"] == "40"  # the package's price
    page = order["checkout_url"]
    async with shop.http.session.post(page, data={"card": DECLINED_CARD}) as response:
        assert response.status == 402
    assert await shop.state(order) == "open"
    shop.stripe.hook, hook = "", shop.stripe.hook
    async with shop.http.session.post(page, data={"card": GOOD_CARD}, allow_redirects=False) as response:
        back = response.headers["Location"].removeprefix("https://credits.example.com")
    async with shop.http.get(back) as response:
        text = await response.text()
        assert "Waiting" in text
        assert "refresh" in text
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    shop.stripe.hook = hook
    assert await shop.stripe.deliver(shop.stripe.events[0]) == 200
    async with shop.http.get(back) as response:
        assert "1000 credits are in the account" in await response.text()
    for other in (back + "0", back.partition("?")[0], back.replace(order["id"], order_id_of("acme", "other"))):
        async with shop.http.get(other) as response:
            assert response.status == 404
            assert "1000" not in await response.text()


async def test_who_guesses_the_key_of_an_order_does_not_see_its_page(shop: Shop) -> None:
    await shop.buy(key="invoice-1")
    for query in ("", "?key=", "?key=invoice-1", "?key=%ff", "?cancelled=1"):
        async with shop.http.get(f"/console/payments/acme/{order_id_of('acme', 'invoice-1')}{query}") as response:
            assert response.status == 404, query
            assert "/pay/" not in await response.text()


async def test_who_comes_back_without_having_paid_may_pay_still(shop: Shop) -> None:
    order = await shop.buy()
    back = shop.stripe.sessions[shop.session_of(order)]["cancel_url"].removeprefix("https://credits.example.com")
    async with shop.http.get(back) as response:
        assert order["checkout_url"] in await response.text()


async def test_webhooks_that_stripe_did_not_sign_move_nothing(shop: Shop) -> None:
    order = await shop.buy()
    shop.stripe.hook, hook = "", shop.stripe.hook
    shop.stripe.pay(shop.session_of(order))
    (event,) = shop.stripe.events
    shop.stripe.hook = hook
    assert await shop.stripe.deliver(event, secret="whsec_other") == 400
    assert await shop.stripe.deliver(event, age=301) == 400
    changed = json.dumps(event).replace('"amount_total": 500', '"amount_total": 5').encode()
    assert await shop.stripe.deliver(event, body=changed) == 400
    for headers in ({}, {"Stripe_Signature": "t=1,v1=0"}, {"Stripe_Signature": "é"}, {"Stripe_Signature": "t=x"}):
        status, _ = await shop.call("POST", "/v1/payments/stripe", json.dumps(event).encode(), None, **headers)
        assert status == 400
    assert (await shop.call("POST", "/v1/payments/stripe", b"x" * 600_000, None))[0] == 413
    assert await shop.balance() == "0"
    assert await shop.stripe.deliver(event, age=299) == 200
    assert await shop.balance() == "100"


async def test_events_about_something_else_are_answered_and_ignored(shop: Shop) -> None:
    shop.stripe.payments["pi_else"] = {"id": "pi_else", "object": "payment_intent", "metadata": {}, "amount": 5}
    for about, thing in (
        ("customer.created", {"id": "cus_1"}),
        ("balance.available", {"object": "balance"}),
        ("checkout.session.completed", {"id": "cs_2", "status": "complete", "payment_status": "paid"}),
        ("refund.created", {"id": "re_2", "amount": 5, "currency": "usd", "payment_intent": "pi_else"}),
        ("refund.created", {"id": "re_3", "amount": 5, "currency": "usd", "payment_intent": None}),
        ("refund.created", {"id": "re_4", "amount": "five"}),
    ):
        assert await shop.stripe.deliver({"id": "evt_1", "type": about, "data": {"object": thing}}) == 200
    assert await shop.till.purchases.refusals() == {"unreadable": 1}


async def test_another_amount_than_ordered_is_not_credited(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    order = await shop.buy()
    shop.stripe.sessions[shop.session_of(order)]["amount_total"] = 499
    shop.stripe.pay(shop.session_of(order))
    await shop.stripe.settle()
    assert shop.stripe.answers == [200]
    assert await shop.balance() == "0"
    assert await shop.till.purchases.refusals() == {"wrong_amount": 1}
    assert "payment not credited" in caplog.text
    _, journal = await shop.call("GET", "/v1/orgs/acme/journal", role="admin")
    assert journal.get("items", [{}])[-1].get("type", "payment_refused") == "payment_refused"


async def test_refunds_and_disputes_follow_the_money(shop: Shop) -> None:
    order = await shop.buy()
    payment = shop.stripe.pay(shop.session_of(order))
    await shop.stripe.settle()
    refund = shop.stripe.refund(payment, 125)
    await shop.stripe.settle()
    assert await shop.balance() == "75"
    shop.stripe.fail_refund(refund)
    await shop.stripe.settle()
    assert await shop.balance() == "100"
    dispute = shop.stripe.dispute(payment)
    await shop.stripe.settle()
    assert await shop.balance() == "0"
    shop.stripe.decide(dispute, "won")
    await shop.stripe.settle()
    assert await shop.balance() == "100"
    assert set(shop.stripe.answers) == {200}
    found = (await shop.call("GET", f"/v1/orgs/acme/purchases/{order['id']}"))[1]
    assert (found["state"], found["returned"]) == ("paid", "0")


async def test_a_refund_that_comes_before_its_payment(shop: Shop) -> None:
    order = await shop.buy()
    shop.stripe.hook, hook = "", shop.stripe.hook
    payment = shop.stripe.pay(shop.session_of(order))
    shop.stripe.refund(payment, 200)
    shop.stripe.hook = hook
    for event in reversed(shop.stripe.events):
        assert await shop.stripe.deliver(event) == 200
    assert await shop.balance() == "60"


async def test_a_slow_payment_is_credited_when_it_arrives(shop: Shop) -> None:
    orders = [await shop.buy(key=key) for key in ("a", "b", "c")]
    for order in orders[:2]:
        shop.stripe.pay(shop.session_of(order), slowly=True)
    await shop.stripe.settle()
    assert [await shop.state(order) for order in orders] == ["pending", "pending", "open"]
    shop.stripe.arrive(shop.session_of(orders[0]))
    shop.stripe.arrive(shop.session_of(orders[1]), fails=True)
    shop.stripe.expire(shop.session_of(orders[2]))
    await shop.stripe.settle()
    assert [await shop.state(order) for order in orders] == ["paid", "failed", "expired"]
    assert await shop.balance() == "100"


async def test_payments_whose_webhook_never_came_are_found(shop: Shop) -> None:
    shop.stripe.hook = ""
    orders = [await shop.buy(key=f"k{number}") for number in range(3)]
    payments = [shop.stripe.pay(shop.session_of(order)) for order in orders]
    shop.stripe.refund(payments[0])
    shop.stripe.dispute(payments[1])
    shop.stripe.faults.add(Fault("/v1/refunds", status=500, times=9))
    with pytest.raises(ProviderUnavailable, match="Stripe"):
        await shop.reconciler.once()
    shop.stripe.faults.coming.clear()
    assert (await shop.reconciler.once())["credited"] == 3
    assert await shop.balance() == "100"
    assert not (await shop.reconciler.once()).keys() - {"known"}


async def test_news_that_cannot_be_dealt_with_hold_up_no_others(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.stripe.hook = ""
    payments = [shop.stripe.pay(shop.session_of(await shop.buy(key=f"k{number}"))) for number in range(2)]
    shop.stripe.dispute(payments[1])
    # Of an account that these keys do not open, say: the provider does not know whose it is.
    shop.stripe.refunds["re_strange"] = {
        **shop.stripe.refunds[shop.stripe.refund(payments[0])], "id": "re_strange", "payment_intent": "pi_strange",
    }  # fmt: skip
    with pytest.raises(ProviderUnavailable):
        await shop.reconciler.once()
    assert await shop.balance() == "0"  # both are paid, one is refunded and the other disputed
    assert "re_strange" in caplog.text
    del shop.stripe.refunds["re_strange"]
    assert not (await shop.reconciler.once()).keys() - {"known"}


async def test_more_than_a_page_of_payments_is_found(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("console.stripe_provider._PAGE", 2)
    shop.stripe.hook = ""
    for number in range(5):
        shop.stripe.pay(shop.session_of(await shop.buy("10", f"k{number}")))
    assert (await shop.reconciler.once())["credited"] == 5
    assert await shop.balance() == "50"


async def test_news_of_a_payment_that_stripe_does_not_know_are_answered_with_404(shop: Shop) -> None:
    order = await shop.buy()
    payment = shop.stripe.pay(shop.session_of(order))
    await shop.stripe.settle()
    refund = shop.stripe.refunds[shop.stripe.refund(payment)] | {"id": "re_strange", "payment_intent": "pi_strange"}
    event = {"id": "evt_strange", "object": "event", "type": "refund.created", "data": {"object": refund}}
    await shop.stripe.settle()
    body = json.dumps(event)
    given = {"Stripe_Signature": stripe.WebhookSignature.generate_signature_header(body, SECRET)}
    status, problem = await shop.call("POST", "/v1/payments/stripe", body.encode(), None, **given)
    assert (status, problem["code"]) == (404, "not_found")
    assert "No such" in problem["detail"]
    assert "another account or mode (test, live)" in problem["detail"]


async def test_stripe_out_of_reach_costs_nothing_and_is_tried_again(shop: Shop) -> None:
    path, body = "/v1/orgs/acme/purchases", {"credits": "100"}
    shop.stripe.faults.add(Fault("/v1/checkout/sessions", status=500, times=2))
    status, problem = await shop.call("POST", path, body, Idempotency_Key="k")
    assert (status, problem["code"]) == (502, "provider_unavailable")
    assert "same Idempotency-Key" in problem["detail"]
    order = await shop.buy()
    assert order["state"] == "open"
    assert len(shop.stripe.sessions) == 1


async def test_a_stripe_that_is_not_there_is_said_in_one_line_and_with_its_address(shop: Shop) -> None:
    where = f"http://127.0.0.1:{free_port()}"
    provider = StripeProvider(replace(shop.till.settings, api_base=where))
    with pytest.raises(ProviderUnavailable) as caught:
        await provider.card_of("pi_1")
    await provider.close()
    assert str(caught.value) == f"Stripe cannot be reached at {where}: [Errno 111] Connection refused"


async def test_the_answer_of_stripe_lost_on_its_way_makes_no_second_page(shop: Shop) -> None:
    order = await shop.buy()
    client: Any = shop.ledger.client
    data = await client.hget("credits:{acme}:purchases", order["id"])
    fields = {k: v for k, v in json.loads(data).items() if k not in ("state", "session", "url", "expires_us")}
    await client.hset("credits:{acme}:purchases", order["id"], json.dumps(fields))  # it crashed before it noted it
    assert await shop.buy() == order
    assert len(shop.stripe.sessions) == 1


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"credits": "100"}, {}, 400),
        ({"credits": "9.99"}, {"Idempotency_Key": "k"}, 422),
        ({"credits": "10001"}, {"Idempotency_Key": "k"}, 422),
        ({"credits": "-100"}, {"Idempotency_Key": "k"}, 422),
        ({"credits": "NaN"}, {"Idempotency_Key": "k"}, 422),
        ({"credits": "10.0000001"}, {"Idempotency_Key": "k"}, 422),
        ({"credits": "100", "price": 1}, {"Idempotency_Key": "k"}, 422),
        ({}, {"Idempotency_Key": "k"}, 422),
        (b"{", {"Idempotency_Key": "k"}, 400),
        (b"x" * 5000, {"Idempotency_Key": "k"}, 413),
    ],
)
async def test_what_cannot_be_bought(shop: Shop, body: Any, headers: dict[str, str], status: int) -> None:
    assert (await shop.call("POST", "/v1/orgs/acme/purchases", body, **headers))[0] == status
    assert shop.stripe.sessions == {}


async def test_who_may_buy_and_see(shop: Shop) -> None:
    path = "/v1/orgs/acme/purchases"
    for role, status in (("viewer", 403), ("scheduler", 403), ("other", 403), (None, 401), ("admin", 201)):
        said, _ = await shop.call("POST", path, {"credits": "10"}, role, Idempotency_Key=f"{role}")
        assert said == status, role
    for role, status in (("viewer", 200), ("scheduler", 403), ("other", 403), (None, 401), ("admin", 200)):
        assert (await shop.call("GET", path, role=role))[0] == status, role
    assert (await shop.call("POST", path, {"credits": "11"}, "admin", Idempotency_Key="admin"))[0] == 409
    assert (await shop.call("GET", "/v1/payments", role="viewer"))[1] == {
        "currency": "usd", "price_per_credit": "0.05", "minimum_credits": "10", "maximum_credits": "10000",
        "packages": [{"credits": "1000", "price": "40"}],
    }  # fmt: skip


async def test_lists_are_paged(shop: Shop) -> None:
    made = [(await shop.buy("10", f"k{number}"))["id"] for number in range(3)]
    _, first = await shop.call("GET", "/v1/orgs/acme/purchases?limit=2")
    _, second = await shop.call("GET", f"/v1/orgs/acme/purchases?limit=2&cursor={first['next']}")
    assert [item["id"] for item in first["items"] + second["items"]] == made[::-1]
    assert second["next"] is None
    assert (await shop.call("GET", "/v1/orgs/acme/purchases?cursor=x"))[0] == 422


async def test_orders_that_nobody_pays_have_an_end(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("console.payments.UNPAID_MAX", 1)
    order = await shop.buy()
    path = "/v1/orgs/acme/purchases"
    assert (await shop.call("POST", path, {"credits": "10"}, Idempotency_Key="k2"))[0] == 422
    assert await shop.buy() == order
    shop.stripe.pay(shop.session_of(order))
    await shop.stripe.settle()
    await shop.buy("10", "k2")


async def test_without_settings_nothing_is_sold(client: Client) -> None:
    ledger = Ledger(client, T0)
    _, token = await ledger.tokens.create("owner", "acme")
    api = PaymentsApi(None, lambda request: token_of(request).who)
    async with TestClient(TestServer(build_app(ledger, SETTINGS, more=api.calls()))) as http:
        for method, path in (("POST", "/v1/orgs/acme/purchases"), ("POST", "/v1/payments/stripe")):
            async with http.request(method, path, headers={"Authorization": f"Bearer {token}"}) as response:
                assert response.status == 501
                said = await response.json(content_type=None)
                assert (said["code"], "docs/payments.md" in said["detail"]) == ("not_set_up", True)


async def test_the_reconciler_goes_on_after_faults(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.stripe.hook = ""
    shop.stripe.pay(shop.session_of(await shop.buy()))
    shop.stripe.faults.add(Fault("/v1/checkout/sessions", status=503, times=2))
    task = asyncio.create_task(shop.reconciler.run(0.02))
    async with asyncio.timeout(20):
        while await shop.balance() != "100":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    while not task.done():
        task.cancel()  # one that comes together with an answer of the server is lost
        await asyncio.wait([task], timeout=0.1)
    assert "payments were not reconciled" in caplog.text


async def test_a_key_that_is_rotated_is_read_anew(client: Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("whsec_old\n")
    async with open_shop(client) as shop:
        shop.till.provider._settings = replace(shop.till.settings, webhook_secret=Secret(file=secret))  # type: ignore[attr-defined]
        event = {"id": "evt_1", "type": "ping", "data": {"object": {}}}
        assert await shop.stripe.deliver(event) == 400
        secret.write_text(SECRET)
        assert await shop.stripe.deliver(event) == 200


ACTS = ["order", "pay", "pay slowly", "arrive", "fail", "refund", "refund fails", "dispute", "won", "lost", "deliver",
        "deliver twice", "forge", "replay late", "crash", "reconcile"]  # fmt: skip


@settings(max_examples=20)
@given(data=st.data())
async def test_whatever_happens_credits_are_paid_less_returned(data: st.DataObject, valkey_url: str) -> None:
    async with connect(valkey_url, None) as client:
        await client.flushall()
        async with open_shop(client) as shop:
            shop.ledger.scripts.purchase.durably = shop.ledger.scripts.purchase.__call__  # type: ignore[method-assign]
            purchases = shop.till.purchases = Stumbling(client, shop.ledger.scripts)
            shop.stripe.attempts = 0  # the test delivers
            orders: list[Any] = []
            for act in data.draw(st.lists(st.sampled_from(ACTS), max_size=40), "acts"):
                await _act(shop, data, act, orders, purchases)
            purchases.crash = ""
            await Reconciler(shop.ledger, shop.till).once()
            expected = sum(_expected(shop, payment) for payment in shop.stripe.payments.values())
            balances = await shop.ledger.accounts.balances()
            assert sum(balance.left_micro for balance in balances) == expected
            report = await verify(shop.ledger)
            assert report["ok"], report["differences"]


async def _act(shop: Shop, data: st.DataObject, act: str, orders: list[Any], purchases: Stumbling) -> None:
    api = shop.stripe

    def one(things: list[Any]) -> Any:
        return data.draw(st.sampled_from(things)) if things else None

    if act == "order":
        body = {"credits": f"{data.draw(st.integers(10, 99))}.123457"}
        path, key = "/v1/orgs/acme/purchases", f"k{len(orders)}"
        status = 503
        while status == 503:  # the buyer asks again
            status, order = await shop.call("POST", path, body, Idempotency_Key=key)
        assert status == 201
        orders.append(order)
    elif act.startswith("pay"):
        if session := one([i for i, s in api.sessions.items() if s["status"] == "open"]):
            api.pay(session, slowly=act == "pay slowly")
    elif act in ("arrive", "fail"):
        waiting = [i for i, s in api.sessions.items() if s["status"] == "complete" and s["payment_status"] == "unpaid"]
        waiting = [i for i in waiting if api.payments[api.sessions[i]["payment_intent"]]["status"] == "processing"]
        if session := one(waiting):
            api.payments[api.sessions[session]["payment_intent"]]["status"] = (
                "canceled" if act == "fail" else "succeeded"
            )
            api.arrive(session, fails=act == "fail")
    elif act == "refund":
        if payment := one([p for p in api.payments.values() if p["status"] == "succeeded" and left_of(api, p) > 0]):
            api.refund(payment["id"], data.draw(st.integers(1, left_of(api, payment))))
    elif act == "refund fails":
        if refund := one([i for i, r in api.refunds.items() if r["status"] == "succeeded"]):
            api.fail_refund(refund)
    elif act == "dispute":
        disputed = {d["payment_intent"] for d in api.disputes.values()}
        if payment := one([i for i, p in api.payments.items() if p["status"] == "succeeded" and i not in disputed]):
            api.dispute(payment)
    elif act in ("won", "lost"):
        if dispute := one([i for i, d in api.disputes.items() if d["status"] == "needs_response"]):
            api.decide(dispute, act)
    elif act == "crash":
        purchases.crash = data.draw(st.sampled_from(["before", "after"]))
    elif act == "reconcile":
        with suppress(LedgerUnavailable):
            await Reconciler(shop.ledger, shop.till).once()
    elif event := one(api.events):
        if act == "forge":
            assert await api.deliver(event, secret="whsec_forged") == 400
        elif act == "replay late":
            assert await api.deliver(event, age=3600) == 400
        else:
            statuses = await asyncio.gather(*(api.deliver(event) for _ in range(1 + (act == "deliver twice"))))
            assert set(statuses) <= {200, 503}


def _expected(shop: Shop, payment: Any) -> int:
    if payment["status"] != "succeeded":
        return 0
    returned = int(payment["amount"]) - left_of(shop.stripe, payment)
    disputes = [d for d in shop.stripe.disputes.values() if d["payment_intent"] == payment["id"]]
    returned += sum(int(d["amount"]) for d in disputes if d["status"] != "won")
    (session,) = (s for s in shop.stripe.sessions.values() if s["payment_intent"] == payment["id"])
    micro = int(Decimal(session["_name"].split()[0]) * 1_000_000)
    return micro - micro * min(int(payment["amount"]), returned) // int(payment["amount"])


async def test_an_enforcer_with_payments_sells_and_asks_for_lost_webhooks(client: Client, valkey_url: str) -> None:
    _, token = await Ledger(client, T0).tokens.create("owner", "acme")
    stripe_api = StripeApi()
    async with stripe_api.serve() as url:
        payments = Payments(
            secret_key=Secret(KEY), webhook_secret=Secret(SECRET), public_url="https://x", api_base=url,
            price_per_credit=Decimal(1), reconcile_seconds=0.1,
        )  # fmt: skip
        given_settings = replace(
            SETTINGS, payments=payments, redis=RedisSettings(url=valkey_url),
            enforcer=EnforcerSettings(listen=Address("127.0.0.1", 0)),
        )  # fmt: skip
        async with (
            opening_till(given_settings) as till,
            enforcing(given_settings, None, payment_routes(till)) as at,
            aiohttp.ClientSession(at, headers={"Authorization": f"Bearer {token}"}) as http,
        ):
            path, key = "/v1/orgs/acme/purchases", {"Idempotency-Key": "k"}
            async with http.post(path, json={"credits": "10"}, headers=key) as response:
                order = await response.json()
            stripe_api.pay(order["checkout_url"].rpartition("/")[2])
            async with asyncio.timeout(20):
                while order["state"] != "paid":
                    async with http.get(f"{path}/{order['id']}") as response:
                        order = await response.json()


async def test_payments_that_were_refused_are_a_metric_of_the_enforcer(shop: Shop) -> None:
    order = await shop.buy()
    shop.stripe.sessions[shop.session_of(order)]["amount_total"] = 499
    shop.stripe.pay(shop.session_of(order))
    await shop.stripe.settle()
    metrics = EnforcerMetrics("test")
    await metrics.look(shop.ledger)
    text = generate_latest(metrics.registry).decode()
    assert f'{PAYMENTS_REFUSED}{{reason="wrong_amount"}} 1.0' in text
    assert metric_names.PAYMENTS_REFUSED.name == PAYMENTS_REFUSED
