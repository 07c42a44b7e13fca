"""Puts payments beside the enforcer: the calls of the console behind the enforcer's roles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cli.base import open_ledger

if TYPE_CHECKING:
    from aiohttp import web

    from api.routes import Route
    from config.settings import Settings
    from console.payments import Till
    from enforcer.app import MoreRoutes
    from ledger.store import Ledger


@asynccontextmanager
async def opening_till(given: Settings) -> AsyncIterator[Till | None]:
    """What takes orders and payments, None where nothing is sold. Meanwhile the provider is asked for what its
    webhooks did not bring, and orgs that asked for it are topped up.

    Raises: as `open_ledger`.
    """
    if given.payments is None:
        yield None
        return

    from console.payments import Till
    from console.reconcile import Reconciler, end
    from console.stripe_provider import StripeProvider
    from console.top_up import TopUpRunner
    from ledger.purchases import Purchases
    from ledger.top_ups import TopUps

    provider = StripeProvider(given.payments)
    try:
        async with open_ledger(given) as ledger:
            purchases = Purchases(ledger.client, ledger.scripts, refunds=given.payments.refunds)
            till = Till(given.payments, purchases, provider, TopUps(ledger.client, ledger.scripts))
            tasks = [
                asyncio.create_task(Reconciler(ledger, till).run(given.payments.reconcile_seconds)),
                asyncio.create_task(TopUpRunner(ledger, till).run(given.metering.interval_seconds)),
            ]
            try:
                yield till
            finally:
                for task in tasks:
                    await end(task)
    finally:
        await provider.close()


def payment_routes(till: Till | None) -> MoreRoutes:
    """The routes of payments, for the enforcer; without a till they say that nothing is sold."""
    from console.payments_api import PaymentsApi
    from console.top_up_api import TopUpApi
    from enforcer.access import token_of
    from enforcer.addresses import address_of

    def who(request: web.Request) -> str:
        return token_of(request).who

    def routes(ledger: Ledger) -> list[Route]:
        return [*PaymentsApi(till, who, address_of).calls(), *TopUpApi(till, ledger.accounts, who, address_of).calls()]

    return routes
