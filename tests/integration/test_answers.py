"""Answers that are written in one piece are those that `web.Response` writes, byte for byte."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from config.settings import EnforcerSettings, Tls
from config.values import Address
from enforcer.admission.webhook_config import make_pair
from enforcer.answers import Answer
from enforcer.server import serving

BODY = b'{"allowed":true,"reason":"' + "ä".encode() * 40 + b'"}'
DATE = re.compile(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")
KINDS: dict[str, Callable[[bytes], web.StreamResponse]] = {
    "Answer": Answer,
    "Response": lambda body: web.Response(body=body, content_type="application/json"),
}
REQUESTS = [
    ("1.1", ""), ("1.1", "Connection: close\r\n"), ("1.1", "Connection: keep-alive\r\n"),
    ("1.0", ""), ("1.0", "Connection: keep-alive\r\n"), ("1.0", "Connection: close\r\n"),
]  # fmt: skip


@asynccontextmanager
async def answering(kind: str, tls: Tls | None = None) -> AsyncIterator[tuple[str, int]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        return KINDS[kind](BODY)

    app = web.Application()
    app.router.add_post("/", handler)
    async with serving(app, EnforcerSettings(listen=Address("127.0.0.1", 0), tls=tls)) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


async def said(kind: str, requests: bytes, count: int, tls: Tls | None = None) -> tuple[bytes, bool]:
    """(all answers, whether the connection was closed behind them)."""
    context = None
    if tls is not None:
        context = ssl.create_default_context(cafile=str(tls.cert))
    async with answering(kind, tls) as (host, port), asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.write(requests)
        data = b""
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            found = re.search(rb"Content-Length: (\d+)", head)
            assert found is not None
            data += head + await reader.readexactly(int(found[1]))
        if count == 1:  # one more: it is answered only where the connection was kept
            writer.write(requests)
        rest = await reader.read(1)
        writer.close()
        return DATE.sub(b"Date: then", data), not rest


def asking(version: str, more: str = "") -> bytes:
    return f"POST / HTTP/{version}\r\nHost: x\r\nContent-Length: 2\r\n{more}\r\n{{}}".encode()


@pytest.mark.parametrize(("version", "more"), REQUESTS)
async def test_as_a_response_in_every_version_and_with_every_wish_to_keep_the_connection(
    version: str, more: str
) -> None:
    ours, plain = [await said(kind, asking(version, more), 1) for kind in KINDS]
    assert ours == plain
    assert BODY in ours[0]
    assert b"Date: then" in ours[0]


async def test_answers_to_requests_that_were_sent_in_one_go_come_in_their_order() -> None:
    requests = asking("1.1") * 2 + asking("1.1", "Connection: close\r\n")
    ours, plain = [await said(kind, requests, 3) for kind in KINDS]
    assert ours == plain
    assert ours[1]


async def test_as_a_response_over_tls(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, ["127.0.0.1"])
    tls = Tls(cert=cert, key=key)
    ours, plain = [await said(kind, asking("1.1", "Connection: close\r\n"), 1, tls) for kind in KINDS]
    assert ours == plain
    assert ours[1]


async def test_a_client_that_is_gone_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    noticed = asyncio.Event()

    class Noted(Answer):
        async def write_eof(self, data: bytes = b"") -> None:
            try:
                await super().write_eof(data)
            except ConnectionError:
                noticed.set()
                raise

    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return Noted(BODY)

    app = web.Application()
    app.router.add_post("/", handler)
    async with serving(app, EnforcerSettings(listen=Address("127.0.0.1", 0))) as url, asyncio.timeout(10):
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(asking("1.1"))
        await noticed.wait()
        writer.close()
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]
