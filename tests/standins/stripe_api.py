"""A stand-in for Stripe: checkout sessions with their page, saved cards that are charged without their owner, refunds,
disputes, and signed webhooks about them.

What the API refuses, it refuses here: a wrong key, an idempotency key with other parameters, a refund of more than
was paid. Money moves when a test says so, or when the page is filled in.
"""

from __future__ import annotations

import asyncio
import html
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import stripe
from aiohttp import web

from tests.standins.faults import Faults, serving

KEY = "sk_test_standin"
SECRET = "whsec_standin"
GOOD_CARD = "4242424242424242"
DECLINED_CARD = "4000000000000002"
Object = dict[str, Any]


@dataclass
class StripeApi:
    """Stripe's side of a shop."""

    hook: str = ""
    """Where webhooks go; "" keeps them in `events` only."""
    deliveries: int = 1
    """How often each event is delivered."""
    attempts: int = 20
    events: list[Object] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    """Statuses that webhooks were answered with."""
    sessions: dict[str, Object] = field(default_factory=dict)
    payments: dict[str, Object] = field(default_factory=dict)
    refunds: dict[str, Object] = field(default_factory=dict)
    disputes: dict[str, Object] = field(default_factory=dict)
    methods: dict[str, Object] = field(default_factory=dict)
    """Saved cards. What a charge of one does is its `_does`: pays, declines, asks, waits or is gone."""
    faults: Faults = field(default_factory=Faults)
    url: str = ""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _known: dict[str, tuple[Object, Object]] = field(default_factory=dict)
    _sending: set[asyncio.Task[None]] = field(default_factory=set)

    # -- what happens at Stripe -------------------------------------------------------------------------------

    def pay(self, session_id: str, *, slowly: bool = False) -> str:
        """The buyer pays; gives the payment's id. `slowly`: the money is yet to come (see `arrive`)."""
        session = self.sessions[session_id]
        assert session["status"] == "open", session["status"]
        payment = self._new("pi", "payment_intent", amount=session["amount_total"], currency=session["currency"],
                            amount_received=0 if slowly else session["amount_total"], customer=session["customer"],
                            status="processing" if slowly else "succeeded", metadata=session["_intent_metadata"],
                            setup_future_usage=session["_future_usage"], latest_charge=f"ch_{session_id}")  # fmt: skip
        self.payments[payment["id"]] = payment
        if session["_future_usage"] == "off_session":
            customer = session["customer"] or self._new("cus", "customer")["id"]
            method = self._new("pm", "payment_method", type="card", customer=customer, _does="pays",
                               card={"brand": "visa", "last4": "4242", "exp_month": 4, "exp_year": 2030})  # fmt: skip
            self.methods[method["id"]] = method
            session["customer"] = payment["customer"] = customer
            payment["payment_method"] = method["id"]
        session.update(status="complete", payment_status="unpaid" if slowly else "paid", payment_intent=payment["id"],
                       url=None)  # fmt: skip
        self._say("checkout.session.completed", session)
        return str(payment["id"])

    def arrive(self, session_id: str, *, fails: bool = False) -> None:
        """A slow payment comes, or fails."""
        session = self.sessions[session_id]
        if not fails:
            session["payment_status"] = "paid"
        self._say(f"checkout.session.async_payment_{'failed' if fails else 'succeeded'}", session)

    def expire(self, session_id: str) -> None:
        """The page's day is over."""
        self.sessions[session_id].update(status="expired", url=None)
        self._say("checkout.session.expired", self.sessions[session_id])

    def refund(self, payment: str, amount: int | None = None) -> str:
        """The shop gives money back; gives the refund's id."""
        paid = self.payments[payment]
        left = paid["amount"] - sum(
            r["amount"] for r in self.refunds.values() if r["payment_intent"] == payment and r["status"] == "succeeded"
        )
        amount = left if amount is None else amount
        assert 0 < amount <= left
        refund = self._new("re", "refund", amount=amount, currency=paid["currency"], status="succeeded",
                           payment_intent=payment, charge=paid["latest_charge"], metadata={})  # fmt: skip
        self.refunds[refund["id"]] = refund
        self._say("refund.created", refund)
        charge = {"id": paid["latest_charge"], "object": "charge", "payment_intent": payment, "amount": paid["amount"],
                  "amount_refunded": paid["amount"] - left + amount, "metadata": paid["metadata"]}  # fmt: skip
        self._say("charge.refunded", charge)
        return str(refund["id"])

    def fail_refund(self, refund: str) -> None:
        """The buyer's bank does not take the money."""
        self.refunds[refund]["status"] = "failed"
        self._say("refund.failed", self.refunds[refund])

    def dispute(self, payment: str) -> str:
        """The buyer's bank takes the money back; gives the dispute's id."""
        paid = self.payments[payment]
        dispute = self._new("dp", "dispute", amount=paid["amount"], currency=paid["currency"], status="needs_response",
                            payment_intent=payment, charge=paid["latest_charge"], metadata={})  # fmt: skip
        self.disputes[dispute["id"]] = dispute
        self._say("charge.dispute.created", dispute)
        return str(dispute["id"])

    def decide(self, dispute: str, status: str) -> None:
        """The dispute is `won` or `lost` by the shop."""
        self.disputes[dispute]["status"] = status
        self._say("charge.dispute.closed", self.disputes[dispute])

    # -- webhooks ---------------------------------------------------------------------------------------------

    async def deliver(self, event: Object, *, secret: str = SECRET, age: int = 0, body: bytes | None = None) -> int:
        """Delivers an event once, signed `age` seconds ago; gives the status of the answer."""
        text = json.dumps(event) if body is None else body.decode()
        signed = stripe.WebhookSignature.generate_signature_header(
            json.dumps(event), secret, timestamp=int(time.time()) - age
        )
        headers = {"Stripe-Signature": signed, "Content-Type": "application/json"}
        async with (
            aiohttp.ClientSession() as http,
            http.post(self.hook, data=text.encode(), headers=headers) as response,
        ):
            await response.read()
            self.answers.append(response.status)
            return response.status

    async def settle(self) -> None:
        """Waits until every webhook is delivered."""
        while self._sending:
            await asyncio.gather(*self._sending)

    def _say(self, about: str, thing: Object) -> None:
        shown = {name: value for name, value in thing.items() if not name.startswith("_")}
        event = self._new("evt", "event", type=about, api_version="2026-06-30", data={"object": dict(shown)})
        self.events.append(event)
        if self.hook:
            for _ in range(self.deliveries):
                task = asyncio.create_task(self._send(event))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _send(self, event: Object) -> None:
        for attempt in range(self.attempts):
            if await self.deliver(event) == 200:
                return
            await asyncio.sleep(0.02 * (attempt + 1))

    # -- the API ----------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The API on the loopback, and the page a session is paid on."""
        app = web.Application(middlewares=[self.faults.middleware])
        app.router.add_post("/v1/checkout/sessions", self._create)
        app.router.add_get("/v1/checkout/sessions", self._lister(self.sessions))
        app.router.add_get("/v1/checkout/sessions/{id}", self._getter(self.sessions))
        app.router.add_post("/v1/payment_intents", self._charge)
        app.router.add_get("/v1/payment_intents", self._lister(self.payments))
        app.router.add_get("/v1/payment_intents/{id}", self._getter(self.payments))
        app.router.add_post("/v1/payment_intents/{id}/cancel", self._cancel)
        app.router.add_post("/v1/payment_methods/{id}/detach", self._detach)
        app.router.add_get("/v1/refunds", self._lister(self.refunds))
        app.router.add_get("/v1/disputes", self._lister(self.disputes))
        app.router.add_get("/pay/{id}", self._page)
        app.router.add_post("/pay/{id}", self._pay)
        async with serving(app) as self.url:
            yield self.url
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    def _new(self, prefix: str, kind: str, **more: Any) -> Object:
        number = next(self._numbers)
        return {"id": f"{prefix}_{number}", "object": kind, "created": int(time.time()), "livemode": False, **more}

    async def _create(self, request: web.Request) -> web.Response:
        if refused := _refused(request):
            return refused
        given = dict((await request.post()).items())
        key = request.headers.get("Idempotency-Key", "")
        if key in self._known:
            before, session = self._known[key]
            if before != given:
                return _error(400, "idempotency_error", "Keys for idempotent requests can only be used with the same "
                              "parameters they were first used with.")  # fmt: skip
            return web.json_response(_shown(session), headers={"Idempotent-Replayed": "true"})
        if given.get("mode") != "payment" or "success_url" not in given:
            return _error(400, "invalid_request_error", "Missing required param: success_url.")
        price = "line_items[0][price_data]"
        session = self._new(
            "cs_test", "checkout.session", mode="payment", status="open", payment_status="unpaid", payment_intent=None,
            amount_total=int(str(given[f"{price}[unit_amount]"])) * int(str(given["line_items[0][quantity]"])),
            currency=given[f"{price}[currency]"], client_reference_id=given.get("client_reference_id"),
            metadata=_under(given, "metadata"), success_url=given["success_url"], cancel_url=given.get("cancel_url"),
            expires_at=int(time.time()) + 86400, _intent_metadata=_under(given, "payment_intent_data[metadata]"),
            _name=given[f"{price}[product_data][name]"], customer=given.get("customer"),
            _future_usage=given.get("payment_intent_data[setup_future_usage]"),
        )  # fmt: skip
        session["url"] = f"{self.url}/pay/{session['id']}"
        self.sessions[session["id"]] = session
        if key:
            self._known[key] = given, session
        return web.json_response(_shown(session))

    def _getter(self, things: dict[str, Object]) -> Any:
        async def get(request: web.Request) -> web.Response:
            if refused := _refused(request):
                return refused
            thing = things.get(request.match_info["id"])
            if thing is None:
                said = f"No such object: '{request.match_info['id']}'"
                return _error(404, "invalid_request_error", said, code="resource_missing")
            shown = _shown(thing)
            if "payment_method" in request.query.getall("expand[0]", []) and thing.get("payment_method"):
                shown["payment_method"] = _shown(self.methods[thing["payment_method"]])
            return web.json_response(shown)

        return get

    async def _charge(self, request: web.Request) -> web.Response:
        """A saved card is charged without its owner, once for an idempotency key."""
        if refused := _refused(request):
            return refused
        given = dict((await request.post()).items())
        key = request.headers["Idempotency-Key"]
        if key in self._known:
            before, made = self._known[key]
            if before != given:
                return _error(400, "idempotency_error", "This key was used with other parameters.")
            return self._said_of(made)
        assert (given["off_session"], given["confirm"]) == ("true", "true"), given
        method = self.methods.get(str(given["payment_method"]))
        if method is None or method["customer"] != given["customer"]:
            return _error(400, "invalid_request_error", "No such PaymentMethod.", code="resource_missing",
                          param="payment_method")  # fmt: skip
        does = method["_does"]
        amount = int(str(given["amount"]))
        payment = self._new("pi", "payment_intent", amount=amount, amount_received=0, currency=given["currency"],
                            customer=given["customer"], payment_method=method["id"], metadata=_under(given, "metadata"),
                            status="requires_payment_method", last_payment_error=None)  # fmt: skip
        payment["latest_charge"] = f"ch_{payment['id']}"
        self.payments[payment["id"]] = payment
        self._known[key] = given, payment
        if does == "pays":
            payment.update(status="succeeded", amount_received=amount)
            self._say("payment_intent.succeeded", payment)
        elif does == "waits":
            payment["status"] = "processing"
        elif does == "asks" and "_soft" in method:
            payment["status"] = "requires_action"
        else:
            decline = "authentication_required" if does == "asks" else "insufficient_funds"
            code = "authentication_required" if does == "asks" else "card_declined"
            payment["last_payment_error"] = {"type": "card_error", "code": code, "decline_code": decline}
            self._say("payment_intent.payment_failed", payment)
        return self._said_of(payment)

    def _said_of(self, payment: Object) -> web.Response:
        why = payment["last_payment_error"]
        if why is None:
            return web.json_response(_shown(payment))
        return web.json_response(
            {"error": {**why, "message": "Declined.", "payment_intent": _shown(payment)}}, status=402
        )

    async def _cancel(self, request: web.Request) -> web.Response:
        if refused := _refused(request):
            return refused
        payment = self.payments[request.match_info["id"]]
        if payment["status"] in ("succeeded", "canceled", "processing"):
            return _error(400, "invalid_request_error", f"It is {payment['status']}.",
                          code="payment_intent_unexpected_state")  # fmt: skip
        payment["status"] = "canceled"
        return web.json_response(_shown(payment))

    async def _detach(self, request: web.Request) -> web.Response:
        if refused := _refused(request):
            return refused
        method = self.methods[request.match_info["id"]]
        if method["customer"] is None:
            return _error(400, "invalid_request_error", "It is not attached to a customer.")
        method["customer"] = None
        return web.json_response(_shown(method))

    def _lister(self, things: dict[str, Object]) -> Any:
        async def get(request: web.Request) -> web.Response:
            """The newest first, page by page."""
            if refused := _refused(request):
                return refused
            query = request.query
            found = [
                thing
                for thing in reversed(things.values())
                if thing["created"] >= int(query.get("created[gte]", 0))
                and all(thing.get(name) == query.get(name, thing.get(name)) for name in ("payment_intent", "customer"))
            ]
            if after := query.get("starting_after"):
                found = found[[thing["id"] for thing in found].index(after) + 1 :]
            limit = int(query.get("limit", 10))
            return web.json_response(
                {
                    "object": "list",
                    "url": request.path,
                    "has_more": len(found) > limit,
                    "data": [_shown(thing) for thing in found[:limit]],
                }
            )

        return get

    async def _page(self, request: web.Request) -> web.Response:
        session = self.sessions[request.match_info["id"]]
        if session["status"] != "open":
            return web.Response(text="<h1>This page is closed.</h1>", content_type="text/html", status=410)
        return self._form(session)

    async def _pay(self, request: web.Request) -> web.Response:
        session = self.sessions[request.match_info["id"]]
        card = str((await request.post()).get("card", "")).replace(" ", "")
        if card != GOOD_CARD:
            return self._form(session, "Your card was declined.")
        self.pay(session["id"])
        raise web.HTTPSeeOther(session["success_url"])

    def _form(self, session: Object, problem: str = "") -> web.Response:
        total = f"{session['amount_total'] / 100:.2f} {session['currency'].upper()}"
        text = (
            f"<!doctype html><title>Pay</title><h1>{html.escape(session['_name'])}</h1><p>{total}</p>"
            f'<p role="alert">{problem}</p><form method="post"><label>Card <input name="card"></label>'
            f'<button>Pay</button></form><a href="{html.escape(session["cancel_url"] or "")}">Back</a>'
        )
        return web.Response(text=text, content_type="text/html", status=402 if problem else 200)


def _shown(thing: Object) -> Object:
    return {name: value for name, value in thing.items() if not name.startswith("_")}


def _under(given: Object, name: str) -> Object:
    start = f"{name}["
    return {key[len(start) : -1]: value for key, value in given.items() if key.startswith(start)}


def _refused(request: web.Request) -> web.Response | None:
    if request.headers.get("Authorization") != f"Bearer {KEY}":
        return _error(401, "invalid_request_error", "Invalid API Key provided")
    return None


def _error(status: int, kind: str, message: str, **more: str) -> web.Response:
    return web.json_response({"error": {"type": kind, "message": message, **more}}, status=status)
