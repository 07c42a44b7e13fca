"""`admit`, `quote`, `budget`: may work start, what would it cost, and the caps on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cli.base import Command, Credits, F, Group, csv_option, json_option, open_ledger, settings, who, with_ledger
from cli.output import print_json, print_rows
from ledger.admission_request import COUNT_MAX, RUNTIME_SECONDS_MAX

if TYPE_CHECKING:
    from config.settings import Settings
    from ledger.admission import AdmissionRequest, Decision, Terms
    from ledger.store import Ledger

PERIODS = ("day", "week", "month", "total")
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_REQUEST: tuple[Callable[[F], F], ...] = (
    click.argument("org"),
    click.argument("preset", required=False),
    click.option("--cluster", default="default", show_default=True, help="Where it is to run."),
    click.option("--project", default="", help="The project it belongs to."),
    click.option("--user", default="", help="Who submits it."),
    click.option("--kind", type=click.Choice(("job", "app")), default="job", show_default=True),
    click.option("--app", help="The app, for its own rate."),
    click.option("--count", type=click.IntRange(1, COUNT_MAX), default=1, show_default=True, help="How many at once."),
    click.option("--max-runtime-seconds", type=click.IntRange(1, RUNTIME_SECONDS_MAX), help="Its time limit."),
)


def _request_options(function: F) -> F:
    for option in reversed(_REQUEST):
        function = option(function)
    return function


def _request(org: str, preset: str | None, asked: dict[str, Any]) -> AdmissionRequest:
    from ledger.admission import AdmissionRequest
    from ledger.names import check_name

    check_name("org", org)
    if not preset and not asked["app"]:
        raise click.UsageError("name a PRESET, or an --app with a rate of its own")
    seconds = asked.pop("max_runtime_seconds")
    limit = None if seconds is None else seconds * 1_000_000
    return AdmissionRequest(org=org, preset=preset, max_runtime_us=limit, **asked)


def _terms(given: Settings) -> Terms:
    from ledger.admission import Terms

    admission = given.admission
    return Terms(round(admission.hold_minutes * 60_000_000), admission.unknown_org, admission.buy_url)


@click.command(cls=Command)
@_request_options
@click.option("--workload-id", help="The scheduler's id of it: asked again, it keeps its hold.")
@click.option("--dry-run", is_flag=True, help="Decide only, hold nothing.")
@json_option
def admit(org: str, preset: str | None, as_json: bool, **asked: Any) -> None:
    """Decide whether work may start, and set its credits aside; exit code 1 where it may not.

    As the enforcer does: in mode `shadow`, of the cluster or the org, everything may start.
    """
    import asyncio

    from ledger.admission_shapes import decision_shape

    given = settings()
    request = _request(org, preset, asked)

    mode = given.admission.mode_of(request.cluster)

    async def work() -> Decision:
        async with open_ledger(given) as ledger:
            decision = await ledger.admissions.admit(request, _terms(given))
            if decision.allowed:
                return decision
            from ledger.journal import decision_entry
            from ledger.refusals import REFUSAL, SHADOW, Refused

            is_tried = (decision.policy_mode or mode) == "shadow"
            if not request.dry_run:
                kind, now = SHADOW if is_tried else REFUSAL, ledger.clock()
                entry = decision_entry(kind, request, decision, who=who(), via="cli", now_us=now)
                await ledger.refusals.add([Refused(request.org, entry)])
            return _shadowed(decision) if is_tried else decision

    shape = decision_shape(_unchecked() if mode == "off" else asyncio.run(work()))
    if as_json:
        print_json(shape)
    else:
        click.echo(f"{'allowed' if shape['allowed'] else 'refused'} ({shape['code']}): {shape['reason']}")
        if shape["hold_id"]:
            click.echo(f"hold {shape['hold_id']}: {shape['required']} credits until {shape['hold_expires_at']}")
    click.get_current_context().exit(0 if shape["allowed"] else 1)


def _shadowed(refusal: Decision) -> Decision:
    from msgspec.structs import replace

    from ledger.refusal_text import shadowed

    return replace(refusal, allowed=True, reason=shadowed(refusal.reason))


def _unchecked() -> Decision:
    from ledger.admission import Decision
    from ledger.model import Code

    return Decision(True, Code.OK, "Credits are not checked here.")


@click.command(cls=Command)
@_request_options
@json_option
def quote(org: str, preset: str | None, as_json: bool, **asked: Any) -> None:
    """What work would cost an hour and in all, what is left, and how long it would last."""
    import asyncio

    from ledger.admission_shapes import quote_shape

    given = settings()
    request = _request(org, preset, asked)

    async def work() -> dict[str, Any]:
        async with open_ledger(given) as ledger:
            return quote_shape(await ledger.admissions.quote(request, _terms(given)))

    shape = asyncio.run(work())
    if as_json:
        print_json(shape)
        return
    for name, value in shape.items():
        if value is not None and not isinstance(value, dict):
            click.echo(f"{name.replace('_', ' ') + ':':13}{('no', 'yes')[value] if isinstance(value, bool) else value}")


@click.group(cls=Group)
def budget() -> None:
    """Caps on what a project, or a user in a project, may spend in a period."""


@budget.command("set")
@click.argument("org")
@click.argument("project")
@click.argument("amount", metavar="CREDITS", type=Credits())
@click.option("--user", help="Only this user in the project.")
@click.option("--period", type=click.Choice(PERIODS), default="month", show_default=True)
@click.option("--timezone", help="Whose midnight a period starts at; of a new budget UTC.")
@click.option("--week-start", type=click.Choice(WEEKDAYS), help="When a week starts; of a new budget on monday.")
@json_option
def budget_set(
    org: str, project: str, amount: int, user: str | None, period: str, timezone: str | None, week_start: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Set a cap; 0 is zero. What its current period has spent already counts.

    There is one of each period; a time zone or a start of weeks that is not given stays as it is.
    """
    from ledger.admission_shapes import budget_shape
    from ledger.steps import check_zone

    async def work(ledger: Ledger) -> dict[str, Any]:
        if timezone is not None:
            check_zone(timezone)
        await ledger.accounts.balance(org)  # a name that is no org is refused, not made one
        _, budgets = await ledger.budgets.read(org)
        place = (project, user, period)
        before = next((one for one in budgets if (one.project, one.user, one.period) == place), None)
        state = await ledger.budgets.put(
            org, project, user, amount, who=who(), period=period,
            timezone=timezone or (before.timezone if before else "UTC"),
            week_start=WEEKDAYS.index(week_start) if week_start else before.week_start if before else 0,
        )  # fmt: skip
        return budget_shape(org, state)

    shape = with_ledger(work)
    if as_json:
        print_json(shape)
    else:
        of_user = f", user {user}" if user else ""
        when = {"day": "today", "total": "in all"}.get(period, f"this {period}")
        click.echo(f"{org}, project {project}{of_user}: {shape['remaining']} of {shape['credits']} credits left {when}")


@budget.command("rm")
@click.argument("org")
@click.argument("project")
@click.option("--user", help="That of this user in the project.")
@click.option("--period", type=click.Choice(PERIODS), help="Only that of this period.")
@json_option
@click.pass_context
def budget_rm(
    context: click.Context, org: str, project: str, user: str | None, period: str | None, as_json: bool
) -> None:
    """Remove a cap."""

    async def work(ledger: Ledger) -> int:
        return len(await ledger.budgets.remove(org, project, user, who=who(), period=period))

    removed = with_ledger(work)
    if as_json:
        print_json({"removed": removed})
    elif removed:
        click.echo(f"removed: {removed}")
    else:
        click.echo(f"credits: no such budget; `credits budget list {org}` lists them", err=True)
    context.exit(0 if removed else 1)


@budget.command("list")
@click.argument("org")
@json_option
@csv_option
def budget_list(org: str, as_json: bool, as_csv: bool) -> None:
    """The budgets of an org, and what their current periods have left."""

    async def work(ledger: Ledger) -> list[dict[str, Any]]:
        from ledger.admission_shapes import budget_shape

        await ledger.accounts.balance(org)  # says it when there is no such org
        return [budget_shape(org, state) for state in await ledger.budgets.states(org)]

    rows = with_ledger(work)
    if as_json:
        print_json(rows)
        return
    columns = ("project", "user", "period", "timezone", "credits", "spent", "held", "remaining", "ends_at")
    print_rows(columns, rows, as_csv=as_csv, right=("credits", "spent", "held", "remaining"), nothing="no budgets")


COMMANDS = (admit, quote, budget)
