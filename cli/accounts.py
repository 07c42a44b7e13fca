"""`grant`, `balance`, `org`: orgs and their credits."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from cli.base import (
    Command,
    Credits,
    Group,
    Time,
    acknowledged,
    csv_option,
    json_option,
    new_key,
    settings,
    very_like,
    who,
    with_ledger,
)
from cli.output import print_json, print_rows

if TYPE_CHECKING:
    from ledger.store import Ledger

SOURCES = ("provision", "purchase", "refund", "gift")
_BALANCE = (
    "org",
    "granted",
    "expired",
    "spent",
    "held",
    "available",
    "overdraft",
    "burn_rate",
    "exhausted_at",
    "stage",
)
_AMOUNTS = ("granted", "expired", "spent", "held", "available", "overdraft", "burn_rate")


@click.command(cls=Command, below_zero="; to take some back: credits correct ORG -5 --corrects KEY --reason TEXT")
@click.argument("org")
@click.argument("amount", metavar="CREDITS", type=Credits())
@click.option(
    "--source", type=click.Choice(SOURCES), default="provision", show_default=True, help="What kind of grant."
)
@click.option("--reason", default="", help="For the journal.")
@click.option("--effective-at", "effective_us", type=Time(), help="When it begins to count; else now.")
@click.option("--expires-at", "expires_us", type=Time(), help="When what is left of it is gone; else never.")
@click.option("--purpose", default="", help="What it is for; shown with the grant.")
@click.option("--preset", "presets", multiple=True, help="Pays only for work on this preset. Repeat for several.")
@click.option("--cluster", "clusters", multiple=True, help="Pays only for work in this cluster. Repeat for several.")
@click.option("--idempotency-key", "key", help="Grants once, however often it is repeated; else made up and printed.")
@json_option
def grant(
    org: str,
    amount: int,
    source: str,
    reason: str,
    effective_us: int | None,
    expires_us: int | None,
    purpose: str,
    presets: tuple[str, ...],
    clusters: tuple[str, ...],
    key: str | None,
    as_json: bool,
) -> None:
    """Give credits to an org; creates the org where there is none."""
    from ledger.shapes import grant_shape

    given = key or new_key()

    async def work(ledger: Ledger) -> tuple[dict[str, Any], str, str | None]:
        receipt = await ledger.accounts.grant(
            org, amount, key=given, who=who(), source=source, reason=reason,
            effective_us=effective_us, expires_us=expires_us, purpose=purpose, presets=presets, clusters=clusters,
        )  # fmt: skip
        balance = await ledger.accounts.balance(org)
        near = await very_like(ledger, org) if receipt.record.new_org and not receipt.replayed else None
        from ledger.money import format_micro

        return grant_shape(org, receipt), format_micro(balance.available_micro), near

    made, available, near = acknowledged(work, given)
    if as_json:
        print_json(made)
    else:
        _say_granted(made, available, effective_us)
        if made["only"]:
            for name, hint in _unpriced(presets, clusters):
                where = f" in {' or '.join(clusters)}" if clusters else ""
                click.echo(f"note: {settings().rates} has no rate for preset {name!r}{where}{hint}", err=True)
        click.echo(f"idempotency key: {given}")
    if "new_org" in made and not made["replayed"]:
        click.echo(f"note: org {org!r} is new{_meant(near)}", err=True)
        if near is not None:
            back = shlex.join(["credits", "correct", org, f"-{made['credits']}", "--corrects", given])
            click.echo(f"      to take them back: {back} --reason TEXT", err=True)


def _say_granted(made: dict[str, Any], available: str, effective_us: int | None) -> None:
    from ledger.refusal_text import only_text

    what = "granted before, nothing changed" if made["replayed"] else "granted"
    until = f", until {made['expires_at']}" if made["expires_at"] else ""
    since = f", from {made['effective_at']}" if effective_us is not None else ""
    click.echo(
        f"{what}: {made['credits']} credits to {made['org']} ({made['source']}{since}{until}); available {available}"
    )
    if made["only"]:
        click.echo("pays only for " + only_text(made["only"]["presets"], made["only"]["clusters"]))


def _meant(near: str | None) -> str:
    return "" if near is None else f"; did you mean {near!r}?"


def _unpriced(presets: tuple[str, ...], clusters: tuple[str, ...]) -> list[tuple[str, str]]:
    """Presets without a rate in the file, and what may be meant: a grant for a misspelled name pays for nothing."""
    from config.problems import ConfigError, did_you_mean
    from config.rates import load_rates

    try:
        plans = load_rates(settings().rates)
    except ConfigError:
        return []  # `credits rates check` says what is wrong with it
    there = [plan for cluster, plan in plans.items() if not clusters or cluster in clusters]
    priced = sorted({name for plan in there for _, table in plan.steps for name in table.presets})
    return [(name, did_you_mean(name, priced)) for name in presets if name not in priced]


@click.command(cls=Command)
@click.argument("org", required=False)
@json_option
@csv_option
def balance(org: str | None, as_json: bool, as_csv: bool) -> None:
    """What an org has, or every org."""
    from ledger.shapes import balance_shape

    async def work(ledger: Ledger) -> list[dict[str, Any]]:
        found = await ledger.accounts.balances() if org is None else [await ledger.accounts.balance(org)]
        return [balance_shape(one) for one in found]

    rows = with_ledger(work)
    if as_json:
        print_json(rows if org is None else rows[0])
    elif as_csv:
        print_rows((*_BALANCE, "unlimited"), rows, as_csv=True)
    else:
        shown = [
            {
                **row,
                "available": "unlimited" if row["unlimited"] else row["available"],
                "for_some_work_only": _restricted(row),
            }
            for row in rows
        ]
        some = tuple(name for name in ("credit_line", "for_some_work_only") if any(row.get(name) for row in shown))
        nothing = "no orgs yet; `credits grant ORG CREDITS` creates one"
        print_rows((*_BALANCE, *some), shown, right=(*_AMOUNTS, *some), nothing=nothing)


def _restricted(row: dict[str, Any]) -> str | None:
    """How much of what an org has is restricted, in all."""
    from ledger.money import format_micro, parse_credits

    lefts = [parse_credits(one["left"]) for one in row.get("restricted", ())]
    return format_micro(sum(lefts)) if lefts else None


@click.group(cls=Group)
def org() -> None:
    """Create and edit orgs."""


@org.command("set")
@click.argument("org")
@click.option("--unlimited/--no-unlimited", default=None, help="Whether it may spend beyond what it was granted.")
@click.option("--contact", help="Whom to write to.")
@click.option("--credit-line", "credit_line", type=Credits(), help="How far below zero it may go; 0: not at all.")
@json_option
def org_set(org: str, unlimited: bool | None, contact: str | None, credit_line: int | None, as_json: bool) -> None:
    """Create or edit an org; what is not given stays as it is."""
    from ledger.shapes import balance_shape, org_shape

    async def work(ledger: Ledger) -> tuple[str, dict[str, Any], str | None]:
        done = await ledger.accounts.upsert(
            org, who=who(), unlimited=unlimited, contact=contact, credit_line_micro=credit_line
        )
        after = await ledger.accounts.balance(org)
        near = await very_like(ledger, org) if done == "created" else None
        return done, {**balance_shape(after), **org_shape(after)}, near

    done, shape, near = with_ledger(work)
    if as_json:
        print_json(shape)
    else:
        click.echo(f"{org}: {'nothing to change' if done == 'same' else done}")
    if near is not None:
        click.echo(f"note: org {org!r} is new{_meant(near)}", err=True)


COMMANDS = (grant, balance, org)
