"""Buying credits: what is sold at which price, an order for each form that is sent, and the orders so far."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from config.payments import PRICE_DIGITS, Payments, minor_digits
from console.desk import Desk, page_number
from console.provider import ProviderUnavailable
from console.receipt import receipt_path
from console.typed import typed_credits
from ledger.errors import IdempotencyConflict, InvalidRequest
from ledger.money import AmountError, format_decimal, format_micro
from ledger.purchase_step import Order

_AT_ONCE: Final = 20
_KEY_MAX: Final = 64
_LOOKED_AT: Final = 50
_STRIPE_API: Final = "api.stripe.com"
_STRIPE_PAGES: Final = "https://checkout.stripe.com"
_STATES: Final = {
    "new": "being prepared",
    "open": "to be paid",
    "pending": "payment on its way",
    "paid": "paid",
    "expired": "expired",
    "failed": "failed",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """So many credits at a price, which is a decimal string in the currency."""

    credits: str
    price: str


class BuyPages:
    """The page with packages and a free amount, and what its forms do."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """`credits` in the address: that amount is shown with its price. Raises: UnknownOrg, LedgerUnavailable."""
        asked = request.query.get("credits", "").strip()
        return await self._page(request, asked, secrets.token_urlsafe(16))

    async def buy(self, request: web.Request) -> web.Response:
        """Makes an order, the same one for the same form, and leads to where it is paid.

        Raises: web.HTTPForbidden, LedgerUnavailable.
        """
        form = await self._desk.pages.sessions.check_csrf(request)
        org, till = request.match_info["org"], self._desk.till
        if till is None:
            raise web.HTTPNotFound(text="No credits are sold here.")
        await self._desk.ledger.accounts.balance(org)  # an order makes no org
        asked, key = str(form.get("credits", "")).strip(), str(form.get("key", ""))
        try:
            if not 0 < len(key) <= _KEY_MAX or not key.isascii() or not key.isprintable():
                raise InvalidRequest("This form is not complete; open the page again.")
            micro = typed_credits(asked)
            saves = form.get("save_card") == "yes"
            # Of the wish as well: who goes back and takes another amount means another order.
            order_key = f"console:{key}:{micro}{':save' if saves else ''}"
            signed = self._desk.signed(request)
            order = await till.order(org, micro, order_key, signed["who"], saves, signed["address"])
        except (AmountError, InvalidRequest, IdempotencyConflict) as error:
            return await self._page(request, asked, secrets.token_urlsafe(16), problem=str(error))
        except ProviderUnavailable as error:
            log.warning("no checkout: %s", error)
            said = "The payment provider does not answer right now. Nothing was paid; please try again in a minute."
            return await self._page(request, asked, key, problem=said, status=502)
        if order.state == "open" and order.url:
            return self._desk.pages.redirect(request, order.url)
        return self._desk.pages.redirect(request, receipt_path(order))

    async def _page(
        self, request: web.Request, asked: str, key: str, *, problem: str = "", status: int = 422
    ) -> web.Response:
        org, till = request.match_info["org"], self._desk.till
        balance = await self._desk.ledger.accounts.balance(org)
        if till is None:
            return self._desk.pages.render(request, "not_sold.html", title="Buy credits")
        terms, number = till.settings, page_number(request)
        orders = await till.purchases.orders(org)
        start = (number - 1) * _AT_ONCE
        chosen: Offer | None = None
        wrong = ""
        if asked and not problem:
            try:
                chosen = _offer(terms, asked)
            except (AmountError, InvalidRequest) as error:
                wrong = str(error)
        return self._desk.pages.render(
            request,
            "buy.html",
            status=status if problem or wrong else 200,
            form_action=_origins(terms, orders),
            balance=balance,
            currency=terms.currency.upper(),
            per_credit=format_decimal(int(terms.price_per_credit.scaleb(PRICE_DIGITS)), PRICE_DIGITS),
            price_nano=int(terms.price_per_credit.scaleb(PRICE_DIGITS)),
            digits=minor_digits(terms.currency),
            least=format_micro(terms.minimum_micro),
            most=format_micro(terms.maximum_micro),
            packages=[Offer(format_micro(p.credits_micro), _price(terms, p.credits_micro)) for p in terms.packages],
            prices={
                str(micro): _price(terms, micro)
                for micro in (terms.minimum_micro, terms.maximum_micro, *(p.credits_micro for p in terms.packages))
            },
            bounds=(terms.minimum_micro, terms.maximum_micro),
            asked=asked,
            wrong=wrong,
            chosen=chosen,
            problem=problem,
            key=key,
            orders=[(order, _money(order), receipt_path(order)) for order in orders[start : start + _AT_ONCE]],
            states=_STATES,
            count=len(orders),
            first_page="?page=1#orders" if number > 1 else None,
            next_page=f"?page={number + 1}#orders" if len(orders) > start + _AT_ONCE else None,
        )


def _offer(terms: Payments, asked: str) -> Offer:
    """The price of an amount. Raises: AmountError, InvalidRequest."""
    micro = typed_credits(asked)
    if not terms.sells(micro):
        least, most = format_micro(terms.minimum_micro), format_micro(terms.maximum_micro)
        raise InvalidRequest(f"{format_micro(micro)} credits are not sold at once: choose from {least} to {most}.")
    return Offer(format_micro(micro), _price(terms, micro))


def _price(terms: Payments, micro: int) -> str:
    return _minor(terms.price_of(micro), terms.currency)


def _money(order: Order) -> str:
    return f"{_minor(order.amount, order.currency)} {order.currency.upper()}"


def _minor(amount: int, currency: str) -> str:
    """With all digits that the currency has: `6.50`."""
    digits = minor_digits(currency)
    whole, part = divmod(amount, 10**digits)
    return f"{whole:,}.{part:0{digits}d}" if digits else f"{whole:,}"


def _origins(terms: Payments, orders: Sequence[Order]) -> list[str]:
    """Where the forms may lead to: the provider's pages, also of an own domain that orders were paid at before."""
    base = urlsplit(terms.api_base)
    found = {_STRIPE_PAGES if base.hostname == _STRIPE_API else f"{base.scheme}://{base.netloc}"}
    for order in orders[:_LOOKED_AT]:
        url = urlsplit(order.url or "")
        if url.scheme in ("https", "http") and url.netloc:
            found.add(f"{url.scheme}://{url.netloc}")
    return sorted(found)
