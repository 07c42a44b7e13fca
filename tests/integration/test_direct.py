"""Calls that are served without a look at the routes are answered as the application answers them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from config.settings import EnforcerSettings, Settings
from config.values import Address
from enforcer.app import build_app
from enforcer.direct import DIRECT
from enforcer.server import serving
from ledger.connect import Client
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger

JOB = json.dumps({"cluster": "c", "org": "acme", "user": "ann", "preset": "small", "dry_run": True})
PATH = "/v1/admission"


@asynccontextmanager
async def serving_admission(client: Client, *, directly: bool) -> AsyncIterator[tuple[int, str, list[str]]]:
    """(port, a scheduler's token, the paths that were looked up among the routes)."""
    ledger, looked_up = Ledger(client, 0), list[str]()
    await ledger.rates.publish(RatePlan("c", ((0, RateTable({"small": 10**9})),)))
    await ledger.accounts.grant("acme", 10**9, key="g", who="test")
    _, token = await ledger.tokens.create("scheduler")
    app = build_app(ledger, Settings(path=Path("settings.yaml")))
    if not directly:
        app[DIRECT] = {}
    inner = app.router.resolve

    async def resolve(request: web.Request) -> Any:
        looked_up.append(request.raw_path)
        return await inner(request)

    app.router.resolve = resolve  # type: ignore[method-assign]
    async with serving(app, EnforcerSettings(listen=Address("127.0.0.1", 0))) as url:
        yield int(url.rpartition(":")[2]), token, looked_up


async def answer(port: int, request: bytes) -> bytes:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        data = await reader.read()
        writer.close()
    return re.sub(rb"\r\nDate: [^\r]*", b"", data)


def asking(line: str, token: str | None, body: str = JOB, more: str = "") -> bytes:
    who = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{who}{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def asked(token: str) -> dict[str, tuple[bytes, bytes, bool]]:
    """By name: (a request, how its answer begins, whether its route is looked up)."""
    ok, post = b"HTTP/1.1 200 OK\r\n", f"POST {PATH}"
    return {
        "allowed": (asking(post, token), ok, False),
        "refused": (asking(post, token, JOB.replace("acme", "other")), ok, False),
        "no token": (asking(post, None), b"HTTP/1.1 401 ", False),
        "wrong token": (asking(post, "act_wrong"), b"HTTP/1.1 401 ", False),
        "no JSON": (asking(post, token, "{"), b"HTTP/1.1 400 ", False),
        "no such field": (asking(post, token, JOB.replace("preset", "prest")), b"HTTP/1.1 422 ", False),
        "too large": (asking(post, token, " " * 70_000), b"HTTP/1.1 413 ", False),
        "a query": (asking(post + "?x=1", token), ok, True),
        "encoded": (asking("POST /v1/%61dmission", token), ok, True),
        "another method": (asking(f"GET {PATH}", token), b"HTTP/1.1 405 ", True),
        "another path": (asking(post + "s", token), b"HTTP/1.1 404 ", True),
        "waits to be told": (
            asking(post, token, more="Expect: 100-continue\r\n"), b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK", True
        ),
    }  # fmt: skip


async def test_all_is_answered_as_by_the_application(client: Client) -> None:
    answers: list[dict[str, bytes]] = []
    for directly in (True, False):
        await client.flushdb()
        async with serving_admission(client, directly=directly) as (port, token, looked_up):
            found: dict[str, bytes] = {}
            for name, (request, begin, is_looked_up) in asked(token).items():
                looked_up.clear()
                found[name] = await answer(port, request)
                assert found[name].startswith(begin), name
                assert bool(looked_up) == (is_looked_up or not directly), name
            answers.append(found)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("trusted", [(), (ip_network("10.0.0.0/8"),)])
def test_behind_proxies_the_caller_is_found_out_first(client: Client, trusted: tuple[Any, ...]) -> None:
    settings = Settings(path=Path("settings.yaml"), enforcer=EnforcerSettings(trusted_proxies=trusted))
    assert bool(build_app(Ledger(client, 0), settings)[DIRECT]) == (not trusted)
