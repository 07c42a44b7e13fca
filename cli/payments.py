"""Puts payments beside the enforcer: the calls of the console behind the enforcer's roles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cli.base import open_ledger

if TYPE_CHECKING:
    from config.settings import Settings
    from enforcer.access import Route
    from enforcer.app import MoreRoutes
    from ledger.store import Ledger


@asynccontextmanager
async def taking_payments(given: Settings) -> AsyncIterator[MoreRoutes]:
    """The routes of payments, for the enforcer; meanwhile the provider is asked for what its webhooks did not bring.

    Raises: as `open_ledger`.
    """
    from console.payments_api import PaymentsApi
    from enforcer.access import Route, token_of

    def routes(api: PaymentsApi) -> list[Route]:
        return [Route(*call) for call in api.calls()]

    if given.payments is None:
        nothing = PaymentsApi(None, lambda request: token_of(request).who)
        yield lambda _: routes(nothing)
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
            api = PaymentsApi(till, lambda request: token_of(request).who)
            tasks = [
                asyncio.create_task(Reconciler(ledger, till).run(given.payments.reconcile_seconds)),
                asyncio.create_task(TopUpRunner(ledger, till).run(given.metering.interval_seconds)),
            ]

            def give(_: Ledger) -> Iterable[Route]:
                return routes(api)

            try:
                yield give
            finally:
                for task in tasks:
                    await end(task)
    finally:
        await provider.close()
