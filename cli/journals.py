"""`journal`, `audit`: what was changed, by whom and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from cli.base import Command, F, Time, csv_option, json_option, with_ledger
from cli.output import print_json, print_rows

if TYPE_CHECKING:
    from ledger.journal import JournalFilter
    from ledger.store import Ledger

_IN_JSON_ONLY = frozenset({"from", "source", "key", "revision"})
_OPTIONS: tuple[Callable[[F], F], ...] = (
    click.option("--type", "types", multiple=True, metavar="TYPE", help="Only entries of this type; may be repeated."),
    click.option("--from", "since", type=Time(), help="Only what was written then or later."),
    click.option("--to", "until", type=Time(), help="Only what was written before."),
    click.option("--newest-first", is_flag=True, help="In the other order."),
    click.option(
        "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Entries of one page."
    ),
    click.option("--cursor", help="Where the page before ended (`next`)."),
    json_option,
    csv_option,
)


def _page_options(function: F) -> F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(cls=Command)
@click.argument("org")
@_page_options
def journal(
    org: str, types: tuple[str, ...], since: int | None, until: int | None, newest_first: bool, limit: int,
    cursor: str | None, as_json: bool, as_csv: bool,
) -> None:  # fmt: skip
    """Every grant, correction, change and refusal of an org: who, when, why."""

    async def work(ledger: Ledger) -> tuple[list[dict[str, Any]], str | None]:
        from ledger.journal import journal_page

        return await journal_page(ledger, org, cursor, limit, _filter(types, since, until, newest_first))

    columns = ("id", "at", "type", "who", "credits", "source", "project", "user", "reason")
    items, after = with_ledger(work)
    if not as_json and not as_csv:
        items = [{**item, "reason": _said_of(item)} for item in items]
    _print(columns, items, after, as_json, as_csv)


@click.command(cls=Command)
@_page_options
def audit(
    types: tuple[str, ...], since: int | None, until: int | None, newest_first: bool, limit: int, cursor: str | None,
    as_json: bool, as_csv: bool,
) -> None:  # fmt: skip
    """Every change that concerns no org: tokens that were made and revoked, rates that were put into force."""

    async def work(ledger: Ledger) -> tuple[list[dict[str, Any]], str | None]:
        from ledger.journal import audit_page

        return await audit_page(ledger, cursor, limit, _filter(types, since, until, newest_first))

    columns = ("id", "at", "type", "who", "from", "token", "role", "org", "cluster")
    _print(columns, *with_ledger(work), as_json, as_csv)


def _said_of(entry: dict[str, Any]) -> str:
    # Where nobody gave a reason, the table says what was changed.
    from console.journal_words import in_words

    words = in_words({name: value for name, value in entry.items() if _tells(entry, name)})
    return words.reason or ", ".join(f"{name}: {value}" for name, value in words.more)


def _tells(entry: dict[str, Any], name: str) -> bool:
    at_once = name == "effective_at" and entry[name] == entry["at"]
    return name not in _IN_JSON_ONLY and not at_once


def _filter(types: tuple[str, ...], since: int | None, until: int | None, newest_first: bool) -> JournalFilter:
    from ledger.journal import JournalFilter

    return JournalFilter(frozenset(types), since, until, newest_first)


def _print(
    columns: tuple[str, ...], items: list[dict[str, Any]], after: str | None, as_json: bool, as_csv: bool
) -> None:
    if as_json:
        print_json({"items": items, "next": after})
        return
    print_rows(columns if as_csv else columns[1:], items, as_csv=as_csv, right=("credits",), nothing="nothing yet")
    if after and not as_csv:
        click.echo(f"more: --cursor {after}")


COMMANDS = (journal, audit)
