"""Whose address the journal names: the connection's, or what a trusted proxy forwards for."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from enforcer.addresses import address_of, behind

PROXIES = [ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8"), ip_network("::1/128")]


async def _address(proxies: list[object], *forwarded: str) -> str:
    async def say(request: web.Request) -> web.Response:
        return web.Response(text=str(address_of(request)))

    app = web.Application(middlewares=[behind(proxies)])  # type: ignore[arg-type]
    app.router.add_get("/{name}", say)
    headers = [("X-Forwarded-For", one) for one in forwarded]
    async with TestClient(TestServer(app)) as client, client.get("/x", headers=headers) as answer:
        return await answer.text()


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ([], "127.0.0.1"),
        (["203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),  # the left one is only what the caller claims
        (["198.51.100.1", "203.0.113.9, 10.1.2.3"], "203.0.113.9"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["10.1.2.3"], "10.1.2.3"),
        (["203.0.113.9, nonsense"], "127.0.0.1"),
        (["nonsense, 10.1.2.3"], "10.1.2.3"),
        (["203.0.113.9," * 300 + "203.0.113.7"], "203.0.113.7"),
        ([""], "127.0.0.1"),
    ],
)
async def test_what_a_trusted_proxy_forwards_for_is_the_callers_address(forwarded: list[str], expected: str) -> None:
    assert expected == await _address(list(PROXIES), *forwarded)


async def test_what_anybody_else_claims_is_not() -> None:
    assert await _address([ip_network("10.0.0.0/8")], "203.0.113.9") == "127.0.0.1"
    assert await _address([], "203.0.113.9") == "127.0.0.1"
