"""A process that tops up, to be killed: `python -m tests.top_up_worker REDIS_URL STRIPE_URL OTHERS_US`."""

from __future__ import annotations

import asyncio
import sys
from decimal import Decimal

from config.payments import Payments
from config.values import Secret
from console.payments import Till
from console.stripe_provider import StripeProvider
from console.top_up import TopUpRunner
from ledger.purchases import Purchases
from ledger.store import open_ledger
from ledger.top_ups import TopUps
from tests.standins.stripe_api import KEY, SECRET


async def work(redis_url: str, stripe_url: str, others_us: int) -> None:
    """Looks again and again."""
    payments = Payments(
        secret_key=Secret(KEY), webhook_secret=Secret(SECRET), public_url="https://x", price_per_credit=Decimal("0.05"),
        api_base=stripe_url, timeout_seconds=60,
    )  # fmt: skip
    async with open_ledger(redis_url) as ledger:
        top_ups = TopUps(ledger.client, ledger.scripts)
        till = Till(payments, Purchases(ledger.client, ledger.scripts), StripeProvider(payments), top_ups)
        await TopUpRunner(ledger, till, others_us).run(0.05)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3])))
