"""`run`, `exporter`, `enforcer`: what goes on until it is stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from cli.base import Command, json_option, settings
from cli.output import print_json

if TYPE_CHECKING:
    from config.settings import Settings

SOURCE_TYPES = ("simulated", "json", "slurm", "apolo", "kubernetes")
Service = Callable[[asyncio.Event], Awaitable[None]]


@click.command(cls=Command)
@click.option("--once", is_flag=True, help="One round over the sources, committed, and out (cron, tests).")
@json_option
@click.pass_context
def exporter(context: click.Context, once: bool, as_json: bool) -> None:
    """Meter the sources and serve Prometheus."""
    if as_json and not once:
        raise click.UsageError("--json goes with --once")
    given = settings()
    if once:
        context.exit(_one_round(given, as_json))

    from cli.logs import set_up
    from exporter.app import serve

    set_up()
    until_stopped(lambda stop: serve(given, stop))


def _one_round(given: Settings, as_json: bool) -> int:
    import logging

    from cli.logs import set_up
    from exporter.app import run_once
    from ledger.clock import format_time

    set_up(logging.WARNING)
    results = asyncio.run(run_once(given))
    if as_json:
        print_json(
            [
                {
                    "source": result.source,
                    "ok": result.ok,
                    "taken_at": format_time(result.report.taken_us) if result.report else None,
                    "workloads": result.report.workloads if result.report else None,
                    "error": result.error,
                }
                for result in results
            ]
        )
    for result in results:
        if result.error is not None:
            click.echo(f"credits: {result.error}", err=True)
        elif result.report is not None and not as_json:
            taken = format_time(result.report.taken_us)
            click.echo(f"{result.source}: charged up to {taken}, {result.report.workloads} workloads listed")
    return 0 if all(result.ok for result in results) else 1


@click.command(cls=Command)
def enforcer() -> None:
    """Admit work; serve the API and the console."""
    given = settings()

    from cli.everything import enforcing
    from cli.logs import set_up

    async def service(stop: asyncio.Event) -> None:
        async with enforcing(given):
            await stop.wait()

    set_up()
    until_stopped(service)


@click.command(cls=Command)
@click.option("--source", type=click.Choice(SOURCE_TYPES), help="Only the sources of this type.")
def run(source: str | None) -> None:
    """Everything on this machine: the ledger's server, exporter and enforcer."""
    given = settings()
    if source is not None:
        given = with_source(given, source)

    from cli.everything import run_everything
    from cli.logs import set_up
    from ledger.embedded import claim_run

    set_up()
    with claim_run(given.data_dir):
        until_stopped(lambda stop: run_everything(given, stop))


def with_source(given: Settings, kind: str) -> Settings:
    """The settings with only the sources of one type; a type that needs no more gets one with its defaults."""
    from config.fields import Refused
    from config.source_list import SOURCE_TYPES as CLASSES
    from config.source_list import source_type

    chosen = tuple(source for source in given.sources if source_type(source) == kind)
    if not chosen:
        try:
            chosen = (CLASSES[kind](name=f"{kind}-default"),)  # type: ignore[call-arg]
        except (Refused, TypeError):
            example = {"json": "path: snapshot.json", "apolo": "token_file: apolo-token"}[kind]
            raise click.UsageError(
                f"{given.path}: sources: none is of type {kind}; add for example: "
                f"- {{type: {kind}, cluster: default, {example}}}"
            ) from None
    return replace(given, sources=chosen)


def until_stopped(service: Service) -> None:
    """Runs a service until Ctrl-C or SIGTERM; a second one ends the process on the spot, which does no harm."""

    async def serve() -> None:
        stop = asyncio.Event()
        with _on_signals(stop):
            await service(stop)

    asyncio.run(serve())


@contextmanager
def _on_signals(stop: asyncio.Event) -> Iterator[None]:
    def leave() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


COMMANDS = (run, exporter, enforcer)
