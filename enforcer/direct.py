"""Calls that are handed to their handlers without a look at the routes.

Finding the route of a request and calling its handler through the application costs about as much as writing the
answer. A call that is told by its exact path, without parts to fill in, needs none of that. Whatever is not exactly
such a call goes to the application, as all others do: another method, a query, another way to write the path.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from aiohttp import web
from aiohttp.hdrs import EXPECT

from api.routes import Handler

DIRECT: Final[web.AppKey[Mapping[tuple[str, str], Handler]]] = web.AppKey("direct")
"""Handlers by (method, path). They are behind the same guard and answer the same errors as in the application; what
only the application knows (`match_info`, `app`) is not in their requests."""


def serve_directly(server: web.Server, calls: Mapping[tuple[str, str], Handler]) -> None:
    """Has a server, before its first connection, ask for these calls first."""
    application: Callable[[Any], Awaitable[web.StreamResponse]] = server.request_handler

    def handle(request: Any) -> Awaitable[web.StreamResponse]:
        handler = calls.get((request.method, request.raw_path))
        if handler is None or EXPECT in request.headers:  # the application says that a body may be sent
            return application(request)
        return handler(request)

    server.request_handler = handle
