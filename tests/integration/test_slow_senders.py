"""Who sends a request slowly, or never, does not keep a connection; who waits for an answer does."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
from aiohttp import web

from config.settings import EnforcerSettings
from config.values import Address
from enforcer.server import serving

PATIENCE = 0.4
GOOD = b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"


async def _quick(request: web.Request) -> web.Response:
    return web.Response(text=str(len(await request.read())))


async def _long(request: web.Request) -> web.Response:
    await asyncio.sleep(3 * PATIENCE)
    return web.Response(text="done")


async def _port(stack: contextlib.AsyncExitStack) -> int:
    app = web.Application()
    app.router.add_get("/quick", _quick)
    app.router.add_post("/quick", _quick)
    app.router.add_get("/long", _long)
    settings = replace(EnforcerSettings(), listen=Address("127.0.0.1", 0))
    url = await stack.enter_async_context(serving(app, settings, PATIENCE))
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /quick HT",
        b"GET /quick HTTP/1.1\r\nHost: x\r\nX-A: ",
        b"POST /quick HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
        GOOD + b"GET /quick HTTP/1.1\r\nHost",
    ],
)
async def test_a_request_that_does_not_come_whole_ends_its_connection(sent: bytes) -> None:
    async with contextlib.AsyncExitStack() as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", await _port(stack))
        writer.write(sent)
        async with asyncio.timeout(20 * PATIENCE):
            answer = await reader.read()  # to the end of the connection
        assert answer.count(b"200 OK") == sent.count(GOOD)
        writer.close()


async def test_who_waits_for_an_answer_gets_it_and_may_ask_on() -> None:
    async with contextlib.AsyncExitStack() as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", await _port(stack))
        writer.write(GOOD.replace(b"quick", b"long"))
        assert b"200 OK" in await reader.readuntil(b"done")
        for _ in range(20):  # requests one after the other, for longer than one may take
            writer.write(GOOD)
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n0")
            await asyncio.sleep(PATIENCE / 8)
        writer.close()
