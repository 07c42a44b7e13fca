"""Ends connections whose other side does not get on with its request, so that nobody fills the table of open files.

aiohttp waits for a request, for the end of its headers and for its body as long as it takes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from aiohttp import web

SECONDS: Final = 90.0
"""For one request to come in whole; more than what a connection that was used may wait for its next."""
_LOOKS: Final = 4
"""How often within that time: it is kept to a quarter."""
log = logging.getLogger(__name__)


async def end_slow_senders(server: web.Server, seconds: float = SECONDS) -> None:
    """Until it is cancelled."""
    loop = asyncio.get_running_loop()
    seen: dict[Any, tuple[int, float]] = {}  # connection -> requests that came on it, since when no other did
    while True:
        await asyncio.sleep(seconds / _LOOKS)
        now = loop.time()
        before, seen = seen, {}
        for connection in server.connections:
            came = _count(connection)
            known, since = before.get(connection, (came, now))
            seen[connection] = came, since if known == came and _is_awaited(connection) else now
            if now - seen[connection][1] >= seconds:
                log.debug("a connection is closed: no whole request came within %g s", seconds)
                connection.force_close()


def _count(connection: Any) -> int:
    count: int = connection._request_count
    return count


def _is_awaited(connection: Any) -> bool:
    """Whether something of the request has to come yet; nobody is closed for waiting for an answer."""
    request: web.BaseRequest | None = connection._current_request
    return not request.content.is_eof() if request is not None else not connection._messages
