"""`notices`: whom an org has told of what, and a test that they get it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.base import Group, json_option, settings, who, with_ledger
from cli.output import print_json

if TYPE_CHECKING:
    from ledger.store import Ledger


@click.group(cls=Group)
def notices() -> None:
    """E-mail and webhooks that tell an org of its credits."""


@notices.command("show")
@click.argument("org")
@json_option
def show(org: str, as_json: bool) -> None:
    """Whom an org has told of what."""

    async def work(ledger: Ledger) -> dict[str, Any]:
        from ledger.notice_prefs import NoticePreferences, preferences_shape

        await ledger.accounts.balance(org)
        return preferences_shape(org, await NoticePreferences(ledger.client, ledger.scripts).read(org))

    shape = with_ledger(work)
    if as_json:
        print_json(shape)
        return
    hook = shape["webhook"]
    click.echo(f"e-mail    {', '.join(shape['email']) or 'nobody'}")
    click.echo(f"webhook   {hook['url'] if hook else 'none'}")
    click.echo(f"told of   {', '.join(shape['kinds']) or 'nothing'}")
    click.echo(f"runway    {shape['runway_hours']:g} hours")


@notices.command("test")
@click.argument("org")
@json_option
def test(org: str, as_json: bool) -> None:
    """Send a test to everybody whom an org has told; the enforcer that runs sends it within a minute."""
    has_mail = settings().notices.smtp is not None

    async def work(ledger: Ledger) -> dict[str, Any]:
        from ledger.errors import CreditsError
        from ledger.notice_prefs import NoticePreferences, test_event, why_nobody

        await ledger.accounts.balance(org)
        found = await NoticePreferences(ledger.client, ledger.scripts).read(org)
        if nobody := why_nobody(org, found, has_mail):
            raise CreditsError(nobody)
        event = test_event(org, who(), ledger.clock())
        await ledger.notices.note(event)
        url = None if found.webhook is None else found.webhook.url
        return {"event": event["event"], "email": list(found.email) if has_mail else [], "webhook": url}

    sent = with_ledger(work)
    if as_json:
        print_json(sent)
        return
    to = [*sent["email"], *([sent["webhook"]] if sent["webhook"] else [])]
    click.echo(f"a test is on its way to {', '.join(to)}; its id is {sent['event']}")


COMMANDS = (notices,)
