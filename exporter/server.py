"""The exporter's HTTP side: `/metrics`, health, reload."""

from __future__ import annotations

import asyncio
import errno
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest, gzip_accepted

from config.values import Address
from ledger.errors import CreditsError

_GZIP_LEVEL: Final = 1
"""Metrics are repetitive: the fastest level makes them ten times smaller, the best one costs ten times as much."""
_PLAIN_BYTES: Final = 1024
_PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
_CLOSE_SECONDS: Final = 2.0


class CannotListen(CreditsError):
    """The address is taken or not ours."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the server asks of the exporter."""

    registry: CollectorRegistry
    """Small families, rendered by prometheus_client."""
    text: Callable[[bool], str]
    """(OpenMetrics?) -> the ledger's families, whole lines."""
    missing: Callable[[], Awaitable[list[str]]]
    """What there is still to wait for until this is ready."""
    reload: Callable[[], Awaitable[str | None]]
    """Reads the configuration again; what is wrong with it."""


def exposition(answers: Answers, accept: str) -> tuple[bytes, str]:
    """(body, content type), as prometheus_client negotiates it."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is none
        encode, content_type = generate_latest, _PLAIN
    text = answers.text(content_type.startswith("application/openmetrics-text"))
    # The library's part comes last: in OpenMetrics it ends with the end mark.
    return text.encode() + encode(answers.registry), content_type


def application(answers: Answers) -> web.Application:
    """The routes; `HEAD` goes wherever `GET` goes."""
    app = web.Application()
    app.router.add_get("/metrics", partial(_metrics, answers))
    app.router.add_get("/-/healthy", _healthy)
    app.router.add_get("/-/ready", partial(_ready, answers))
    app.router.add_post("/-/reload", partial(_reload, answers))
    app.router.add_put("/-/reload", partial(_reload, answers))
    return app


@asynccontextmanager
async def listening(app: web.Application, address: Address, remedy: str) -> AsyncIterator[int]:
    """Serves `app` for as long as the block lasts; gives the port.

    Raises: CannotListen, ending with the remedy.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address.host or None, address.port)
        try:
            await site.start()
        except OSError as error:
            why = "something listens there already" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise CannotListen(f"cannot listen on {address.host or '*'}:{address.port}: {why}; {remedy}") from error
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()


async def _metrics(answers: Answers, request: web.Request) -> web.Response:
    body, content_type = exposition(answers, ",".join(request.headers.getall("Accept", [])))
    headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
    if len(body) > _PLAIN_BYTES and gzip_accepted(",".join(request.headers.getall("Accept-Encoding", []))):
        body = await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL, mtime=0)
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, headers=headers)


async def _healthy(request: web.Request) -> web.Response:
    return web.Response(text="The exporter is alive.\n")


async def _ready(answers: Answers, request: web.Request) -> web.Response:
    missing = await answers.missing()
    if missing:
        return web.Response(status=503, text="".join(f"Not ready: {what}\n" for what in missing))
    return web.Response(text="The exporter is ready.\n")


async def _reload(answers: Answers, request: web.Request) -> web.Response:
    problem = await answers.reload()
    if problem is not None:
        return web.Response(status=500, text=f"The last good configuration stays in force. {problem}\n")
    return web.Response(text="The configuration on disk is in force.\n")
