"""Auto top-up: looks at the orgs that asked for it, and drives the one order that each may have in flight to its end.

Any number of processes may do this at once, and each may end at any point: the ledger lets one order at a time be
made, the provider makes one charge of it, and who comes next asks what became of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Final

from console.payments import Till
from console.provider import Charge
from ledger.errors import CreditsError, UnknownOrg
from ledger.money import format_micro
from ledger.purchase_step import Order, Paid
from ledger.store import Ledger
from ledger.top_ups import TopUp

OTHERS_US: Final = 60_000_000
"""An order that was just made, or tried, is in the hands of somebody, for no longer than this."""
CHARGE_WITHIN_US: Final = 20 * 3_600_000_000
"""The provider knows the key of a charge for a day: after that it would charge again."""
log = logging.getLogger(__name__)


class TopUpRunner:
    """One look is `once()`."""

    def __init__(self, ledger: Ledger, till: Till, others_us: int = OTHERS_US) -> None:
        self._ledger = ledger
        self._till = till
        self._others_us = others_us
        self._tried: dict[str, int] = {}
        self._not_sold: set[str] = set()

    async def run(self, seconds: float) -> None:
        """A look every so often, until it is cancelled."""
        while True:
            try:
                await self.once()
            except CreditsError as error:
                log.warning("auto top-up: %s", error)
            except Exception:
                log.exception("auto top-up failed")
            await asyncio.sleep(seconds)

    async def once(self) -> Counter[str]:
        """One look at every org: how many are in which state. What fails is tried again at the next look.

        Raises: LedgerUnavailable.
        """
        found: Counter[str] = Counter()
        for org in await self._till.top_ups.orgs():
            try:
                found[await self.look(org)] += 1
            except CreditsError as error:
                log.warning("auto top-up of org %s: %s", org, error)
                found["error"] += 1
        return found

    async def look(self, org: str) -> str:
        """What there is to be said of an org's auto top-up now, in a word.

        Raises: ProviderUnavailable, LedgerUnavailable (both: a retry is safe).
        """
        seen = await self._till.top_ups.read(org)
        if seen.order:
            return await self._go_on(seen)
        said = seen.state(self._ledger.clock())
        if said not in ("ready", "capped"):
            return said
        assert seen.terms is not None
        try:
            balance = await self._ledger.accounts.balance(org)
        except UnknownOrg:
            return "unknown"
        if balance.unlimited or balance.available_micro >= seen.terms.threshold_micro:
            return "enough"
        if not self._till.settings.sells(seen.terms.micro):
            if org not in self._not_sold:  # said once; the settings were changed since the terms were set
                self._not_sold.add(org)
                log.warning("org %s: its auto top-up buys %s credits: not sold", org, format_micro(seen.terms.micro))
            return "not_sold"
        terms = self._till.settings
        order = await self._till.top_ups.claim(seen, terms.price_of(seen.terms.micro), terms.currency)
        return order if isinstance(order, str) else await self._charge(order)

    async def _go_on(self, seen: TopUp) -> str:
        purchases, now = self._till.purchases, self._ledger.clock()
        order = await purchases.get(seen.org, seen.order)
        assert order is not None, "it was recorded in the step that put it in flight"
        if order.state == "new" and now - max(order.created_us, self._tried.get(order.id, 0)) < self._others_us:
            return "in_flight"
        charge = await self._till.provider.charge_of(order)
        if charge is not None:
            return await self._settle(order, charge, is_asked=True)
        if now - order.created_us < CHARGE_WITHIN_US:
            return await self._charge(order)
        await purchases.closed(order.org, order.id, "failed")
        log.warning("org %s: order %s of its auto top-up was never charged", order.org, order.id)
        return "failed"

    async def _charge(self, order: Order) -> str:
        self._tried[order.id] = self._ledger.clock()
        charge = await self._till.provider.charge(order)
        del self._tried[order.id]
        return await self._settle(order, charge, is_asked=False)

    async def _settle(self, order: Order, charge: Charge, *, is_asked: bool) -> str:
        """`is_asked`: the charge is what the provider says when asked for it, by which credits may come."""
        if charge.state == "failed" and charge.payment:
            charge, reason = await self._till.provider.cancel(charge.payment), charge.reason
            if charge.state == "cancelled":
                return await self._fail(order, reason)
            if charge.state == "failed":
                return "in_flight"  # neither paid nor cancelled: asked again at the next look
        if charge.state in ("failed", "cancelled"):
            return await self._fail(order, charge.reason)
        if charge.state == "paid" and is_asked:
            news = Paid(order.org, order.id, charge.payment, charge.amount, charge.currency)
            return await self._till.take(news)
        await self._till.purchases.closed(order.org, order.id, "pending", payment=charge.payment)
        return "pending"

    async def _fail(self, order: Order, reason: str) -> str:
        await self._till.purchases.closed(order.org, order.id, "failed", reason)
        log.warning("org %s: order %s of its auto top-up was not paid: %s", order.org, order.id, reason)
        return "failed"
