"""`usage`, `shadow report`: what was used, by whatever is asked, and what would have been refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.base import Command, Group, Time, csv_option, json_option, with_ledger
from cli.output import print_json, print_rows

if TYPE_CHECKING:
    from ledger.store import Ledger
    from ledger.usage_report import UsageReport

GROUPS = ("cluster", "org", "project", "user", "kind", "resource", "app", "workload")


_TIMES = ("from", "to", "exact_from", "exact_to", "at", "started_at", "ended_at")


class Groups(click.ParamType[tuple[str, ...]]):
    """Names with commas between them."""

    name = "names"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(part.strip() for part in str(value).split(",")))
        for name in names:
            if name not in GROUPS:
                from config.problems import did_you_mean

                self.fail(f"{name!r} is nothing to group by{did_you_mean(name, GROUPS)}", param, ctx)
        return names


@click.command(cls=Command)
@click.option("--from", "from_us", type=Time(), help="Start of the period; else the start of the ledger.")
@click.option("--to", "to_us", type=Time(), help="End of the period; else now.")
@click.option("--cluster", help="Only this cluster.")
@click.option("--org", help="Only this org.")
@click.option("--project", help="Only this project.")
@click.option("--user", help="Only this user.")
@click.option("--kind", type=click.Choice(("job", "app", "storage")), help="Only this kind of workload.")
@click.option("--group-by", type=Groups(), default="org", show_default=True, help=f"One or more of {','.join(GROUPS)}.")
@click.option("--step", type=click.Choice(("hour", "day", "week", "month")), help="A row for each of these.")
@click.option(
    "--timezone",
    default="UTC",
    show_default=True,
    is_eager=True,  # dates in the other options are read by it
    help="Whose days, weeks and months these are; dates without a time are its days, too.",
)
@json_option
@csv_option
def usage(
    from_us: int | None,
    to_us: int | None,
    cluster: str | None,
    org: str | None,
    project: str | None,
    user: str | None,
    kind: str | None,
    group_by: tuple[str, ...],
    step: str | None,
    timezone: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """What was used in a period: exact sums out of the ledger."""

    async def work(ledger: Ledger) -> UsageReport:
        from ledger.usage import usage as find
        from ledger.usage import whole_period
        from ledger.usage_report import UsageQuery

        first, last = await whole_period(ledger)
        since, until = first if from_us is None else from_us, last if to_us is None else to_us
        query = UsageQuery(
            from_us=since, to_us=until, cluster=cluster, org=org, project=project, user=user, kind=kind,
            group_by=group_by, step=step, timezone=timezone,
        )  # fmt: skip
        return await find(ledger, query)

    report = with_ledger(work)
    shape = report.shape()
    if as_json:
        print_json(shape)
        return
    skipped = {"id"} if not as_csv else set()
    if "total_refunded" not in shape:
        skipped.add("refunded")
    columns = [name for name in report.columns() if name not in skipped]
    if not as_csv:
        shape = _by_clock(shape, timezone)
        click.echo(f"from {shape['from']} to {shape['to']}")
        if not report.is_exact:
            click.echo(f"details that old are not kept: exact from {shape['exact_from']} to {shape['exact_to']}")
    total = {columns[0]: "total", **report.totals()}
    print_rows(
        columns,
        shape["rows"],
        as_csv=as_csv,
        right=("credits", "hours", "refunded"),
        last=total,
        nothing="nothing was used",
    )


def _by_clock(shape: dict[str, Any], zone: str) -> dict[str, Any]:
    """The report with its times by the clocks of a zone, as people read a table."""
    if zone == "UTC":
        return shape
    from zoneinfo import ZoneInfo

    from ledger.clock import from_us, parse_time

    def local(fields: dict[str, Any]) -> dict[str, Any]:
        times = {name: value for name, value in fields.items() if name in _TIMES and value}
        return {
            **fields,
            **{name: from_us(parse_time(t)).astimezone(ZoneInfo(zone)).isoformat() for name, t in times.items()},
        }

    return {**local(shape), "rows": [local(row) for row in shape["rows"]]}


@click.group(cls=Group)
def shadow() -> None:
    """What `admission.mode: shadow` finds out before anybody is refused."""


@shadow.command("report")
@click.option("--org", help="Only this org; else all, and those that the ledger does not know.")
@click.option("--from", "from_us", type=Time(), help="Start of the period; else whatever is kept.")
@click.option("--to", "to_us", type=Time(), help="End of the period; else now.")
@json_option
@csv_option
def shadow_report(org: str | None, from_us: int | None, to_us: int | None, as_json: bool, as_csv: bool) -> None:
    """What would have been refused: how often, to whom, why, and the credits that it needed."""
    if from_us is not None and to_us is not None and from_us >= to_us:
        raise click.UsageError("--from has to be before --to")

    async def work(ledger: Ledger) -> list[dict[str, Any]]:
        known = [balance.org for balance in await ledger.accounts.balances()]
        # What came before an org was set up is among those of orgs that nobody knows.
        asked: list[str | None] = [None, *(name for name in known if org in (None, name))]
        since, until = from_us or 0, ledger.clock() + 1 if to_us is None else to_us
        rows = [row for name in asked for row in await ledger.refusals.shadow_report(name, since, until)]
        rows = [row for row in rows if org in (None, row["org"])]
        if not rows and org is not None:
            await ledger.accounts.balance(org)  # says it when there is no such org
        return sorted(rows, key=lambda row: -row["count"])

    rows = with_ledger(work)
    if as_json:
        print_json(rows)
        return
    columns = ("org", "project", "user", "preset", "app", "code", "count", "required", "first_at", "last_at")
    shown = columns if as_csv else columns[:8]
    print_rows(shown, rows, as_csv=as_csv, right=("count", "required"), nothing="nothing would have been refused")


COMMANDS = (usage, shadow)
