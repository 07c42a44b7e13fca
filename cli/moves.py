"""`correct`, `transfer`, `grants`: credits that are put right or moved, and what is left of those that were given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.base import Command, Credits, acknowledged, csv_option, json_option, new_key, who, with_ledger
from cli.output import print_json, print_rows

if TYPE_CHECKING:
    from ledger.store import Ledger


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})  # -4 is an amount, no option
@click.argument("org")
@click.argument("amount", metavar="CREDITS", type=Credits())
@click.option("--corrects", required=True, help="Key of a grant, or id of a journal entry or of a workload.")
@click.option("--reason", required=True, help="For the journal.")
@click.option("--idempotency-key", "key", help="Corrects once, however often it is repeated; else made up and printed.")
@json_option
def correct(org: str, amount: int, corrects: str, reason: str, key: str | None, as_json: bool) -> None:
    """Give ORG credits, or take them back (CREDITS below 0), because something was wrong."""
    from ledger.corrections import correction_shape

    given = key or new_key()

    async def work(ledger: Ledger) -> tuple[dict[str, Any], bool, str]:
        from ledger.money import format_micro

        await ledger.accounts.balance(org)  # says it when there is no such org
        receipt = await ledger.corrections.correct(org, amount, corrects=corrects, key=given, reason=reason, who=who())
        after = await ledger.accounts.balance(org)
        return correction_shape(org, receipt.record), receipt.replayed, format_micro(after.available_micro)

    made, replayed, available = acknowledged(work, given)
    if as_json:
        print_json({**made, "replayed": replayed})
        return
    what = "corrected before, nothing changed" if replayed else "corrected"
    debt = f", {made['overdraft']} of it as overdraft" if made["overdraft"] != "0" else ""
    click.echo(f"{what}: {made['credits']} credits of {org} ({made['what']} {corrects}{debt}); available {available}")
    click.echo(f"idempotency key: {given}")


@click.command(cls=Command, below_zero="; to move them the other way, name the orgs the other way round")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.argument("amount", metavar="CREDITS", type=Credits())
@click.option("--reason", default="", help="For the journals.")
@click.option("--idempotency-key", "key", help="Moves once, however often it is repeated; else made up and printed.")
@json_option
def transfer(source: str, target: str, amount: int, reason: str, key: str | None, as_json: bool) -> None:
    """Move credits that are available from one org to another; they expire there when they would have."""
    from ledger.transfers import transfer_shape

    given = key or new_key()

    async def work(ledger: Ledger) -> tuple[dict[str, Any], bool]:
        receipt = await ledger.transfers.transfer(source, target, amount, key=given, reason=reason, who=who())
        return transfer_shape(receipt.record), receipt.replayed

    made, replayed = acknowledged(work, given)
    if as_json:
        print_json({**made, "replayed": replayed})
        return
    what = "transferred before, nothing changed" if replayed else "transferred"
    click.echo(f"{what}: {made['credits']} credits from {source} to {target}")
    for part in made["parts"]:
        if part["expires_at"]:
            click.echo(f"  {part['credits']} of them until {part['expires_at']}")
    click.echo(f"idempotency key: {given}")


@click.command(cls=Command)
@click.argument("org")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Grants of one page.")
@click.option("--cursor", help="Where the page before ended (`next`).")
@click.option("--newest-first", is_flag=True, help="In the other order.")
@json_option
@csv_option
def grants(org: str, limit: int, cursor: str | None, newest_first: bool, as_json: bool, as_csv: bool) -> None:
    """The grants of ORG, and what is left of each."""

    async def work(ledger: Ledger) -> tuple[list[dict[str, Any]], str | None]:
        from ledger.grant_list import grant_state_shape, grants_page

        found, after = await grants_page(ledger, org, cursor, limit, newest_first=newest_first)
        return [grant_state_shape(org, one) for one in found], after

    items, after = with_ledger(work)
    if as_json:
        print_json({"items": items, "next": after})
        return
    columns = ("idempotency_key", "source", "credits", "corrected", "remaining", "state", "effective_at", "expires_at")
    rows = [{**item, "corrected": None if item["corrected"] == "0" else item["corrected"]} for item in items]
    print_rows(columns, rows, as_csv=as_csv, right=("credits", "corrected", "remaining"), nothing="no grants")
    if after and not as_csv:
        click.echo(f"more: --cursor {after}")


COMMANDS = (correct, transfer, grants)
"""In the order in which `--help` lists them."""
