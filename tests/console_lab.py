"""A console over a ledger that real rounds of a simulated cluster filled, with a stand-in for Stripe beside it."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cli.console import console_side
from config.payments import Package, Payments
from config.settings import Settings
from config.sources import SimulatedSource as SimulatedSettings
from config.values import Secret
from console.payments import Till
from console.payments_api import PaymentsApi
from console.stripe_provider import StripeProvider
from enforcer.access import token_of
from enforcer.app import build_app
from enforcer.failures import Failures
from exporter.books import Books
from exporter.rounds import Rounds
from exporter.sources.base import Source
from exporter.sources.simulated import SimulatedSource
from ledger.clock import parse_time
from ledger.connect import connect
from ledger.model import RatePlan, RateTable
from ledger.money import HOUR_US
from ledger.purchases import Purchases
from ledger.store import Ledger
from ledger.top_ups import TopUps
from tests.standins.stripe_api import KEY, SECRET, StripeApi

NOW = parse_time("2026-11-19T14:25:00Z")
RATES = RateTable(
    presets={
        "cpu-small": 1_000_000_000, "cpu-large": 4_000_000_000, "gpu-small": 12_500_000_000,
        "gpu-large": 40_500_000_000,
    },
    apps={"jupyter": 500_000_000, "vllm": 2_500_000_000},
    storage={"default": 100_000},
)  # fmt: skip
ROLES = (("admin", None), ("owner", "acme"), ("viewer", "acme"), ("scheduler", None))


@dataclass
class ConsoleLab:
    """`clock[0]` is now; `tokens` by role, those of owner and viewer are of acme; `pages`: addresses of all pages of
    the console, with `{org}` where one is to be named."""

    url: str
    ledger: Ledger
    clock: list[int]
    tokens: dict[str, str]
    stripe: StripeApi
    rounds: Rounds | None
    http: aiohttp.ClientSession
    pages: list[str]

    async def admit(self, **body: Any) -> Any:
        """What a scheduler is told."""
        given = {"cluster": "default", "org": "acme", "kind": "job", "preset": "gpu-large", **body}
        return await self.call("POST", "/v1/admission", given, "scheduler")

    async def call(self, method: str, path: str, body: object = None, role: str = "admin", **headers: str) -> Any:
        """The HTTP API's answer."""
        about = {"Authorization": f"Bearer {self.tokens[role]}", **headers}
        async with self.http.request(method, self.url + path, json=body, headers=about) as response:
            if response.content_type == "text/csv":
                return await response.text()
            return await response.json(content_type=None)


@asynccontextmanager
async def console_lab(
    server: str, *, since_us: int = NOW - 16 * 24 * HOUR_US, sells: bool = True, source: Source | None = None,
    jobs_per_hour: float = 4.0, clock: list[int] | None = None,
) -> AsyncIterator[ConsoleLab]:  # fmt: skip
    """The Valkey at the URL `server` is emptied. `source`: rounds over it are the caller's; else over a simulated
    cluster of one org, acme, up to now."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect(server, None))
        await client.flushall()
        now = clock or [since_us]
        ledger = Ledger(client, since_us, lambda: now[0])
        await ledger.rates.publish(RatePlan("default", ((0, RATES),)))
        tokens = {role: (await ledger.tokens.create(role, org, note=f"{role}'s"))[1] for role, org in ROLES}
        simulated: Source = source or SimulatedSource(
            name="simulated-default", cluster="default", seed=7, orgs=("acme",), jobs_per_hour=jobs_per_hour,
            clock=lambda: now[0],
        )  # fmt: skip
        rounds = Rounds(Books(ledger), simulated, hold_us=HOUR_US // 4)

        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        stripe = StripeApi(hook=f"{url}/v1/payments/stripe")
        payments = Payments(
            secret_key=Secret(KEY), webhook_secret=Secret(SECRET), public_url=url, price_per_credit=Decimal("0.05"),
            packages=(
                Package(credits_micro=1_000_000_000, price=Decimal(45)),
                Package(credits_micro=5_000_000_000, price=Decimal(200)),
            ),
            api_base=await stack.enter_async_context(stripe.serve()), timeout_seconds=5,
        )  # fmt: skip
        till = None
        if sells:
            provider = StripeProvider(payments)
            stack.push_async_callback(provider.close)
            purchases = Purchases(client, ledger.scripts, lambda: now[0], payments.refunds)
            till = Till(payments, purchases, provider, TopUps(client, ledger.scripts))
        given = Settings(
            path=Path("settings.yaml"), payments=payments if sells else None,
            sources=(SimulatedSettings(name="simulated-default", cluster="default"),),
        )  # fmt: skip
        failures = Failures()
        app = build_app(
            ledger, given, lambda: now[0], PaymentsApi(till, lambda request: token_of(request).who).calls(),
            console=console_side(ledger, given, failures, None, till), failures=failures,
        )  # fmt: skip
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.SockSite(runner, taken).start()
        http = await stack.enter_async_context(aiohttp.ClientSession())
        gets = {route.resource.canonical for route in app.router.routes() if route.resource and route.method == "GET"}
        pages = sorted(path for path in gets if path.startswith("/console"))
        yield ConsoleLab(url, ledger, now, tokens, stripe, rounds, http, pages)


async def fill(lab: ConsoleLab) -> None:
    """A fortnight of an org that is doing well: grants, budgets, a purchase, a job that was refused."""
    ledger, who = lab.ledger, "token:4f1c0a9be2d77a10 (admin)"
    start = lab.clock[0]
    await ledger.accounts.upsert("acme", who=who, contact="credits@acme.example")
    await ledger.accounts.grant("acme", 60_000_000_000, key="2026", who=who, reason="Research allocation 2026")
    await ledger.accounts.grant(
        "acme", 2_500_000_000, key="gift", who=who, source="gift", reason="Winter school",
        expires_us=start + 30 * 24 * HOUR_US,
    )  # fmt: skip
    await ledger.accounts.grant(
        "acme", 10_000_000_000, key="2027", who=who, reason="Research allocation 2027",
        effective_us=parse_time("2027-01-01T00:00:00Z"), expires_us=parse_time("2028-01-01T00:00:00Z"),
    )  # fmt: skip
    assert lab.rounds is not None
    while lab.clock[0] < NOW:
        lab.clock[0] = min(lab.clock[0] + 4 * HOUR_US, NOW)
        report = await lab.rounds.round()
        assert not report.failed, report


async def use(lab: ConsoleLab) -> None:
    """What people did of late: budgets, a purchase and an order that waits, and work that was refused."""
    for project, user, micro, period in _budgets(await _projects(lab)):
        await lab.ledger.budgets.put("acme", project, user, micro, who="token:77b01c (owner)", period=period)
    bought = {"Idempotency-Key": "autumn"}
    order = await lab.call("POST", "/v1/orgs/acme/purchases", {"credits": "1000"}, "owner", **bought)
    lab.stripe.pay(order["checkout_url"].rpartition("/")[2])
    await lab.stripe.settle()
    waits = {"Idempotency-Key": "winter"}
    await lab.call("POST", "/v1/orgs/acme/purchases", {"credits": "250"}, "owner", **waits)
    for number in range(3):
        lab.clock[0] += 47_000_000
        answer = await lab.admit(
            project=("speech", "climate", "speech")[number],
            user=("jo", "kim", "lee")[number],
            count=(1, 50_000, 4)[number],
            workload_id=f"train-{number}",
        )
        assert not answer["allowed"], answer


async def _projects(lab: ConsoleLab) -> list[Any]:
    shape = await lab.call("GET", "/v1/usage?group_by=project,user")
    rows: list[Any] = sorted(shape["rows"], key=lambda row: -Decimal(row["credits"]))
    return rows


def _budgets(rows: list[Any]) -> list[tuple[str, str | None, int, str]]:
    """One that is used up, one that nearly is, and two with room, by what was spent so far."""
    sums: dict[str, Decimal] = {}
    for row in rows:
        sums[row["project"]] = sums.get(row["project"], Decimal()) + Decimal(row["credits"])
    shares = (Decimal("1.55"), Decimal("1.03"), Decimal("0.98"))
    found: list[tuple[str, str | None, int, str]] = [
        (name, None, int(sums[name] * share) // 50 * 50_000_000, "month")
        for name, share in zip(sorted(sums), shares, strict=False)
    ]
    user = next(row for row in rows if row["user"])
    return [*found, (user["project"], user["user"], 6_000_000_000, "week")]
