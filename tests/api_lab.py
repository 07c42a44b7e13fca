"""The whole API as a process serves it (console and payments beside it), in a thread, for tests from outside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from cli.everything import enforcing
from config.payments import Payments
from config.settings import EnforcerSettings, RedisSettings, Settings
from config.slurm_rules import AccountRule
from config.sources import SlurmSource
from config.values import Address, Secret
from ledger.clock import now_us
from ledger.model import RatePlan, RateTable
from ledger.sessions import SessionStore
from ledger.store import Ledger, open_ledger
from tests.servers import ServerProcess
from tests.standins.stripe_api import KEY, SECRET, StripeApi

T = TypeVar("T")
HOUR_US = 3_600_000_000
ORGS = ("acme", "globex")
HIDDEN = ("globex-secret-project", "globex-secret-reason", "globex-secret-contact")
"""What only tokens of globex, and admins, may ever see."""


@dataclass
class LiveApi:
    """`tokens`: of every role, and those named in `_provision`. `cookies`: sessions of the same."""

    url: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    ledger: Ledger = field(init=False, repr=False)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def do(self, work: Awaitable[T]) -> T:
        """Something that is awaited in the thread of the API."""

        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(60)


@contextmanager
def live_api(directory: Path) -> Iterator[LiveApi]:
    """Serves until the block ends, with a Valkey of its own."""
    server = ServerProcess(directory / "valkey").start()
    try:
        with _in_thread(server.url, directory) as api:
            yield api
    finally:
        server.kill9()


@contextmanager
def _in_thread(redis_url: str, directory: Path) -> Iterator[LiveApi]:
    api = LiveApi()
    stop = asyncio.Event()
    begun = threading.Event()
    failures: list[BaseException] = []

    async def serve() -> None:
        async with _served(api, redis_url, directory):
            begun.set()
            await stop.wait()

    def run() -> None:
        try:
            api.loop.run_until_complete(serve())
        except BaseException as error:
            failures.append(error)
        finally:
            begun.set()
            api.loop.close()

    thread = threading.Thread(target=run, name="api")
    thread.start()
    begun.wait(60)
    if failures:
        raise failures[0]
    try:
        yield api
    finally:
        if not api.loop.is_closed():
            api.loop.call_soon_threadsafe(stop.set)
        thread.join(60)
    if failures:
        raise failures[0]


@asynccontextmanager
async def _served(api: LiveApi, redis_url: str, directory: Path) -> AsyncIterator[None]:
    async with open_ledger(redis_url, None, now_us() - 100 * HOUR_US) as ledger, StripeApi().serve() as stripe_url:
        payments = Payments(
            secret_key=Secret(KEY), webhook_secret=Secret(SECRET), public_url="https://credits.example.com/",
            price_per_credit=Decimal("0.05"), api_base=stripe_url, timeout_seconds=2,
        )  # fmt: skip
        settings = Settings(
            path=directory / "settings.yaml", redis=RedisSettings(url=redis_url), data_dir=directory,
            sources=(SlurmSource(name="slurm", cluster="default", accounts=(AccountRule("*-*", "{1}", "{2}"),)),),
            enforcer=EnforcerSettings(listen=Address("127.0.0.1", 0)), payments=payments,
        )  # fmt: skip
        api.ledger = ledger
        await _provision(api, ledger, settings)
        async with enforcing(settings) as api.url:
            yield


async def _provision(api: LiveApi, ledger: Ledger, settings: Settings) -> None:
    table = RateTable({"gpu-large": 40_000_000_000, "cpu": 4_000_000_000})
    await ledger.rates.publish(RatePlan("default", ((0, table),)))
    for org in ORGS:
        await ledger.accounts.grant(org, 10**10, key="k", who="test", reason=HIDDEN[1] if org == "globex" else "begin")
        project = "vision" if org == "acme" else HIDDEN[0]
        await ledger.budgets.put(org, project, None, 10**9, who="test")
    await ledger.accounts.upsert("globex", who="test", contact=HIDDEN[2])
    given: dict[str, tuple[str, str | None]] = {
        "admin": ("admin", None), "owner": ("owner", "acme"), "viewer": ("viewer", "acme"),
        "scheduler": ("scheduler", None), "scheduler of acme": ("scheduler", "acme"), "other": ("owner", "globex"),
        "revoked": ("admin", None),
    }  # fmt: skip
    store = SessionStore(
        ledger.client, settings.console.session_hours * 3600, settings.console.idle_minutes * 60, ledger.clock
    )
    for name, (role, org) in given.items():
        token, api.tokens[name] = await ledger.tokens.create(role, org)
        api.cookies[name] = await store.begin(store.of_token(token))
        if name == "revoked":
            await ledger.tokens.revoke(token.id)
    late: Any = Ledger(ledger.client, ledger.epoch_us, lambda: now_us() - 2 * HOUR_US)
    token, api.tokens["expired"] = await late.tokens.create("admin", expires_us=now_us() - HOUR_US)
