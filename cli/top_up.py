"""`top-up`: an org's auto top-up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from cli.base import Credits, Group, json_option, open_ledger, settings, who, with_ledger
from cli.output import print_json

if TYPE_CHECKING:
    from config.payments import Payments
    from config.settings import Settings
    from ledger.store import Ledger

_LINES = (
    "state", "threshold", "credits", "monthly_cap", "cool_down_minutes", "ordered", "month", "order", "cools_until",
    "paused_reason", "declines",
)  # fmt: skip


@click.group(cls=Group, name="top-up")
def top_up() -> None:
    """Buy credits by themselves when few are left."""


@top_up.command("show")
@click.argument("org")
@json_option
def show(org: str, as_json: bool) -> None:
    """How an org's auto top-up stands."""

    async def work(ledger: Ledger) -> dict[str, Any]:
        from ledger.top_ups import TopUps, top_up_shape

        await ledger.accounts.balance(org)
        found = await TopUps(ledger.client, ledger.scripts).read(org)
        return top_up_shape(found, ledger.clock())

    _print(with_ledger(work), as_json)


@top_up.command("set")
@click.argument("org")
@click.option("--threshold", type=Credits(), required=True, help="Buy when fewer credits than this are available.")
@click.option("--credits", "amount", type=Credits(), required=True, help="How many to buy at once.")
@click.option("--monthly-cap", type=Credits(), required=True, help="At most so many in a calendar month (UTC).")
@click.option("--cool-down-minutes", type=float, default=60.0, show_default=True, help="From one order to the next.")
@json_option
def set_(org: str, threshold: int, amount: int, monthly_cap: int, cool_down_minutes: float, as_json: bool) -> None:
    """Switch it on; where it was paused, it goes on. It charges the card that an owner saved with a purchase."""
    given = settings()
    payments = _sold(given)

    async def work() -> dict[str, Any]:
        from console.top_up_api import make_terms
        from ledger.top_ups import TopUps, top_up_shape

        terms = make_terms(payments, threshold, amount, monthly_cap, cool_down_minutes, True, who())
        async with open_ledger(given) as ledger:
            await ledger.accounts.balance(org)
            found = await TopUps(ledger.client, ledger.scripts).put(org, terms)
            return top_up_shape(found, ledger.clock())

    _print(asyncio.run(work()), as_json)


@top_up.command("off")
@click.argument("org")
@click.option("--forget-card", is_flag=True, help="Forget the terms and the card as well, also at the provider.")
@json_option
def off(org: str, forget_card: bool, as_json: bool) -> None:
    """Switch it off; an order that is on its way goes on to its end."""
    given = settings()
    payments = _sold(given)

    async def work() -> dict[str, Any]:
        import msgspec

        from console.payments import Till
        from console.stripe_provider import StripeProvider
        from console.top_up_api import end_top_up
        from ledger.purchases import Purchases
        from ledger.top_ups import TopUps, top_up_shape

        async with open_ledger(given) as ledger:
            await ledger.accounts.balance(org)
            top_ups = TopUps(ledger.client, ledger.scripts)
            found = await top_ups.read(org)
            if forget_card:
                provider = StripeProvider(payments)
                try:
                    till = Till(payments, Purchases(ledger.client, ledger.scripts), provider, top_ups)
                    await end_top_up(till, org, who(), None)
                finally:
                    await provider.close()
            elif found.terms is not None and found.terms.enabled:
                off = msgspec.structs.replace(found.terms, enabled=False, who=who())
                await top_ups.put(org, off, if_revision=found.revision)
            return top_up_shape(await top_ups.read(org), ledger.clock())

    _print(asyncio.run(work()), as_json)


def _sold(given: Settings) -> Payments:
    if given.payments is None:
        raise click.ClickException(f"no credits are sold here: {given.path} has no section payments")
    return given.payments


def _print(shape: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(shape)
        return
    for name in _LINES:
        if shape[name] is not None:
            click.echo(f"{name.replace('_', ' '):<18}{shape[name]}")
    card = shape["card"]
    click.echo(f"{'card':<18}{card['brand'] + ' ending in ' + card['last4'] if card else 'none'}")


COMMANDS = (top_up,)
