"""Puts the console beside the enforcer: its pages behind the enforcer's guard, its sessions in the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.settings import Settings
    from console.oidc import Provider
    from console.payments import Till
    from enforcer.access import ConsoleSide
    from enforcer.app import MakeConsole
    from enforcer.failures import Failures
    from ledger.store import Ledger


@asynccontextmanager
async def console_beside(given: Settings, failures: Failures, till: Till | None = None) -> AsyncIterator[MakeConsole]:
    """What makes the console of an enforcer's ledger. `failures`: the enforcer's, for the same addresses sign in.

    `till` None: nothing is sold.
    """

    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(_provider(given))

        def make(ledger: Ledger) -> ConsoleSide:
            return console_side(ledger, given, failures, provider, till)

        yield make


def console_side(
    ledger: Ledger, given: Settings, failures: Failures, provider: Provider | None, till: Till | None = None
) -> ConsoleSide:
    """All pages of the console, as the enforcer serves them."""
    from console.admin_pages import admin_calls
    from console.desk import Desk
    from console.notices_page import NoticesPage
    from console.oidc_sign_in import OidcSignIn
    from console.org_pages import org_calls
    from console.pages import Pages
    from console.sessions import Sessions
    from console.sign_in import Door, SignIn
    from console.top_up_page import TopUpPage
    from enforcer.access import ConsoleSide, token_of
    from enforcer.addresses import address_of
    from ledger.audit import Audit
    from ledger.sessions import SessionStore

    settings = given.console
    store = SessionStore(ledger.client, settings.session_hours * 3600, settings.idle_minutes * 60, ledger.clock)
    sessions = Sessions(store, settings)
    pages = Pages(sessions, token_of, without=() if till is not None else ("/topup",))
    button = None if settings.oidc is None else settings.oidc.button
    audit = Audit(ledger.client, ledger.clock)
    door = Door(pages, sessions, ledger.tokens, failures, audit, address_of, button)
    desk = Desk(ledger, pages, till, address_of)
    calls = [*pages.calls(), *SignIn(door).calls(), *org_calls(desk), *admin_calls(desk, given)]
    calls += [*NoticesPage(desk, given.notices).calls(), *TopUpPage(desk).calls()]
    if provider is not None:
        calls += OidcSignIn(door, provider).calls()
    return ConsoleSide(sessions.identify, pages.error_page, calls)


@asynccontextmanager
async def _provider(given: Settings) -> AsyncIterator[Provider | None]:
    if given.console.oidc is None:
        yield None
        return

    import aiohttp

    from console.oidc import Provider
    from console.oidc_sign_in import CALLBACK
    from ledger.clock import now_us

    assert given.console.public_url is not None, "the settings refuse a provider without it"
    async with aiohttp.ClientSession() as http:
        back = given.console.public_url.rstrip("/") + CALLBACK
        yield Provider(given.console.oidc, http, now_us, back)
