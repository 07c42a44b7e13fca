"""Admissions from many processes, and through crashes: never more than can be paid, and nothing leaks."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ledger import keys
from ledger.connect import Client, connect
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger
from ledger.verify import verify
from tests.servers import ServerProcess, free_port

T0 = 1_795_000_000_000_000
CREDIT = 1_000_000
ROOT = Path(__file__).parents[2]


async def prepared(client: Client, credits_micro: int) -> Ledger:
    ledger = Ledger(client, T0)
    await ledger.rates.publish(RatePlan("c", ((0, RateTable({"small": 4_000_000_000})),)))
    await ledger.accounts.grant("acme", credits_micro, key="k", who="test")
    return ledger


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, cwd=ROOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 22,
    )  # fmt: skip


async def ask_from(
    processes: int, url: str, requests: int, count: int, seed: int, begun: asyncio.Event | None = None, *more: str
) -> list[str]:
    """What the processes were told, all asking at once; `begun` is set when they do. `more`: arguments of each."""
    arguments = ("tests.admission_worker", url, str(requests), str(count))
    workers = [await start(*arguments, str(seed + number), *more) for number in range(processes)]
    for worker in workers:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
    if begun is not None:
        begun.set()
    outputs = await asyncio.gather(*(worker.communicate(b"go\n") for worker in workers))
    assert all(worker.returncode == 0 for worker in workers)
    return [line for output, _ in outputs for line in output.decode().split()]


async def in_agreement(ledger: Ledger) -> int:
    """What is held; fails where the ledger does not agree with itself."""
    balance = await ledger.accounts.balance("acme")
    left = balance.granted_micro - balance.expired_micro - balance.spent_micro - balance.held_micro
    assert balance.available_micro == left >= 0
    report = await verify(ledger)
    assert report["ok"], report["differences"]
    return balance.held_micro


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["org", "project", "user"])
async def test_ten_thousand_from_several_processes_pass_exactly_as_often_as_can_be_paid(
    make_server: Callable[..., ServerProcess], tier: str
) -> None:
    chance = random.Random(tier)
    fits, count = chance.randrange(1, 3000), chance.randrange(1, 5)
    server = make_server()
    async with connect(server.url, None) as client:
        room = fits * count * CREDIT + chance.randrange(count * CREDIT)
        ledger = await prepared(client, room if tier == "org" else 10**15)
        if tier != "org":
            user = "ann" if tier == "user" else None
            await ledger.budgets.put("acme", "vision", user, room, who="test", period="total")
        said = await ask_from(4, server.url, 2500, count, 1)
        holds = {line for line in said if line.startswith("acme.")}
        assert (len(said), len(holds)) == (10_000, fits)
        assert set(said) - holds == {"no_credits" if tier == "org" else "budget_exhausted"}
        assert await in_agreement(ledger) == fits * count * CREDIT


@pytest.mark.parametrize("seed", [1, 2])
async def test_batches_of_two_processes_pass_exactly_as_often_as_can_be_paid(
    make_server: Callable[..., ServerProcess], seed: int
) -> None:
    chance = random.Random(seed)
    fits, count = chance.randrange(1, 250), chance.randrange(1, 4)
    server = make_server()
    async with connect(server.url, None) as client:
        ledger = await prepared(client, fits * count * CREDIT + chance.randrange(count * CREDIT))
        said = await ask_from(2, server.url, 150, count, seed * 10)
        holds = {line for line in said if line.startswith("acme.")}
        assert (len(said), len(holds), set(said) - holds) == (300, fits, {"no_credits"})
        assert await in_agreement(ledger) == fits * count * CREDIT
        calls: Any = await client.info("commandstats")
        assert calls["cmdstat_evalsha"]["calls"] < 300  # they did share calls


@pytest.mark.slow
async def test_the_server_killed_again_and_again_leaks_no_hold(make_server: Callable[..., ServerProcess]) -> None:
    """Every hold that was answered and survived the log's end is there once; none is there that nobody was told of."""
    server = make_server(appendfsync="always")
    async with connect(server.url, None) as client:
        await prepared(client, 700 * CREDIT)
    begun = asyncio.Event()
    asking = asyncio.create_task(ask_from(3, server.url, 400, 1, 7, begun))
    await begun.wait()
    chance, kills = random.Random(3), 0
    while not asking.done():
        await asyncio.sleep(chance.uniform(0.02, 0.3))
        server.kill9()
        server.start()
        kills += 1
    assert kills > 1
    said = await asking
    async with connect(server.url, None) as client:
        ledger = Ledger(client, T0)
        holds = {line for line in said if line.startswith("acme.")}
        assert len(said) == 1200
        assert len(holds) == 700
        stored: Any = await client.hkeys(keys.of_org("acme").holds)
        assert {name.decode() for name in stored} == holds
        assert await in_agreement(ledger) == 700 * CREDIT


async def test_an_enforcer_that_is_killed_leaves_holds_that_end(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = make_server()
    port = free_port()
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"redis: {{url: '{server.url}'}}\nenforcer: {{listen: '127.0.0.1:{port}'}}\n")
    async with connect(server.url, None) as client:
        ledger = await prepared(client, 500 * CREDIT)
        _, token = await ledger.tokens.create("scheduler")
        process = await start("tests.enforcer_worker", str(settings))
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"http")
        job = {"cluster": "c", "org": "acme", "project": "vision", "user": "ann", "preset": "small"}
        told: list[str] = []

        async def ask(session: aiohttp.ClientSession) -> None:
            with suppress(aiohttp.ClientError, OSError):
                while True:
                    async with session.post(f"http://127.0.0.1:{port}/v1/admission", json=job) as answer:
                        told.append(json.loads(await answer.text())["hold_id"])

        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
            asking = asyncio.gather(*(ask(session) for _ in range(8)))
            async with asyncio.timeout(20):
                while len(told) < 50:  # noqa: ASYNC110 - the askers fill it
                    await asyncio.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            await asking
        await process.wait()
        held = await in_agreement(ledger)
        holds: Any = await client.hkeys(keys.of_org("acme").holds)
        assert held == len(holds) * CREDIT
        assert set(told) <= {name.decode() for name in holds}
        assert len(holds) <= len(told) + 8  # those whose answers were under way when it was killed
        later = Ledger(client, T0, lambda: ledger.clock() + 16 * 60_000_000)
        assert await in_agreement(later) == 0
