"""`token`: who may call the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.base import Group, Time, csv_option, json_option, who, with_ledger
from cli.output import print_json, print_rows

if TYPE_CHECKING:
    from ledger.store import Ledger
    from ledger.tokens import Token

ROLES = ("admin", "owner", "viewer", "scheduler")


@click.group(cls=Group)
def token() -> None:
    """Bearer tokens of the API."""


@token.command("create")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What its bearer may do.")
@click.option("--org", help="The org of an owner or viewer; a scheduler's may be limited to one.")
@click.option("--expires-at", "expires_us", type=Time(), help="Until when it is valid; else until it is revoked.")
@click.option("--note", default="", help="What it is for.")
@json_option
def token_create(role: str, org: str | None, expires_us: int | None, note: str, as_json: bool) -> None:
    """Make a token; it is shown this once."""

    async def work(ledger: Ledger) -> tuple[Token, str, bool]:
        made = await ledger.tokens.create(role, org, expires_us=expires_us, note=note, who=who())
        return *made, org is None or await _is_known(ledger, org)

    record, secret, is_known = with_ledger(work)
    if not is_known:
        click.echo(f"note: there is no org {org!r} yet; `credits org set` creates it", err=True)
    if as_json:
        shape = {"id": record.id, "role": role, "org": org, "token": secret, "expires_at": record.expires_at}
        print_json(shape)
        return
    click.echo(secret)
    of_org = f" of org {org}" if org else ""
    until = f", until {record.expires_at}" if record.expires_at else ""
    click.echo(f"role {role}{of_org}{until}; its id is {record.id}. It is not shown again.", err=True)


async def _is_known(ledger: Ledger, org: str) -> bool:
    from ledger.errors import UnknownOrg

    try:
        await ledger.accounts.balance(org)
    except UnknownOrg:
        return False
    return True


@token.command("list")
@json_option
@csv_option
def token_list(as_json: bool, as_csv: bool) -> None:
    """Tokens that were made and not revoked."""

    async def work(ledger: Ledger) -> list[dict[str, Any]]:
        from ledger.tokens import token_shape

        return [token_shape(record, used) for record, used in await ledger.tokens.list()]

    rows = with_ledger(work)
    if as_json:
        print_json(rows)
        return
    columns = ("id", "role", "org", "created_at", "expires_at", "last_used_at", "note")
    print_rows(columns, rows, as_csv=as_csv, nothing="no tokens; `credits token create --role ROLE` makes one")


@token.command("revoke")
@click.argument("token_id", metavar="ID")
@json_option
@click.pass_context
def token_revoke(context: click.Context, token_id: str, as_json: bool) -> None:
    """Make a token invalid; the enforcer knows within seconds."""

    async def work(ledger: Ledger) -> bool:
        return await ledger.tokens.revoke(token_id, who=who())

    revoked = with_ledger(work)
    if as_json:
        print_json({"id": token_id, "revoked": revoked})
    elif revoked:
        click.echo(f"revoked: {token_id}")
    else:
        click.echo(f"credits: no token of id {token_id!r}; `credits token list` lists them", err=True)
    context.exit(0 if revoked else 1)


COMMANDS = (token,)
