"""Who asked has gone before the answer came: it was taken for a no, so nothing stays set aside for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from config.values import Address
from enforcer.app import build_app
from enforcer.server import serving
from ledger.connect import Client
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger
from ledger.verify import verify
from tests.integration.test_enforcer_http import JOB, SETTINGS, T0, slurm

CREDIT = 1_000_000


@asynccontextmanager
async def listening(client: Client) -> AsyncIterator[tuple[Ledger, Callable[..., Any]]]:
    """An enforcer as it is served (a test client's server would cancel what nobody waits for), and a way to ask it."""
    ledger = Ledger(client, T0)
    for cluster in ("c", "hpc"):
        await ledger.rates.publish(RatePlan(cluster, ((0, RateTable({"cpu": 4_000_000_000, "small": 4_000_000_000})),)))
    await ledger.accounts.grant("acme", 30 * CREDIT, key="k", who="test")
    _, token = await ledger.tokens.create("scheduler")
    app = build_app(ledger, SETTINGS)
    async with serving(app, replace(SETTINGS.enforcer, listen=Address("127.0.0.1", 0))) as url:

        async def ask(path: str, asked: object, patience: float | None = None) -> Any:
            """The answer; None where it was not waited for."""
            body = json.dumps(asked).encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(
                f"POST {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            try:
                async with asyncio.timeout(patience):
                    return json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
            except TimeoutError:
                return None
            finally:
                writer.close()

        yield ledger, ask


@pytest.mark.parametrize(("path", "asked"), [("/v1/admission/slurm", slurm()), ("/v1/admission", JOB)])
async def test_a_hold_of_which_nobody_was_told_ends_at_once(client: Client, path: str, asked: dict[str, Any]) -> None:
    async with listening(client) as (ledger, ask):
        assert (await ask(path, asked))["allowed"]
        await client.execute_command("CLIENT", "PAUSE", "400", "WRITE")
        assert await ask(path, asked, patience=0.1) is None
        assert (await ask(path, asked))["allowed"]  # decided after the one that nobody waited for
        async with asyncio.timeout(10):
            while (await ledger.accounts.balance("acme")).held_micro != 2 * CREDIT:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await verify(ledger))["ok"]


async def test_work_that_says_what_it_is_finds_its_hold_again(client: Client) -> None:
    async with listening(client) as (ledger, ask):
        await ask("/v1/admission", JOB)
        asked = {**JOB, "workload_id": "7"}
        await client.execute_command("CLIENT", "PAUSE", "400", "WRITE")
        assert await ask("/v1/admission", asked, patience=0.1) is None
        again = await ask("/v1/admission", asked)
        await asyncio.sleep(0.3)  # nothing is to happen
        assert (await ledger.accounts.balance("acme")).held_micro == 2 * CREDIT
        assert await ledger.admissions.release("acme", again["hold_id"]) == CREDIT
