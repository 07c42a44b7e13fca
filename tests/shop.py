"""A shop with both sides: our API with tokens of every role, and a stand-in for Stripe."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from config.payments import Package, Payments
from config.settings import Settings
from config.values import Secret
from console.payments import Till
from console.payments_api import PaymentsApi
from console.reconcile import Reconciler
from console.stripe_provider import StripeProvider
from console.top_up_api import TopUpApi
from enforcer.access import token_of
from enforcer.addresses import address_of
from enforcer.app import build_app
from ledger.clock import Clock
from ledger.connect import Client
from ledger.errors import LedgerUnavailable
from ledger.purchases import Purchases
from ledger.store import Ledger
from ledger.top_ups import TopUps
from tests.standins.stripe_api import KEY, SECRET, StripeApi

T0 = 1_795_000_000_000_000
SETTINGS = Settings(path=Path("settings.yaml"), sources=())


@dataclass
class Shop:
    """Both sides: our API with tokens of every role, and Stripe."""

    http: TestClient[Any, Any]
    stripe: StripeApi
    ledger: Ledger
    till: Till
    reconciler: Reconciler
    tokens: dict[str, str]
    answered: Mapping[str, str] = field(default_factory=dict)
    """Headers of the last answer."""

    async def call(
        self, method: str, path: str, body: object = None, role: str | None = "owner", **headers: str
    ) -> tuple[int, Any]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if role is not None:
            given["Authorization"] = f"Bearer {self.tokens[role]}"
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self.http.request(method, path, data=data, headers=given) as response:
            self.answered = response.headers
            if response.status >= 400:
                assert response.content_type == "application/problem+json", await response.text()
                return response.status, json.loads(await response.read())
            return response.status, None if response.status == 204 else await response.json()

    async def buy(
        self, credits_: str = "100", key: str = "k", org: str = "acme", role: str = "owner", **more: Any
    ) -> Any:
        path = f"/v1/orgs/{org}/purchases"
        status, order = await self.call("POST", path, {"credits": credits_, **more}, role, Idempotency_Key=key)
        assert status == 201, order
        return order

    def session_of(self, order: Any) -> str:
        return str(order["checkout_url"].rpartition("/")[2])

    async def balance(self) -> str:
        status, shape = await self.call("GET", "/v1/orgs/acme/balance")
        return "0" if status == 404 else str(shape["available"])

    async def state(self, order: Any) -> str:
        return str((await self.call("GET", f"/v1/orgs/acme/purchases/{order['id']}"))[1]["state"])


@asynccontextmanager
async def open_shop(client: Client, clock: Clock | None = None, **terms: Any) -> AsyncIterator[Shop]:
    """A shop on an empty ledger. `terms`: settings of payments that are others here."""
    ledger = Ledger(client, T0, clock)
    tokens = {}
    for role, org in (("admin", None), ("owner", "acme"), ("viewer", "acme"), ("scheduler", None), ("other", "globex")):
        _, tokens[role] = await ledger.tokens.create("owner" if role == "other" else role, org)
    stripe_api = StripeApi()
    async with stripe_api.serve() as url:
        payments = Payments(
            secret_key=Secret(KEY), webhook_secret=Secret(SECRET), public_url="https://credits.example.com/",
            price_per_credit=Decimal("0.05"), packages=(Package(credits_micro=1_000_000_000, price=Decimal(40)),),
            api_base=url, timeout_seconds=2, **terms,
        )  # fmt: skip
        provider = StripeProvider(payments)
        purchases = Purchases(client, ledger.scripts, clock, payments.refunds)
        till = Till(payments, purchases, provider, TopUps(client, ledger.scripts, clock))
        calls = [
            *PaymentsApi(till, lambda request: token_of(request).who).calls(),
            *TopUpApi(till, ledger.accounts, lambda request: token_of(request).who, address_of).calls(),
        ]
        app = build_app(ledger, SETTINGS, more=calls)
        async with TestClient(TestServer(app)) as http:
            stripe_api.hook = str(http.make_url("/v1/payments/stripe"))
            yield Shop(http, stripe_api, ledger, till, Reconciler(ledger, till), tokens)
        await provider.close()


class Stumbling(Purchases):
    """Its writes fail when told, before they are sent or with the answer lost."""

    crash = ""

    async def _commit(self, *arguments: Any, **named: Any) -> str:
        crash, self.crash = self.crash, ""
        if crash == "before":
            raise LedgerUnavailable
        said = await super()._commit(*arguments, **named)
        if crash == "after":
            raise LedgerUnavailable
        return said


def left_of(api: StripeApi, payment: Any) -> int:
    """What of a payment is not refunded, in the smallest unit of its currency."""
    returned = [r for r in api.refunds.values() if r["payment_intent"] == payment["id"] and r["status"] == "succeeded"]
    return int(payment["amount"]) - sum(int(r["amount"]) for r in returned)
