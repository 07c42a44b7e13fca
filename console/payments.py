"""Selling credits: an order is recorded before its buyer is sent to pay, and credited when the provider says so."""

from __future__ import annotations

import logging
from typing import Final

from config.payments import Payments
from console.provider import Closed, LookAt, News, Provider, Returned, Unusable
from console.receipt import receipt_path
from ledger.clock import now_us
from ledger.errors import InvalidRequest
from ledger.money import format_micro
from ledger.purchase_step import Order, Paid, Reversal
from ledger.purchases import Purchases, order_id_of
from ledger.top_ups import Card, TopUps

UNPAID_MAX: Final = 50
_DAY_US: Final = 86_400_000_000
log = logging.getLogger(__name__)


class Till:
    """Takes orders and the news of their payments."""

    def __init__(self, settings: Payments, purchases: Purchases, provider: Provider, top_ups: TopUps) -> None:
        self.settings = settings
        self.purchases = purchases
        self.provider = provider
        self.top_ups = top_ups

    async def order(
        self, org: str, micro: int, key: str, who: str, save_card: bool = False, address: str | None = None
    ) -> Order:
        """An order with the page it is paid on; the same one for the same key. `save_card`: the buyer agrees to have
        the card charged again by auto top-up.

        Raises: InvalidRequest, IdempotencyConflict, ProviderUnavailable and LedgerUnavailable (both: retry is safe).
        """
        terms = self.settings
        if not terms.sells(micro):
            packages = ", ".join(format_micro(p.credits_micro) for p in terms.packages)
            least, most = format_micro(terms.minimum_micro), format_micro(terms.maximum_micro)
            raise InvalidRequest(
                f"credits: {format_micro(micro)} are not sold at once; choose from {least} to {most}"
                + (f", or a package of {packages}" if packages else "")
            )
        if await self.purchases.get(org, order_id_of(org, key)) is None:
            await self._check_unpaid(org)
        card = (await self.top_ups.read(org)).card if save_card else None
        order = await self.purchases.order(
            org, micro, terms.price_of(micro), terms.currency, key=key, who=who, save_card=save_card,
            customer="" if card is None else card.customer, address=address,
        )  # fmt: skip
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
        return self.settings.public_url.rstrip("/") + receipt_path(order)

    async def take(self, news: News) -> str:
        """Have the ledger follow the news: what became of it, in a word.

        Raises: ProviderUnavailable, LedgerUnavailable (both: retry is safe).
        """
        match news:
            case Paid():
                said = await self.purchases.paid(news)
                if news.customer and said != "refused":
                    await self._keep_card(news)
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

    async def _keep_card(self, news: Paid) -> None:
        order = await self.purchases.get(news.org, news.order)
        if order is None or not order.save_card:
            return
        known = (await self.top_ups.read(news.org)).card
        if known is not None and known.agreed_us >= order.created_us:
            return
        card = await self.provider.card_of(news.payment)
        if card is None:
            log.warning("org %s: the card of order %s cannot be charged again", order.org, order.id)
            return
        await self.top_ups.keep_card(
            order.org,
            Card(
                card.customer, card.method, card.brand, card.last4, card.expires, order.id, order.created_us, order.who
            ),
        )

    async def _returned(self, news: Returned) -> str:
        place = await self.purchases.place_of(news.payment) or await self.provider.place_of(news.payment)
        if place is None:
            return "ignored"  # a payment for something else
        return await self.purchases.returned(
            Reversal(*place, news.payment, news.id, news.kind, news.rank, news.amount, news.currency)
        )
