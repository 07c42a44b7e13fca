"""The listener of the enforcer."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from config.settings import EnforcerSettings
from enforcer.direct import DIRECT, serve_directly
from enforcer.slow_senders import SECONDS, end_slow_senders
from enforcer.tls import Certificates
from ledger.errors import InvalidRequest

log = logging.getLogger(__name__)
_HEADER_MAX: Final = 16 * 1024
_COLLECTED_EVERY: Final = 10_000
"""Objects made more than freed before the garbage collector looks for cycles among them."""


@asynccontextmanager
async def serving(app: web.Application, settings: EnforcerSettings, patience: float = SECONDS) -> AsyncIterator[str]:
    """Serves `app` where the settings say; gives its URL (with the port it got, where 0 was asked for).

    `patience`: seconds that the sender of a request may take.

    Raises: InvalidRequest when the address cannot be listened on, or for certificates that cannot be used.
    """
    certificates = None if settings.tls is None else Certificates(settings.tls)
    async with AsyncExitStack() as stack:
        runner = web.AppRunner(
            app, access_log=None, max_field_size=_HEADER_MAX, max_line_size=_HEADER_MAX, keepalive_timeout=75,
            handle_signals=False, logger=_http_log,
        )  # fmt: skip
        await runner.setup()
        if runner.server is not None and DIRECT in app:
            serve_directly(runner.server, app[DIRECT])
        stack.push_async_callback(runner.cleanup)
        context = None if certificates is None else certificates.context
        site = web.TCPSite(
            runner, settings.host or None, settings.port, ssl_context=context, backlog=1024,
        )  # fmt: skip
        try:
            await site.start()
        except OSError as error:
            raise InvalidRequest(
                f"enforcer.listen {settings.host}:{settings.port}: {error.strerror or error}"
            ) from error
        assert runner.server is not None, "it was set up"
        slow = asyncio.create_task(end_slow_senders(runner.server, patience))
        stack.push_async_callback(_cancel, slow)
        if certificates is not None:
            follower = asyncio.create_task(certificates.follow())
            stack.push_async_callback(_cancel, follower)
        # What is loaded by now stays, and a request leaves no cycles. Looked at in every collection, and that as often
        # as by default, all this would make a request cost a quarter more.
        gc.collect()
        gc.freeze()
        stack.callback(gc.unfreeze)
        stack.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(_COLLECTED_EVERY, 10, 10)
        port = runner.addresses[0][1]
        host = settings.host or "127.0.0.1"
        shown = f"[{host}]" if ":" in host else host
        yield f"{'http' if context is None else 'https'}://{shown}:{port}"


class _Legible(logging.Filter):
    """What is no HTTP is its sender's fault: a line for who looks for it, not an error with a traceback for each."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            log.debug("not a request of HTTP: %s", " ".join(error.message.split())[:200])
            return False
        return True


_http_log: Final = logging.getLogger("enforcer.http")
_http_log.addFilter(_Legible())


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
