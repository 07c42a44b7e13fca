"""`credits run`: exporter and enforcer in one process, and what makes a first start worth looking at.

One process, so that kill -9 leaves nothing behind but files. The exporter has a thread with a loop of its own:
a long round holds up no decision.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.base import DEFAULT_CONFIG, open_ledger
from ledger.errors import CreditsError, IdempotencyConflict, InvalidRequest

if TYPE_CHECKING:
    from config.settings import Settings
    from exporter.app import Exporter
    from ledger.store import Ledger

log = logging.getLogger("run")
TOKEN_FILE = "admin.token"  # noqa: S105
FIRST_CREDITS = (2_000_000_000, 5_000_000_000, 1_000_000_000, 25_000_000)
"""What the simulated orgs begin with, in micro-credits: the last one soon knows what running out is like."""


class CannotServe(CreditsError):
    """The enforcer's address or certificates cannot be used."""


class _ExporterThread:
    """The exporter on a loop of its own."""

    def __init__(self, given: Settings) -> None:
        self._given = given
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._is_stopped = False
        self.started: concurrent.futures.Future[Exporter] = concurrent.futures.Future()

    def serve(self) -> None:
        """Blocks until it is stopped. Raises: as `exporting`."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        from exporter.app import exporting

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._is_stopped:
            return
        async with exporting(self._given) as exporter:
            self.started.set_result(exporter)
            await self._stop.wait()

    def call(self, what: str) -> None:
        """`stop` it, or have it `reload` its configuration, from another thread."""
        self._is_stopped = self._is_stopped or what == "stop"
        if self._loop is not None and self._stop is not None:
            act = self._stop.set if what == "stop" else self.started.result(0).reload
            with suppress(RuntimeError):  # its loop has ended
                self._loop.call_soon_threadsafe(act)


async def run_everything(given: Settings, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, or until the exporter fails.

    Raises: what the service that failed raised.
    """
    loop = asyncio.get_running_loop()
    async with open_ledger(given) as ledger:
        await _first_grants(ledger, given)
        token = await _admin_token(ledger, given.data_dir / TOKEN_FILE)
        exporter = _ExporterThread(given)
        metering: asyncio.Future[Any] = asyncio.create_task(asyncio.to_thread(exporter.serve))
        stopping: asyncio.Future[Any] = asyncio.create_task(stop.wait())
        started: asyncio.Future[Any] = asyncio.wrap_future(exporter.started)
        try:
            await asyncio.wait({metering, stopping, started}, return_when=asyncio.FIRST_COMPLETED)
            if started.done():  # the rates are in force, so that the enforcer finds them
                async with enforcing(given) as url:
                    loop.add_signal_handler(signal.SIGHUP, exporter.call, "reload")
                    click.echo(_what_next(given, started.result().url, url, token))
                    sys.stdout.flush()
                    await asyncio.wait({metering, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    log.info("stopping")
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            stopping.cancel()
            started.cancel()
            exporter.call("stop")
            await asyncio.wait({metering})
        metering.result()
    log.info("stopped; the data is in %s", given.data_dir)


@asynccontextmanager
async def enforcing(given: Settings) -> AsyncIterator[str]:
    """The enforcer, serving; gives its URL. Raises: CannotServe and what concerns the ledger."""
    from cli.console import console_beside
    from cli.payments import opening_till, payment_routes
    from enforcer.app import enforcing as serve
    from enforcer.failures import Failures

    failures = Failures()
    async with AsyncExitStack() as stack:
        try:
            till = await stack.enter_async_context(opening_till(given))
            console = await stack.enter_async_context(console_beside(given, failures, till))
            calls = payment_routes(till)
            url = await stack.enter_async_context(serve(given, None, calls, console=console, failures=failures))
        except InvalidRequest as e:
            raise CannotServe(f"{e}; stop what listens there, or change the section enforcer of {given.path}") from e
        yield url


async def _first_grants(ledger: Ledger, given: Settings) -> None:
    """Something to spend for the orgs of simulated clusters, once for ever."""
    from config.sources import SimulatedSource

    for source in given.sources:
        if not isinstance(source, SimulatedSource):
            continue
        for number, org in enumerate(source.orgs):
            micro = FIRST_CREDITS[number % len(FIRST_CREDITS)]
            with suppress(IdempotencyConflict):  # an earlier version gave something else
                receipt = await ledger.accounts.grant(
                    org, micro, key="run:first", who="credits run", reason="credits of a simulated org to begin with"
                )
                if not receipt.replayed:
                    log.info("granted %s credits to simulated org %s", receipt.record.credits, org)


async def _admin_token(ledger: Ledger, path: Path) -> Path:
    """The file with a token of role admin that this ledger knows; made when there is none."""
    known = _read_token(path)
    if known and await ledger.tokens.authenticate(known) is not None:
        return path
    record, token = await ledger.tokens.create("admin", note="made by `credits run`", who="credits run")
    _write_token(path, token)
    log.info("admin token %s is in %s", record.id, path)
    return path


def _read_token(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""


def _write_token(path: Path, token: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(token + "\n")
    partial.replace(path)


def _what_next(given: Settings, exporter_url: str, enforcer_url: str, token: Path) -> str:
    program = "credits" if shutil.which("credits") else _relative(Path(sys.argv[0]))
    command = program if given.path == DEFAULT_CONFIG else f"{program} --config {given.path}"
    org = next((org for source in given.sources for org in getattr(source, "orgs", ())), "acme")
    cluster = given.sources[0].cluster
    body = f'{{"cluster":"{cluster}","org":"{org}","kind":"job","preset":"gpu-large","dry_run":true}}'
    sources = ", ".join(source.name for source in given.sources)
    where = f"the embedded server of {given.data_dir}" if given.redis.url == "embedded" else "the server of redis.url"
    return f"""
Apolo Credits is up: {sources}, asked every {given.metering.interval_seconds:g} s; the ledger is in {where}.

  metrics   {exporter_url}/metrics
  console   {enforcer_url}/console
  API       {enforcer_url}/v1
  token     {token} (admin; to sign in with, too)

Try next, in another terminal:

  {command} balance
  {command} usage --group-by project,user --step hour
  curl -s {exporter_url}/metrics | grep '^credits_available'
  {command} admit {org} gpu-large --cluster {cluster} --dry-run
  curl -s -H "Authorization: Bearer $(cat {token})" -d '{body}' {enforcer_url}/v1/admission
  {command} grant {org} 100 --reason 'top-up'
  {command} verify

Ctrl-C stops everything; the data stays."""


def _relative(path: Path) -> str:
    with suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)
