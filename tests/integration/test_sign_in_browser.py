"""Signing in and administering in a real browser: by token, through a provider, without scripts, with axe."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.async_api import Browser, Page, expect

from config.console import Console
from console.oidc import Provider
from console.oidc_sign_in import CALLBACK
from ledger import keys
from ledger.clock import now_us
from ledger.connect import Client
from ledger.exhaustion import Act, TierState
from ledger.model import RatePlan, RateTable
from ledger.money import HOUR_US
from ledger.refusals import SHADOW, Refused
from tests.console_browser import PHONE, WIDE, chromium, visitor
from tests.integration.test_oidc import PEOPLE, settings_of
from tests.servers import free_port
from tests.sign_in_lab import Site, console_site
from tests.standins.oidc import OidcProvider, oidc_provider

pytestmark = pytest.mark.browser
PAGES = (
    "/console/orgs", "/console/new-org", "/console/orgs/acme/settings", "/console/orgs/acme/grant", "/console/rates",
    "/console/sources", "/console/stages", "/console/shadow", "/console/tokens", "/console/session",
    "/console/audit",
    "/console/orgs/acme/correct?of=k",
    "/console/orgs/acme/transfer",
)  # fmt: skip
AXE = AXE_FILE_PATH.read_text()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


async def fill(site: Site) -> None:
    """Something of everything that these pages show."""
    ledger, now = site.ledger, now_us()
    await ledger.accounts.grant("acme", 1_250_500_000, key="k", who="test", reason="Allocation")
    await ledger.accounts.upsert("globex", who="test", unlimited=True)
    await ledger.accounts.upsert("initech", who="test", contact="ops@initech.example")
    tables = [RateTable({"cpu-small": 10**9, "gpu-large": n * 10**8}, {"vllm": 25 * 10**8}) for n in (400, 405, 420)]
    await ledger.rates.publish(
        RatePlan("default", ((0, tables[0]), (now - HOUR_US, tables[1]), (now + 900 * HOUR_US, tables[2])))
    )
    client: Any = ledger.client
    await client.hset(keys.SOURCES, "simulated-default", str(now - 20_000_000))
    await client.hset(keys.SOURCES, "old-cluster", str(now - 500 * HOUR_US))
    await client.hset(keys.UNBILLABLE, f"simulated-default{keys.US}no_preset", "3")
    tier = keys.US.join(("vision", "ann", "u", "month"))
    await ledger.exhaustion.write("acme", tier, TierState(), TierState(4, now - HOUR_US), None)
    await ledger.exhaustion.note("acme", tier, "simulated-default", "job-1", Act("suspend", now))
    await ledger.exhaustion.write("acme", "", TierState(), TierState(1, now), None)
    entry = {
        "type": SHADOW, "event": "e", "at": "2026-11-18T12:00:00Z", "who": "scheduler", "code": "no_credits",
        "required": "10.125", "project": "vision", "user": "ann", "preset": "gpu-large", "app": None,
    }  # fmt: skip
    await ledger.refusals.add([Refused("initech", entry)] * 3)


@asynccontextmanager
async def filled(client: Client) -> AsyncIterator[Site]:
    async with console_site(client) as site:
        await fill(site)
        yield site


async def violations(page: Page) -> list[str]:
    """What axe finds, and what does not fit into the width."""
    await page.evaluate(AXE)  # by the debugger, for the page's own policy lets no script of others in
    found = await page.evaluate("axe.run()")
    wrong = [f"{one['id']}: {node['html']}" for one in found["violations"] for node in one["nodes"]]
    if await page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        wrong.append("wider than the window")
    return wrong


@pytest.mark.parametrize("scripts", [True, False])
async def test_a_token_signs_in_and_out(client: Client, browser: Browser, scripts: bool) -> None:
    async with filled(client) as site, visitor(browser, site.url, scripts=scripts) as page:
        await page.goto("/console/orgs/acme/grants")
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await page.get_by_label("Token").fill("act_" + "x" * 43)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("not known, expired or revoked")
        await page.get_by_label("Token").fill(site.tokens["viewer"])
        await page.get_by_role("button", name="Sign in").click()
        await page.wait_for_url("**/console/orgs/acme/grants")
        cookies = await page.context.cookies()
        assert [(cookie["name"], cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [
            ("credits", True, "Lax")
        ]
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_text("You are signed out.")).to_be_visible()
        await page.goto("/console/orgs/acme")
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_a_provider_signs_in_and_somebody_of_several_orgs_chooses(client: Client, browser: Browser) -> None:
    port = free_port()
    idp = OidcProvider(f"http://127.0.0.1:{port}{CALLBACK}", dict(PEOPLE))
    async with oidc_provider(idp), aiohttp.ClientSession() as http:
        settings = settings_of(idp, timeout_seconds=5)
        console = Console(public_url=f"http://127.0.0.1:{port}", oidc=settings)
        provider = Provider(settings, http, now_us, idp.redirect_uri)
        async with console_site(client, console, provider, port=port) as site, visitor(browser, site.url) as page:
            await site.ledger.accounts.upsert("acme", who="test")
            await page.goto("/console/orgs/acme/grants")
            assert await violations(page) == []
            await page.get_by_role("link", name="Sign in with the institute").click()
            await page.get_by_role("button", name="ann").click()
            await page.wait_for_url("**/console/orgs/acme/grants")
            await expect(page.get_by_text("Owner of acme")).to_be_visible()
            await page.goto("/console/session")
            await page.get_by_role("button", name="Sign out everywhere").click()
            await expect(page.get_by_text("You are signed out everywhere.")).to_be_visible()
            await page.get_by_role("link", name="Sign in with the institute").click()
            await page.get_by_role("button", name="bob").click()
            assert await violations(page) == []
            await page.get_by_label("Viewer of acme").check()
            await page.get_by_role("button", name="Go on").click()
            await page.wait_for_url("**/console/orgs/acme")
            await expect(page.get_by_text("Viewer of acme")).to_be_visible()


async def test_an_administrator_grants_once_by_a_double_click(client: Client, browser: Browser) -> None:
    async with filled(client) as site:
        for scripts in (True, False):
            async with visitor(browser, site.url, site.tokens["admin"], scripts=scripts) as page:
                await page.goto("/console/orgs/initech/grant")
                await page.get_by_label("Credits", exact=True).fill("12.5")
                await page.get_by_label("Reason").fill(f"Pilot, scripts {scripts}")
                await page.get_by_role("main").get_by_role("button", name="Grant credits").dblclick(no_wait_after=True)
                await page.wait_for_url("**/console/orgs/initech/grants")
                await expect(page.get_by_text("12.5 credits are granted to org initech")).to_be_visible()
        grants = await site.ledger.accounts.grants("initech")
        assert [grant.credits for grant in grants] == ["12.5", "12.5"]


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
async def test_pages_are_usable_by_everybody(
    client: Client, browser: Browser, scheme: str, size: tuple[int, int]
) -> None:
    async with filled(client) as site:
        wrong = {}
        async with visitor(browser, site.url, scheme=scheme, size=size) as page:
            await page.goto("/console/sign-in")
            wrong["sign-in"] = await violations(page)
        async with visitor(browser, site.url, site.tokens["admin"], scheme=scheme, size=size) as page:
            for path in (*PAGES, f"/console/tokens/revoke?id={site.ids['owner']}"):
                answer = await page.goto(path)
                assert answer is not None
                assert answer.status == 200, path
                wrong[path] = await violations(page)
            await page.goto("/console/tokens")
            await page.get_by_role("textbox", name="Org").fill("acme")
            await page.get_by_role("button", name="Make the token").click()
            await expect(page.get_by_label("Token")).to_have_value(re.compile(r"act_[\w-]{43}"))
            wrong["made"] = await violations(page)
        assert {path: found for path, found in wrong.items() if found} == {}
