"""Debian's Chromium on the console, signed in by token, as tests and pictures use it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, BrowserContext, Page, async_playwright

WIDE = (1280, 900)
PHONE = (390, 844)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A browser; a look at a page that is longer than it is comes from contexts of their own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--font-render-hinting=none"]
        )
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visitor(
    browser: Browser,
    url: str,
    token: str = "",
    *,
    scheme: str = "light",
    size: tuple[int, int] = WIDE,
    scripts: bool = True,
    scale: float = 1,
) -> AsyncIterator[Page]:
    """A page of somebody who signed in by the form with a token; without one, of nobody."""
    context: BrowserContext = await browser.new_context(
        base_url=url, color_scheme="dark" if scheme == "dark" else "light", java_script_enabled=scripts,
        viewport={"width": size[0], "height": size[1]}, device_scale_factor=scale, locale="en-GB",
        accept_downloads=True,
    )  # fmt: skip
    context.set_default_timeout(15_000)
    try:
        page = await context.new_page()
        if token:
            await page.goto("/console/sign-in")
            await page.get_by_label("Token").fill(token)
            await page.get_by_role("button", name="Sign in", exact=True).click()
            await page.wait_for_url(lambda there: "/sign-in" not in there)
        yield page
    finally:
        await context.close()
