"""Purchases over HTTP: starting one, seeing them, the provider's webhook, and the page a buyer comes back to."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

import msgspec
from aiohttp import web

from api import payment_shapes
from api.routes import Handler, Operation, Route
from api.types import AskedCredits, IdempotencyKey, Page, Paging
from config.payments import PRICE_DIGITS, Payments, minor_digits
from console.answers import BODY_MAX, answer, credits_of, read_bytes, read_json
from console.payments import Till
from console.provider import BadSignature, ProviderUnavailable, UnknownToProvider
from console.receipt import is_for, receipt
from ledger.accounts import KEY_MAX
from ledger.clock import format_time
from ledger.errors import InvalidRequest
from ledger.money import format_decimal, format_micro
from ledger.purchase_step import Order

_BUY: Final = ("admin", "owner")
_SEE: Final = ("admin", "owner", "viewer")
_WEBHOOK_MAX: Final = 512 * 1024
NOT_SOLD: Final = "No credits are sold here: the settings have no section payments (see docs/payments.md)."


class PurchaseBody(msgspec.Struct, forbid_unknown_fields=True):
    """How many credits: as text, or as a JSON number, which is read as a decimal too.

    `save_card`: the buyer agrees to have the card charged again, by auto top-up only.
    """

    credits: AskedCredits
    save_card: bool = False


class PaymentsApi:
    """Without a till the calls are there and say that nothing is sold."""

    def __init__(
        self, till: Till | None, who: Callable[[web.Request], str],
        address_of: Callable[[web.Request], str | None] = lambda request: request.remote,
    ) -> None:  # fmt: skip
        """`who`: what the journal calls the caller of a request; `address_of`: where that is."""
        self._till = till
        self._who = who
        self._address_of = address_of

    def calls(self) -> list[Route]:
        """All calls, with the roles that may make them."""
        purchases = "/v1/orgs/{org}/purchases"
        offer = Operation("payments", payment_shapes.Offer, problems=(501,))
        buy = Operation(
            "payments", payment_shapes.Order, PurchaseBody, headers=IdempotencyKey, statuses=(201,),
            problems=(409, 501, 502), example={"credits": "100"}, body_max=BODY_MAX,
        )  # fmt: skip
        orders = Operation("payments", Page[payment_shapes.Order], query=Paging, problems=(501,))
        webhook = Operation("payments", payment_shapes.Received, dict[str, Any], problems=(404, 501, 502, 503))
        page = Operation("payments", problems=(501, 503), media={"text/html": "A page for the buyer."})
        calls = [
            Route("GET", "/v1/payments", self.offer, _SEE, about=offer),
            Route("POST", purchases, self.buy, _BUY, about=buy),
            Route("GET", purchases, self.orders, _SEE, about=orders),
            Route(
                "GET", purchases + "/{order}", self.order, _SEE,
                about=Operation("payments", payment_shapes.Order, problems=(501,)),
            ),
            Route("POST", "/v1/payments/stripe", self.webhook, None, about=webhook),
            Route("GET", "/console/payments/{org}/{order}", self.page, None, about=page),
        ]  # fmt: skip
        return calls if self._till is not None else [call._replace(handler=not_sold(call.handler)) for call in calls]

    @property
    def till(self) -> Till:
        assert self._till is not None, "the calls are only made with a till"
        return self._till

    async def offer(self, request: web.Request) -> web.Response:
        """What is sold, and at which price."""
        return answer(offer_shape(self.till.settings))

    async def buy(self, request: web.Request) -> web.Response:
        """Orders credits, and answers where to pay. The same key answers with the same order, for ever."""
        key = request.headers.get("Idempotency-Key", "")
        if not 0 < len(key) <= KEY_MAX or not key.isprintable():
            raise web.HTTPBadRequest(text=f"An Idempotency-Key header of 1 to {KEY_MAX} characters is needed.")
        body = await read_json(request, PurchaseBody)
        micro, org = credits_of("credits", body.credits), request.match_info["org"]
        try:
            order = await self.till.order(
                org, micro, key, self._who(request), body.save_card, self._address_of(request)
            )
        except ProviderUnavailable as error:
            text = f"{error}. Nothing was paid; try again with the same Idempotency-Key."
            raise web.HTTPBadGateway(text=text) from error
        return answer(order_shape(order), 201)

    async def orders(self, request: web.Request) -> web.Response:
        """All orders of an org, the newest first."""
        limit, cursor = _paging(request)
        orders = await self.till.purchases.orders(request.match_info["org"])
        if cursor:
            places = [number for number, order in enumerate(orders) if order.id == cursor]
            if not places:
                raise InvalidRequest(f"cursor: {cursor!r:.60} is not one that was given here")
            orders = orders[places[0] + 1 :]
        page = orders[:limit]
        return answer(
            {"items": [order_shape(order) for order in page], "next": page[-1].id if len(orders) > limit else None}
        )

    async def order(self, request: web.Request) -> web.Response:
        """One order."""
        order = await self.till.purchases.get(request.match_info["org"], request.match_info["order"])
        if order is None:
            raise web.HTTPNotFound
        return answer(order_shape(order))

    async def webhook(self, request: web.Request) -> web.Response:
        """News of the provider, signed.

        Answers 200 once what is said is on the ledger's disk, also where it was known or is about something else.

        400 for a signature that does not hold, 404 for a payment that the provider does not know by the key that is set
        here; 5xx has the provider say it again later.
        """
        body = await read_bytes(request, _WEBHOOK_MAX)
        try:
            news = self.till.provider.read_webhook(body, request.headers.get("Stripe-Signature", ""))
            results = [await self.till.take(one) for one in news]
        except BadSignature as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        except UnknownToProvider as error:
            raise web.HTTPNotFound(text=f"{error}.") from error
        except ProviderUnavailable as error:
            raise web.HTTPBadGateway(text=str(error)) from error
        return answer({"received": True, "results": results})

    async def page(self, request: web.Request) -> web.Response:
        """Where the buyer comes back to: waits for the webhook, and says so."""
        order = await self.till.purchases.get(request.match_info["org"], request.match_info["order"])
        if order is None or not is_for(order, request.query.get("key", "")):
            return receipt("There is no such order.", 404)
        if order.state == "paid":
            return receipt(f"Thank you: {order.credits} credits are in the account of org {order.org}.", org=order.org)
        if order.state in ("expired", "failed"):
            return receipt(f"Order {order.id} was not paid, and nothing was charged to your card.", org=order.org)
        if "cancelled" in request.query:
            return receipt(f"Order {order.id} is not paid yet.", org=order.org, pay_url=order.url or "")
        waiting = (
            f"Waiting for the payment of {order.credits} credits to be confirmed. This page looks again by itself."
        )
        return receipt(waiting, org=order.org, waits=True)


def order_shape(order: Order) -> dict[str, Any]:
    """An order; `amount` in the currency, `returned`: credits taken back by refunds and disputes."""
    return {
        "id": order.id,
        "org": order.org,
        "credits": order.credits,
        "amount": format_decimal(order.amount, minor_digits(order.currency)),
        "currency": order.currency,
        "state": order.state,
        "checkout_url": order.url if order.state == "open" else None,
        "expires_at": format_time(order.expires_us) if order.expires_us else None,
        "created_at": format_time(order.created_us),
        "paid_at": format_time(order.paid_us) if order.paid_us else None,
        "payments": list(order.payments),
        "returned": format_micro(order.returned),
        "who": order.who,
    }


def offer_shape(terms: Payments) -> dict[str, Any]:
    """What is sold; prices are in the currency."""
    digits = minor_digits(terms.currency)
    return {
        "currency": terms.currency,
        "price_per_credit": format_decimal(int(terms.price_per_credit.scaleb(PRICE_DIGITS)), PRICE_DIGITS),
        "minimum_credits": format_micro(terms.minimum_micro),
        "maximum_credits": format_micro(terms.maximum_micro),
        "packages": [
            {
                "credits": format_micro(package.credits_micro),
                "price": format_decimal(terms.price_of(package.credits_micro), digits),
            }
            for package in terms.packages
        ],
    }


def not_sold(handler: Handler) -> Handler:
    """In place of a call's handler where the settings sell nothing."""

    @wraps(handler)
    async def refuse(request: web.Request) -> web.Response:
        raise web.HTTPNotImplemented(text=NOT_SOLD)

    return refuse


def _paging(request: web.Request) -> tuple[int, str | None]:
    text = request.query.get("limit") or "100"
    if not text.isascii() or not text.isdigit() or len(text) > 4 or not 1 <= int(text) <= 1000:
        raise InvalidRequest(f"limit: {text!r:.40} is not a number from 1 to 1000")
    return int(text), request.query.get("cursor") or None
