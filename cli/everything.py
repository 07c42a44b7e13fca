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
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.base import DEFAULT_CONFIG, open_ledger, reach
from ledger.errors import IdempotencyConflict

if TYPE_CHECKING:
    from config.settings import Settings
    from exporter.app import Exporter
    from ledger.store import Ledger

log = logging.getLogger("run")
TOKEN_FILE = "admin.token"  # noqa: S105
FIRST_CREDITS = (2_000_000_000, 5_000_000_000, 1_000_000_000, 25_000_000)
"""What the simulated orgs begin with, in micro-credits: the last one soon knows what running out is like."""
_LOOK_SECONDS = 0.05
_UP_SECONDS = 30.0


class _ExporterThread:
    """The exporter on a loop of its own."""

    def __init__(self, given: Settings) -> None:
        self._given = given
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self.started: concurrent.futures.Future[Exporter] = concurrent.futures.Future()

    def serve(self) -> None:
        """Blocks until it is stopped. Raises: as `exporting`."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        from exporter.app import exporting

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with exporting(self._given) as exporter:
            self.started.set_result(exporter)
            await self._stop.wait()

    def call(self, what: str) -> None:
        """`stop` it, or have it `reload` its configuration, from another thread."""
        if self._loop is not None and self._stop is not None:
            act = self._stop.set if what == "stop" else self.started.result(0).reload
            with suppress(RuntimeError):  # its loop has ended
                self._loop.call_soon_threadsafe(act)


async def run_everything(given: Settings, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, or until one of the services fails.

    Raises: what the service that failed raised.
    """
    from enforcer.app import serve as enforce

    async with open_ledger(given) as ledger:
        await _first_grants(ledger, given)
        token = await _admin_token(ledger, given.data_dir / TOKEN_FILE)
        exporter, enforcer_stop = _ExporterThread(given), asyncio.Event()
        services = {
            asyncio.create_task(asyncio.to_thread(exporter.serve), name="exporter"),
            asyncio.create_task(enforce(given, enforcer_stop), name="enforcer"),
        }
        loop = asyncio.get_running_loop()
        told = asyncio.create_task(_tell_when_up(given, exporter, token))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({*services, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            told.cancel()
            stopping.cancel()
            exporter.call("stop")
            enforcer_stop.set()
            await asyncio.wait(services)
        for service in services:
            if (error := service.exception()) is not None:
                raise error
    log.info("stopped; the data is in %s", given.data_dir)


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
    record, token = await ledger.tokens.create("admin", note="made by `credits run`")
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


async def _tell_when_up(given: Settings, exporter: _ExporterThread, token: Path) -> None:
    exporter_url = (await asyncio.wrap_future(exporter.started)).url
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, exporter.call, "reload")
    listen = given.enforcer.listen
    scheme = "https" if given.enforcer.tls else "http"
    deadline = asyncio.get_running_loop().time() + _UP_SECONDS
    while listen.port and asyncio.get_running_loop().time() < deadline:
        try:
            _, writer = await asyncio.open_connection(listen.host or "127.0.0.1", listen.port)
        except OSError:
            await asyncio.sleep(_LOOK_SECONDS)
        else:
            writer.close()
            break
    click.echo("\n".join(_what_next(given, exporter_url, f"{scheme}://{reach(listen)}", token)))
    sys.stdout.flush()


def _what_next(given: Settings, exporter_url: str, enforcer_url: str, token: Path) -> Iterable[str]:
    program = "credits" if shutil.which("credits") else _relative(Path(sys.argv[0]))
    command = program if given.path == DEFAULT_CONFIG else f"{program} --config {given.path}"
    org = next((org for source in given.sources for org in getattr(source, "orgs", ())), "acme")
    cluster = given.sources[0].cluster
    body = f'{{"cluster":"{cluster}","org":"{org}","kind":"job","preset":"gpu-large","dry_run":true}}'
    sources = ", ".join(source.name for source in given.sources)
    where = f"the embedded server of {given.data_dir}" if given.redis.url == "embedded" else "the server of redis.url"
    yield f"""
Apolo Credits is up: {sources}, asked every {given.metering.interval_seconds:g} s; the ledger is in {where}.

  metrics   {exporter_url}/metrics
  console   {enforcer_url}/console
  API       {enforcer_url}/openapi.json
  token     {token} (admin)

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
