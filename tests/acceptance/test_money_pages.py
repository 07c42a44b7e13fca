"""Saving a card, auto top-up and notices in a real browser, by keyboard and by axe."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from ledger.money import HOUR_US
from tests.console_browser import PHONE, WIDE, chromium, visitor
from tests.console_lab import NOW, ConsoleLab, console_lab
from tests.standins.stripe_api import GOOD_CARD

pytestmark = [pytest.mark.browser, pytest.mark.redis, pytest.mark.asyncio(loop_scope="module")]
ORG = "/console/orgs/acme"
CREDIT = 1_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def lab(valkey_url: str) -> AsyncIterator[ConsoleLab]:
    async with console_lab(valkey_url, since_us=NOW - HOUR_US) as lab:
        await lab.ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="t")
        yield lab


async def is_clean(page: Page) -> None:
    """Nothing that axe finds, and nothing wider than the window."""
    found = await Axe().run(page)
    assert [one["id"] for one in found.response["violations"]] == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
async def test_a_card_is_saved_with_a_purchase_and_auto_top_up_switched_on(
    lab: ConsoleLab, browser: Browser, scripts: bool
) -> None:
    async with visitor(browser, lab.url, lab.tokens["owner"], scripts=scripts) as page:
        await page.goto(f"{ORG}/buy")
        package = page.locator("form.package").first
        await package.get_by_label("Save the card").check()
        await package.get_by_role("button").click()
        await page.get_by_label("Card").fill(GOOD_CARD)
        await page.get_by_role("button", name="Pay").click()
        await page.wait_for_url("**/console/payments/**")
        await lab.stripe.settle()
        await page.goto(ORG)
        await page.get_by_role("link", name="Auto top-up").click()
        await expect(page.get_by_text("visa ending in 4242")).to_be_visible()
        for label, value in (("Below this many", "50"), ("Buy this many", "1000"), ("At most in a month", "10")):
            await page.get_by_label(label).fill(value)
        await page.get_by_role("button", name="Save terms").click()
        await expect(page.get_by_role("alert")).to_contain_text("Nothing was changed.")
        cap = page.get_by_label("At most in a month")
        await expect(cap).to_have_accessible_description(re.compile("10 is less than credits 1000"))
        await page.get_by_label("At most in a month").fill("5000")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("Auto top-up is on.")).to_be_visible()
        if scripts:
            await is_clean(page)
        await page.get_by_role("button", name="End auto top-up").click()
        await expect(page.get_by_text("the card is forgotten")).to_be_visible()
        assert [method["customer"] for method in lab.stripe.methods.values()] == [None]


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)], ids=["light", "dark phone"])
async def test_notices_are_set_by_keyboard(
    lab: ConsoleLab, browser: Browser, scheme: str, size: tuple[int, int]
) -> None:
    async with visitor(browser, lab.url, lab.tokens["owner"], scheme=scheme, size=size) as page:
        await page.goto(f"{ORG}/notices")
        await is_clean(page)
        await page.get_by_label("E-mail addresses").fill("nobody")
        await page.get_by_role("button", name="Save").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text("Nothing was changed.")
        emails = page.get_by_label("E-mail addresses")
        await expect(emails).to_have_accessible_description(re.compile("'nobody' is not an address"))
        await is_clean(page)
        await page.get_by_label("E-mail addresses").fill("ops@acme.example")
        await page.get_by_label("Purchases").focus()
        await page.keyboard.press("Space")
        await page.get_by_label("Webhook").fill("https://hooks.acme.example/credits")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("It is shown this once")).to_be_visible()
        await is_clean(page)
        await page.goto(f"{ORG}/topup")
        await is_clean(page)
    shape = await lab.call("GET", "/v1/orgs/acme/notices")
    assert (shape["email"], "purchase" in shape["kinds"]) == (["ops@acme.example"], False)
    async with visitor(browser, lab.url, lab.tokens["viewer"], scheme=scheme, size=size) as page:
        await page.goto(f"{ORG}/notices")
        await is_clean(page)
