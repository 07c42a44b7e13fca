"""`statement`, `rates impact`, `export`: what is handed to others, and what other rates would mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.base import Command, Group, Time, csv_option, json_option, with_ledger
from cli.output import print_json, print_rows, print_table
from cli.reports import Groups
from cli.tools import rates

if TYPE_CHECKING:
    from ledger.rerate import ImpactReport
    from ledger.statement import Statement
    from ledger.store import Ledger


@click.command(cls=Command)
@click.argument("org")
@click.argument("month", required=False)
@click.option("--timezone", default="UTC", show_default=True, help="Whose month it is.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page to print into this file.")
@json_option
@csv_option
def statement(org: str, month: str | None, timezone: str, html: Path | None, as_json: bool, as_csv: bool) -> None:
    """What ORG had, got and used in MONTH (2026-11; else the last month that is over)."""

    async def work(ledger: Ledger) -> Statement:
        from ledger.statement import last_month
        from ledger.statement import statement as make

        return await make(ledger, org, month or last_month(ledger.clock(), timezone), timezone)

    found = with_ledger(work)
    if html is not None:
        from ledger.statement_html import statement_html

        html.write_text(statement_html(found), encoding="utf-8")
        click.echo(str(html))
        return
    if as_csv:
        click.echo("".join(found.csv()), nl=False)
        return
    shape = found.shape()
    if as_json:
        print_json(shape)
        return
    click.echo(f"{org}, {found.month} ({timezone}): from {shape['from']} to {shape['to']}")
    summary = [
        {"balance": name, "credits": shape[name.split()[0]]}
        for name in ("opening balance", "granted", "corrections", "transferred", "expired", "charged")
    ]
    print_table(
        ("balance", "credits"), summary, ("credits",), {"balance": "closing balance", "credits": shape["closing"]}
    )
    if shape["entries"]:
        click.echo()
        print_table(("at", "type", "source", "reason", "credits"), shape["entries"], ("credits",))
    if shape["charges"]:
        click.echo()
        columns = ("project", "kind", "resource", "app", "hours", "credits")
        total = {"project": "total", "credits": shape["charged"]}
        print_table(columns, shape["charges"], ("hours", "credits"), total)


@rates.command("impact")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--from", "from_us", type=Time(), help="Start of the period; else 30 days before its end.")
@click.option("--to", "to_us", type=Time(), help="End of the period; else now.")
@click.option("--at", "at_us", type=Time(), help="The file's rates of this instant (`scheduled`); else of now.")
@click.option(
    "--group-by", type=Groups(), default="org,project,resource", show_default=True, help="What to tell apart."
)
@json_option
@csv_option
def rates_impact(
    file: Path,
    from_us: int | None,
    to_us: int | None,
    at_us: int | None,
    group_by: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
) -> None:
    """Who would have paid more or less, had the rates of FILE been in force."""
    from config.rates import load_rates

    plans = load_rates(file)

    async def work(ledger: Ledger) -> ImpactReport:
        from ledger.money import HOUR_US
        from ledger.rerate import rates_impact as find
        from ledger.usage import whole_period

        first, last = await whole_period(ledger)
        until = last if to_us is None else to_us
        since = max(first, until - 30 * 24 * HOUR_US) if from_us is None else from_us
        return await find(ledger, plans, ledger.clock() if at_us is None else at_us, since, until, group_by)

    report = with_ledger(work)
    shape = report.shape()
    if as_json:
        print_json(shape)
        return
    if as_csv:
        click.echo("".join(report.csv()), nl=False)
        return
    click.echo(f"use from {shape['from']} to {shape['to']} at the rates of {file}")
    total: dict[str, Any] = {report.columns()[0]: "total", **report.totals()}
    print_rows(
        report.columns(),
        shape["rows"],
        right=("hours", "credits", "new_credits", "difference"),
        last=total,
        nothing="nothing was used",
    )
    for name in shape["unchanged_clusters"]:
        click.echo(f"cluster {name}: not in {file}, its rates stay as they were", err=True)
    for one in shape["unpriced"]:
        click.echo(f"cluster {one['cluster']}: {one['kind']} {one['resource']!r} has no rate in {file}", err=True)


@click.group(cls=Group)
def export() -> None:
    """The ledger's past for other programs."""


@export.command("openmetrics")
@click.option("--from", "from_us", type=Time(), help="Start of the period; else the start of the ledger.")
@click.option("--to", "to_us", type=Time(), help="End of the period, such as when Prometheus began; else now.")
def export_openmetrics(from_us: int | None, to_us: int | None) -> None:
    """Counters over time, for `promtool tsdb create-blocks-from openmetrics`."""

    async def work(ledger: Ledger) -> None:
        from dashboards.promql import checkpoint
        from exporter.history import history

        since = ledger.epoch_us if from_us is None else from_us
        until = ledger.clock() if to_us is None else to_us
        async for lines in history(ledger, since, until, checkpoint):
            click.echo(lines, nl=False)

    with_ledger(work)


COMMANDS = (statement, export)
