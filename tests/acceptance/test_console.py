"""The console in a real browser, over a ledger that real rounds filled: what people see, and what they can do there."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from exporter.sources.json_source import JsonSource
from ledger.clock import format_time
from ledger.money import HOUR_US
from ledger.verify import verify
from tests.console_browser import PHONE, WIDE, chromium, visitor
from tests.console_lab import NOW, ConsoleLab, console_lab, fill, use
from tests.run_lab import RunLab
from tests.servers import wait_until
from tests.standins.stripe_api import GOOD_CARD

pytestmark = [pytest.mark.browser, pytest.mark.redis, pytest.mark.asyncio(loop_scope="module")]
ORG = "/console/orgs/acme"
PAGES = {
    "overview": ORG,
    "overview by hour": f"{ORG}?period=24h",
    "overview of wrong days": f"{ORG}?period=dates&from=2026-11-20&to=2026-11-01",
    "usage": f"{ORG}/usage?group_by=project&group_by=user&step=day",
    "usage by workload": f"{ORG}/usage?group_by=workload",
    "usage of nothing": f"{ORG}/usage?project=none",
    "usage of a wrong zone": f"{ORG}/usage?timezone=Mars",
    "budgets": f"{ORG}/budgets",
    "removing a budget": f"{ORG}/budgets/remove?project=speech&period=month",
    "grants": f"{ORG}/grants",
    "journal": f"{ORG}/journal",
    "buying": f"{ORG}/buy?credits=750",
    "buying too much": f"{ORG}/buy?credits=999999",
    "time zone": "/console/zone",
    "an org that is not there": "/console/orgs/nobody",
    "signing in": "/console/sign-in",
}
NO_PAGES = {"/console/open", "/console/choose"}
HOSTILE = {
    "script": "<script>document.title='taken'</script>",
    "formula": '=cmd|"/c calc"!A1',
    "long": "n" * 250,
    "right-to-left": "‮مشروع‬ x",
    "quote": "\"'><img src=x onerror=alert(1)>",
    "path": "../../a/b?c=d#e&f",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def lab(valkey_url: str) -> AsyncIterator[ConsoleLab]:
    """A day of a simulated cluster."""
    async with console_lab(valkey_url, since_us=NOW - 26 * HOUR_US, jobs_per_hour=2) as lab:
        await fill(lab)
        yield lab
        report = await verify(lab.ledger)
        assert report["ok"], report["differences"]


async def figure(page: Page, title: str) -> Decimal:
    """An amount of the overview."""
    value = page.locator(".figure", has=page.get_by_text(title, exact=True)).locator("data").first
    return Decimal(await value.get_attribute("value") or "")


async def pay(page: Page) -> None:
    """At the provider's page, and back."""
    await page.get_by_label("Card").fill(GOOD_CARD)
    await page.get_by_role("button", name="Pay").click()
    await page.wait_for_url("**/console/payments/**")


async def test_credits_bought_in_the_browser_arrive_once_though_the_webhook_comes_three_times(
    lab: ConsoleLab, browser: Browser
) -> None:
    lab.stripe.deliveries = 3
    async with visitor(browser, lab.url, lab.tokens["owner"]) as page:
        await page.goto(ORG)
        before = await figure(page, "Available")
        await page.get_by_role("link", name="Buy credits").first.click()
        await page.get_by_role("button", name="Buy 1000 credits for 45.00 USD").click()
        await pay(page)
        await expect(page.get_by_role("status")).to_contain_text("1000 credits are in the account")
        assert (await Axe().run(page)).violations_count == 0
        await lab.stripe.settle()
        assert lab.stripe.answers == [200] * 3
        await page.get_by_role("link", name="To the balance").click()
        assert await figure(page, "Available") == before + 1000
        await page.goto(f"{ORG}/buy")
        await expect(page.locator("#orders tbody tr")).to_have_count(1)
        await expect(page.locator("#orders .badge")).to_have_text("paid")
        await page.goto(f"{ORG}/grants")
        await expect(page.get_by_role("row", name="Bought")).to_have_count(1)


async def test_the_price_is_shown_while_an_amount_is_typed_as_the_server_says_it(
    lab: ConsoleLab, browser: Browser
) -> None:
    async with visitor(browser, lab.url, lab.tokens["owner"]) as page:
        await page.goto(f"{ORG}/buy")
        field, price = page.get_by_role("textbox", name="Credits"), page.locator("output")
        for typed, said in (
            ("123.456789", "6.18 USD"), ("10.000001", "0.51 USD"), ("1000", "45.00 USD"), ("9.999999", ""),
            ("10000", "500.00 USD"), ("10000.000001", ""), ("5000", "200.00 USD"), ("x", ""), ("9999.99", "500.00 USD"),
        ):  # fmt: skip
            await field.fill(typed)
            await expect(price).to_have_text(said)
            if said:
                await page.goto(f"{ORG}/buy?credits={typed}")
                await expect(page.get_by_role("button", name=f"Pay {said}")).to_be_visible()
        await page.goto(f"{ORG}/buy?credits=9.999999")
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(page.locator("#credits-error")).to_contain_text("choose from 10 to 10000")


async def test_two_clicks_on_a_form_make_one_order(lab: ConsoleLab, browser: Browser) -> None:
    async with visitor(browser, lab.url, lab.tokens["owner"], scripts=False) as page:
        await page.goto(f"{ORG}/buy?credits=750")
        button = page.get_by_role("button", name="Pay 37.50 USD")
        await button.dblclick(no_wait_after=True)
        await page.wait_for_url("**/pay/**")
        await page.goto(f"{ORG}/buy?credits=750")
        await expect(page.locator("#orders tbody tr")).to_have_count(1)
        # The page was made anew, so this is another wish.
        await page.get_by_role("button", name="Pay 37.50 USD").click()
        await page.wait_for_url("**/pay/**")
        await page.goto(f"{ORG}/buy")
        await expect(page.locator("#orders tbody tr")).to_have_count(2)
        assert len(lab.stripe.sessions) == 2


async def test_a_budget_set_in_the_browser_refuses_a_job_and_the_page_says_why(
    lab: ConsoleLab, browser: Browser
) -> None:
    async with visitor(browser, lab.url, lab.tokens["owner"]) as page:
        assert (await lab.admit(project="new", user="ann", dry_run=True))["allowed"]
        await page.goto(f"{ORG}/budgets")
        await page.get_by_label("Project").fill("new")
        await page.get_by_label("Credits").fill("-5")
        await page.get_by_role("button", name="Save budget").click()
        await expect(page.get_by_label("Credits")).to_have_attribute("aria-invalid", "true")
        await expect(page.locator("#credits-error")).to_contain_text("'-5' is not an amount like 1500 or 0.25")
        assert await page.get_by_label("Project").input_value() == "new"
        await page.get_by_label("Credits").fill("2.5")
        await page.get_by_role("button", name="Save budget").click()
        await expect(page.get_by_role("status")).to_contain_text("The budget of project new is 2.5 credits")
        answer = await lab.admit(project="new", user="ann", max_runtime_seconds=36_000)
        assert (answer["allowed"], answer["code"]) == (False, "budget_exhausted")
        await page.goto(ORG)
        row = page.get_by_role("region", name="Recent refusals").locator("tbody tr")
        await expect(row).to_have_count(1)
        await expect(row).to_contain_text(answer["reason"])
        await expect(row).to_contain_text("ann")
        await page.goto(f"{ORG}/journal?show=refusals")
        await expect(page.locator("tbody")).to_contain_text(answer["reason"])
        # And gone again, after a question.
        await page.goto(f"{ORG}/budgets")
        await page.get_by_role("link", name="Remove").click()
        await page.get_by_role("button", name="Remove budget").click()
        await expect(page.get_by_role("status")).to_contain_text("The budget of project new is removed.")
        assert (await lab.admit(project="new", user="ann", dry_run=True))["allowed"]


async def test_two_who_change_a_budget_do_not_overwrite_each_other(lab: ConsoleLab, browser: Browser) -> None:
    await lab.ledger.budgets.put("acme", "shared", None, 10_000_000, who="test")
    async with visitor(browser, lab.url, lab.tokens["owner"]) as page:
        await page.goto(f"{ORG}/budgets")
        await page.get_by_role("link", name="Change the budget").click()
        await expect(page.get_by_role("textbox", name="Credits")).to_have_value("10")
        await lab.ledger.budgets.put("acme", "shared", None, 20_000_000, who="somebody else")
        await page.get_by_role("textbox", name="Credits").fill("30")
        await page.get_by_role("button", name="Save budget").click()
        await expect(page.get_by_role("alert")).to_contain_text("somebody else changed this budget")
        await expect(page.locator(".bars li")).to_contain_text("of 20 a month")
        await expect(page.get_by_role("textbox", name="Credits")).to_have_value("30")
        await page.get_by_role("button", name="Save budget").click()
        await expect(page.locator(".bars li")).to_contain_text("of 30 a month")
        await page.get_by_role("link", name="Remove").click()
        await lab.ledger.budgets.put("acme", "shared", None, 40_000_000, who="somebody else")
        await page.get_by_role("button", name="Remove budget").click()
        await expect(page.get_by_role("status")).to_contain_text("Nothing was removed")
        await expect(page.locator(".bars li")).to_contain_text("of 40 a month")
        journal = await lab.call("GET", "/v1/orgs/acme/journal")
        assert {entry["from"] for entry in journal["items"] if entry.get("credits") == "30"} == {"127.0.0.1"}


async def test_the_explorer_and_its_file_have_the_sums_of_the_api(lab: ConsoleLab, browser: Browser) -> None:
    async with visitor(browser, lab.url, lab.tokens["viewer"]) as page:
        await page.goto(f"{ORG}/usage")
        await page.get_by_label("Period").select_option(label="Last 30 days")
        await page.get_by_label("User", exact=True).nth(1).check()
        await page.get_by_label("Steps").select_option(label="By day")
        await page.get_by_role("button", name="Show").click()
        async with page.expect_download() as waiting:
            await page.get_by_role("link", name="Download CSV").click()
        path = await (await waiting.value).path()
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        shown = page.locator("tfoot data").first
        since, until = NOW - NOW % (24 * HOUR_US) - 29 * 24 * HOUR_US, NOW - NOW % (24 * HOUR_US) + 24 * HOUR_US
        asked = f"from={format_time(since)}&to={format_time(until)}&org=acme&group_by=project,user&step=day"
        api = await lab.call("GET", f"/v1/usage?{asked}", role="owner")
        assert len(rows) == len(api["rows"]) + 1
        assert [(row["at"], row["project"], row["user"], row["credits"]) for row in rows[:-1]] == [
            (row["at"], row["project"], row["user"] or "", row["credits"]) for row in api["rows"]
        ]
        total = sum(Decimal(row["credits"]) for row in rows[:-1])
        assert total > 0
        assert rows[-1]["credits"] == api["total"] == await shown.get_attribute("value")
        assert total == Decimal(api["total"])
        await page.goto(ORG)
        assert await figure(page, "Spent") == total


async def test_without_scripts_everything_can_be_done(lab: ConsoleLab, browser: Browser) -> None:
    async with visitor(browser, lab.url, lab.tokens["owner"], scripts=False) as page:
        await page.goto(ORG)
        await expect(page.locator("svg.chart.wide")).to_be_visible()
        await page.get_by_text("Other days").click()
        await page.get_by_label("First day").fill("2026-11-18")
        await page.get_by_label("Last day").fill("2026-11-18")
        await page.get_by_role("button", name="Show").click()
        await expect(page.locator("figcaption")).to_contain_text("18 Nov 2026, 00:00 UTC to 19 Nov 2026, 00:00")
        await page.goto(f"{ORG}/buy")
        await page.get_by_label("Credits").fill("100")
        await page.get_by_role("button", name="Show the price").click()
        await page.get_by_role("button", name="Pay 5.00 USD").click()
        await pay(page)
        await lab.stripe.settle()
        await page.reload()
        await expect(page.get_by_role("status")).to_contain_text("100 credits are in the account")
        await page.goto("/console/zone")
        await page.get_by_role("combobox", name="Time zone").fill("Asia/Kathmandu")
        await page.get_by_role("button", name="Use it").click()
        await page.goto(f"{ORG}/grants")
        await expect(page.locator("tbody time").first).to_contain_text("+0545")
        await page.get_by_role("button", name="Sign out").click()
        answer = await page.goto(ORG)
        assert answer is not None
        assert urlsplit(page.url).path == "/console/sign-in"


async def test_a_viewer_sees_everything_and_no_form(lab: ConsoleLab, browser: Browser) -> None:
    await use(lab)
    async with visitor(browser, lab.url, lab.tokens["viewer"]) as page:
        for name in ("", "/usage", "/budgets", "/grants", "/journal"):
            answer = await page.goto(ORG + name)
            assert answer is not None
            assert answer.status == 200
            await expect(page.locator("main form[method=post]")).to_have_count(0)
            await expect(page.get_by_role("link", name="Buy credits")).to_have_count(0)
        await page.goto(f"{ORG}/budgets")
        await expect(page.locator(".bars li")).not_to_have_count(0)
        for name in ("/buy", "/budgets/remove?project=speech&period=month"):
            answer = await page.goto(ORG + name)
            assert answer is not None
            assert answer.status == 403
        answer = await page.goto("/console/orgs/globex")
        assert answer is not None
        assert answer.status == 403


async def test_a_scheduler_cannot_sign_in(lab: ConsoleLab, browser: Browser) -> None:
    async with visitor(browser, lab.url) as page:
        await page.goto("/console/sign-in")
        await page.get_by_label("Token").fill(lab.tokens["scheduler"])
        await page.get_by_role("button", name="Sign in", exact=True).click()
        await expect(page.get_by_role("alert")).to_be_visible()
        await page.goto(ORG)
        assert urlsplit(page.url).path == "/console/sign-in"


async def test_an_admin_goes_to_any_org_by_its_name(lab: ConsoleLab, browser: Browser) -> None:
    await lab.ledger.accounts.grant("a/b <i>", 7_000_000, key="1", who="test")
    async with visitor(browser, lab.url, lab.tokens["admin"]) as page:
        await page.goto(ORG)
        await page.get_by_label("Org", exact=True).fill("a/b <i>")
        await page.get_by_role("button", name="Go", exact=True).click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("a/b <i>")
        await page.get_by_role("link", name="Grants", exact=True).click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.get_by_role("link", name="Grants", exact=True)).to_have_attribute("aria-current", "page")


async def test_hostile_names_are_shown_and_do_nothing(valkey_url: str, browser: Browser, tmp_path: Path) -> None:
    document = tmp_path / "snapshot.json"
    source = JsonSource(name="json-default", cluster="default", path=document)
    async with console_lab(valkey_url, since_us=NOW - HOUR_US, source=source) as lab:
        assert lab.rounds is not None
        await lab.ledger.accounts.grant("acme", 500_000_000, key="1", who="test", reason=HOSTILE["script"])
        workloads = [
            {"id": name, "kind": "job", "org": "acme", "project": name, "user": name, "preset": "gpu-large",
             "started_at": format_time(NOW - HOUR_US // 2)} for name in HOSTILE.values()
        ]  # fmt: skip
        for at in (NOW - HOUR_US // 4, NOW):
            lab.clock[0] = at
            shown = {"cluster": "default", "taken_at": format_time(at), "workloads": workloads}
            document.write_text(json.dumps(shown))
            report = await lab.rounds.round()
            assert not report.failed
        for name in HOSTILE.values():
            await lab.ledger.budgets.put("acme", name, name, 1_000_000, who=name)
            answer = await lab.admit(project=name, user=name, workload_id=f"more-{name}"[:253])
            assert answer["code"] == "budget_exhausted"
        async with visitor(browser, lab.url, lab.tokens["owner"], size=PHONE) as page:
            problems: list[Any] = []
            page.on("dialog", lambda dialog: problems.append(dialog.message))
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            await page.goto(ORG)
            for name in HOSTILE.values():
                await expect(
                    page.get_by_role("region", name="Running workloads").get_by_text(name).first
                ).to_be_visible()
            for address in ("", "/usage?group_by=workload&group_by=project", "/budgets", "/journal", "/grants"):
                await page.goto(ORG + address)
                assert await page.evaluate("document.title") != "taken"
                assert await page.evaluate("document.querySelectorAll('main img, main script').length") == 0
                await no_wider_than_the_window(page)
            await page.goto(f"{ORG}/usage?group_by=project")
            async with page.expect_download() as waiting:
                await page.get_by_role("link", name="Download CSV").click()
            rows = list(csv.reader(io.StringIO((await (await waiting.value).path()).read_text())))
            cells = [cell for row in rows for cell in row]
            assert f"'{HOSTILE['formula']}" in cells
            assert not [cell for cell in cells if cell.startswith(("=", "@", "+"))]
            await page.goto(f"{ORG}/budgets")
            place = page.get_by_role("link", name=f"Remove the budget of {HOSTILE['path']}")
            await place.click()
            await page.get_by_role("button", name="Remove budget").click()
            await expect(page.get_by_role("status")).to_contain_text(HOSTILE["path"])
            assert not problems


async def no_wider_than_the_window(page: Page) -> None:
    wide = await page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], (page.url, wide)


async def test_on_a_small_laptop_no_column_is_out_of_sight(lab: ConsoleLab, browser: Browser) -> None:
    await use(lab)
    async with visitor(browser, lab.url, lab.tokens["admin"], size=(1024, 768)) as page:
        for address in (ORG, f"{ORG}/journal", f"{ORG}/grants", f"{ORG}/buy", "/console/orgs", "/console/tokens"):
            await page.goto(address)
            await no_wider_than_the_window(page)
            hidden = await page.evaluate(
                "[...document.querySelectorAll('.scroll')].map((box) => box.scrollWidth - box.clientWidth)"
            )
            assert hidden, address
            assert max(hidden) == 0, (address, hidden)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)], ids=["light", "dark phone"])
async def test_every_page_is_accessible_and_fits(
    valkey_url: str, browser: Browser, scheme: str, size: tuple[int, int]
) -> None:
    async with console_lab(valkey_url, since_us=NOW - 5 * 24 * HOUR_US, jobs_per_hour=2) as lab:
        await fill(lab)
        await use(lab)
        # Those that need to be told more than an org are looked at by the tests that tell them.
        paths = {path.replace("{org}", "acme") for path in lab.pages} - {
            url.partition("?")[0] for url in PAGES.values()
        }
        pages = PAGES | {path: path for path in sorted(paths) if "{" not in path and path not in NO_PAGES}
        assert len(pages) > len(PAGES) + 5
        found: dict[str, Any] = {}
        async with visitor(browser, lab.url, lab.tokens["admin"], scheme=scheme, size=size) as page:
            for name, address in pages.items():
                answer = await page.goto(address)
                assert answer is not None
                assert answer.status < 500, name
                await no_wider_than_the_window(page)
                for summary in await page.locator("main details:not([open]) > summary").all():
                    if await summary.is_visible():
                        await summary.click()
                await no_wider_than_the_window(page)
                results = await Axe().run(page)
                if results.violations_count:
                    found[name] = results.generate_report()
        assert not found, "\n".join(f"{where}: {what}" for where, what in found.items())


async def test_pages_may_load_nothing_from_elsewhere_and_are_not_kept(lab: ConsoleLab, browser: Browser) -> None:
    async with visitor(browser, lab.url, lab.tokens["owner"]) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        for address in PAGES.values():
            answer = await page.goto(address)
            assert answer is not None
            about = await answer.all_headers()
            policy = about["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert about["cache-control"] == "no-store"
            assert about["x-content-type-options"] == "nosniff"
        assert {urlsplit(url).netloc for url in asked} == {urlsplit(lab.url).netloc}


async def test_the_skip_link_leads_past_the_navigation(lab: ConsoleLab, browser: Browser) -> None:
    async with visitor(browser, lab.url, lab.tokens["owner"]) as page:
        await page.goto(ORG)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.querySelector('main').contains(document.activeElement)")


async def test_the_ledger_away_is_said_on_a_page(make_server: Any, browser: Browser) -> None:
    server = make_server()
    async with console_lab(server.url, since_us=NOW - HOUR_US) as lab:
        await lab.ledger.accounts.grant("acme", 500_000_000, key="1", who="test")
        async with visitor(browser, lab.url, lab.tokens["owner"]) as page:
            await page.goto(ORG)
            await asyncio.to_thread(server.kill9)
            answer = await page.goto(ORG)
            assert answer is not None
            assert answer.status == 503
            await expect(page.get_by_role("heading", level=1)).to_be_visible()


@pytest.mark.slow
async def test_the_console_of_credits_run_shows_its_running_cluster(browser: Browser, tmp_path: Path) -> None:
    lab = RunLab(tmp_path)
    try:
        await asyncio.to_thread(lab.up)
        await asyncio.to_thread(wait_until, lambda: (lab.metric("credits_spent_total{") or 0) > 0, 30, "a first charge")
        token = (tmp_path / "var/admin.token").read_text().strip()
        async with visitor(browser, f"http://127.0.0.1:{lab.api_port}", token) as page:
            await page.goto(ORG)
            before = await figure(page, "Spent")
            assert before > 0
            await expect(page.get_by_role("region", name="Running workloads").locator("tbody tr")).not_to_have_count(0)
            async with asyncio.timeout(30):
                while await figure(page, "Spent") == before:
                    await page.reload()
            await page.goto(f"{ORG}/buy")
            await expect(page.locator("main")).to_contain_text("section “payments”")
            await expect(page.locator("main form")).to_have_count(0)
    finally:
        await asyncio.to_thread(lab.end)
