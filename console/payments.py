"""Selling credits: an order is recorded before its buyer is sent to pay, and credited when the provider says so."""

from __future__ import annotations

import logging
from typing import Final
from urllib.parse import quote

from config.payments import Payments
from console.provider import Closed, LookAt, News, Provider, Returned, Unusable
from ledger.clock import now_us
from ledger.errors import InvalidRequest
from ledger.money import format_micro
from ledger.purchase_step import Order, Paid, Reversal
from ledger.purchases import Purchases, order_id_of

UNPAID_MAX: Final = 50
_DAY_US: Final = 86_400_000_000
log = logging.getLogger(__name__)


class Till:
    """Takes orders and the news of their payments."""

    def __init__(self, settings: Payments, purchases: Purchases, provider: Provider) -> None:
        self.settings = settings
        self.purchases = purchases
        self.provider = provider

    async def order(self, org: str, micro: int, key: str, who: str) -> Order:
        """An order with the page it is paid on; the same one for the same key.

        Raises: InvalidRequest, IdempotencyConflict, ProviderUnavailable and LedgerUnavailable (both: retry is safe).
        """
        terms = self.settings
        if not terms.sells(micro):
            packages = "".join(f", {format_micro(p.credits_micro)}" for p in terms.packages)
            least, most = format_micro(terms.minimum_micro), format_micro(terms.maximum_micro)
            raise InvalidRequest(
                f"credits: {format_micro(micro)} credits are not sold at once; from {least} to {most}{packages} are"
            )
        if await self.purchases.get(org, order_id_of(org, key)) is None:
            await self._check_unpaid(org)
        order = await self.purchases.order(org, micro, terms.price_of(micro), terms.currency, key=key, who=who)
        if order.state != "new":
            return order
        checkout = await self.provider.checkout(order, self.page_of(order))
        return await self.purchases.opened(org, order.id, checkout.session, checkout.url, checkout.expires_us)

    async def _check_unpaid(self, org: str) -> None:
        since = now_us() - _DAY_US
        orders = await self.purchases.orders(org)
        if sum(order.state in ("new", "open") and order.created_us > since for order in orders) >= UNPAID_MAX:
            raise InvalidRequest(
                f"org {org} has {UNPAID_MAX} orders of the last day that are not paid; pay one of them"
            )

    def page_of(self, order: Order) -> str:
        """Where the buyer comes back to."""
        return f"{self.settings.public_url.rstrip('/')}/console/payments/{quote(order.org, safe='')}/{order.id}"

    async def take(self, news: News) -> str:
        """Have the ledger follow the news: what became of it, in a word.

        Raises: ProviderUnavailable, LedgerUnavailable (both: retry is safe).
        """
        match news:
            case Paid():
                said = await self.purchases.paid(news)
            case Closed():
                await self.purchases.closed(news.org, news.order, news.state)
                return news.state
            case Returned():
                said = await self._returned(news)
            case LookAt():
                results = [await self.take(one) for one in await self.provider.returns_of(news.payment)]
                return "changed" if "changed" in results else "known"
            case Unusable():
                await self.purchases.refused("unreadable")
                said = "refused"
        if said == "refused":
            # Money moved and credits did not: somebody has to look.
            log.error("payment not credited: %s", news)
        elif said != "known":
            log.info("%s: %s", said, news)
        return said

    async def _returned(self, news: Returned) -> str:
        place = await self.purchases.place_of(news.payment) or await self.provider.place_of(news.payment)
        if place is None:
            return "ignored"  # a payment for something else
        return await self.purchases.returned(
            Reversal(*place, news.payment, news.id, news.kind, news.rank, news.amount, news.currency)
        )
