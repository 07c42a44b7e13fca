"""`verify`, `rates`, `dashboards`: what admins check and build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.base import Command, Group, Time, csv_option, json_option, open_ledger, reach, settings, with_ledger
from cli.output import counted, print_json, print_rows, progress_bar

if TYPE_CHECKING:
    from ledger.model import RatePlan, RateTable
    from ledger.store import Ledger

_GROUPS = {"presets": "preset", "apps": "app", "storage": "storage"}


@click.command(cls=Command)
@click.option("--org", help="Only this org.")
@json_option
@click.pass_context
def verify(context: click.Context, org: str | None, as_json: bool) -> None:
    """Prove that the ledger's figures agree; exit code 1 where they do not."""

    async def work(ledger: Ledger) -> dict[str, Any]:
        from ledger.verify import verify as check

        if org is not None:
            await ledger.accounts.balance(org)  # says it when there is no such org
        with progress_bar("orgs") as progress:
            return await check(ledger, org, progress)

    result = with_ledger(work)
    if as_json:
        print_json(result)
    else:
        counts = ", ".join(counted(count, what) for what, count in result["checked"].items())
        for difference in result["differences"]:
            click.echo(f"org {difference['org']}: {difference['what']}: {difference['difference']}")
        orphan_holds = result.get("orphan_holds", [])
        for hold in orphan_holds:
            click.echo(
                f"org {hold['org']}: orphan hold {hold['hold_id']} of workload {hold['workload']!r}: {hold['why']}; "
                f"{hold['credits']} credits are set aside until {hold['expires_at']}"
            )
        orphans = f", {counted(len(orphan_holds), 'orphan holds')}" if orphan_holds else ""
        verdict = "ok" if result["ok"] else f"NOT OK, {counted(len(result['differences']), 'differences')}"
        click.echo(f"{verdict}: checked {counts}{orphans}")
    context.exit(0 if result["ok"] else 1)


@click.group(cls=Group)
def rates() -> None:
    """What things cost."""


@rates.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
@click.pass_context
def rates_check(context: click.Context, file: Path | None, as_json: bool) -> None:
    """Say what is wrong with a file of rates (else: with that of the settings)."""
    from config.problems import ConfigError, Problem
    from config.rates import load_rates

    path = file or settings().rates
    plans: dict[str, RatePlan] = {}
    problems: tuple[Problem, ...] = ()
    try:
        plans = load_rates(path)
    except ConfigError as error:
        problems = error.problems
    if as_json:
        listed = [
            {"file": p.file, "line": p.line or None, "key": p.key, "value": p.value, "message": p.message}
            for p in problems
        ]
        print_json({"ok": not problems, "problems": listed})
    elif problems:
        for problem in problems:
            click.echo(str(problem), err=True)
    else:
        for cluster, plan in plans.items():
            table = plan.steps[0][1]
            parts = {"presets": table.presets, "apps": table.apps, "storage classes": table.storage}
            counts = [counted(len(names), what) for what, names in parts.items()]
            counts.append(counted(len(plan.steps) - 1, "scheduled changes"))
            click.echo(f"{path}: cluster {cluster}: {', '.join(counts)}")
        click.echo(f"{path}: ok")
    context.exit(1 if problems else 0)


@rates.command("show")
@click.option("--at", "at_us", type=Time(), help="At this instant; else now.")
@click.option("--cluster", help="Only this cluster.")
@json_option
@csv_option
def rates_show(at_us: int | None, cluster: str | None, as_json: bool, as_csv: bool) -> None:
    """The rates in force, out of the ledger's history, beside those of the file."""
    import asyncio

    from config.problems import ConfigError
    from config.rates import load_rates
    from ledger.clock import format_time, now_us

    given = settings()
    plans: dict[str, RatePlan] = {}
    bad: ConfigError | None = None
    try:
        plans = load_rates(given.rates)
    except ConfigError as error:
        bad = error  # what is in force is asked for most of all when the file is bad
    clusters = sorted({*plans, *(source.cluster for source in given.sources)})
    at = now_us() if at_us is None else at_us

    async def read() -> dict[str, RatePlan | None]:
        async with open_ledger(given) as ledger:
            return {name: (await ledger.rates.read(name))[1] for name in clusters if cluster in (None, name)}

    rows = []
    for name, plan in asyncio.run(read()).items():
        file = plans.get(name)
        rows += _rates_of(name, plan.at(at) if plan else None, file.at(at) if file else None)
    if as_json:
        print_json({"at": format_time(at), "rates": rows})
    else:
        columns = ("cluster", "kind", "resource", "rate", "unit", "in_file")
        print_rows(columns, rows, as_csv=as_csv, right=("rate", "in_file"), nothing="no rates")
    if bad is not None:
        click.echo(f"{bad}\nThe file is refused; `rate` is what is charged.", err=True)
        click.get_current_context().exit(1)
    if not as_csv and not as_json and any(row["rate"] != row["in_file"] for row in rows):
        click.echo("The exporter puts the file's rates in force; `rate` is what is charged.", err=True)


def _rates_of(cluster: str, ledger: RateTable | None, file: RateTable | None) -> list[dict[str, str | None]]:
    from ledger.money import format_rate

    rows: list[dict[str, str | None]] = []
    for group, kind in _GROUPS.items():
        charged: dict[str, int] = dict(getattr(ledger, group)) if ledger else {}
        written: dict[str, int] = dict(getattr(file, group)) if file else {}
        rows += [
            {
                "cluster": cluster,
                "kind": kind,
                "resource": resource,
                "rate": format_rate(charged[resource]) if resource in charged else None,
                "unit": "credits/GB-hour" if group == "storage" else "credits/hour",
                "in_file": format_rate(written[resource]) if resource in written else None,
            }
            for resource in sorted(charged | written)
        ]
    return rows


@click.group(cls=Group)
def dashboards() -> None:
    """Grafana dashboards, recording rules and alerts."""


@dashboards.command("build")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--runbook", metavar="URL", default="docs/runbook.md", show_default=True, help="Where alerts find their runbook."
)
@click.option(
    "--prometheus", metavar="URL", default="http://127.0.0.1:9090", show_default=True, help="Grafana's data source."
)
@json_option
def dashboards_build(directory: Path, runbook: str, prometheus: str, as_json: bool) -> None:
    """Write dashboards, provisioning, scrape configuration and rules into DIR."""
    from dashboards.build import build

    given = settings()
    files = build(
        directory,
        exporter=reach(given.exporter.listen),
        enforcer=reach(given.enforcer.listen),
        prometheus=prometheus,
        runbook=runbook,
    )
    if as_json:
        print_json({"files": [str(file) for file in files]})
        return
    for file in files:
        click.echo(str(file))


COMMANDS = (verify, rates, dashboards)
