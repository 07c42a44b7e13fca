"""Serving a stand-in on a free port, and faults that its next answers have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Fault:
    """What goes wrong with a request whose path contains `path`: a status, a cut connection or silence.

    `after`: what was asked for is done first, only its answer is lost. `method`: of these requests only.
    """

    path: str
    status: int = 0
    cut: bool = False
    silent: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    after: bool = False
    method: str = ""


class Faults:
    """Faults to come, and the requests there were."""

    def __init__(self) -> None:
        self.coming: list[Fault] = []
        self.requests: list[tuple[str, str]] = []

    def add(self, fault: Fault) -> None:
        self.coming.append(fault)

    def count(self, method: str, path: str) -> int:
        """How many requests there were of this method whose path with query contains `path`."""
        return sum(1 for said, where in self.requests if said == method and path in where)

    @property
    def middleware(self) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        @web.middleware
        async def apply(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.requests.append((request.method, request.path_qs))
            for fault in self.coming:
                if fault.path in request.path_qs and fault.times > 0 and fault.method in ("", request.method):
                    fault.times -= 1
                    if fault.after:
                        await handler(request)
                    if fault.silent:
                        await asyncio.Event().wait()
                    if fault.cut:
                        assert request.transport is not None
                        request.transport.abort()
                    return web.json_response({"error": "a fault"}, status=fault.status or 500, headers=fault.headers)
            return await handler(request)

        return apply


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Serve on the loopback; gives the URL. What still runs at the end is ended."""
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
