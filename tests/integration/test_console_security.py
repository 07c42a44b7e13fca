"""Every call of the console, whoever wrote it: forms of other sites, headers, and fields filled in by nobody sane."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest

from api.routes import PART, Route
from cli.access_table import every_route
from console.places import SIGN_IN
from ledger.connect import Client
from tests.sign_in_lab import CSRF, Browser, Site, console_site

ROUTES = [route for route in every_route() if route.path.startswith("/console")]
FORMS = [route for route in ROUTES if route.method == "POST"]
PAGES = [route for route in ROUTES if route.method == "GET" and route.via == "session" and route.roles is not None]
HOSTILE = (
    "", "\x00", "a\r\nSet-Cookie: x=y", "'\"><script>", "../..", "%00", "{{7*7}}", "\ud7ff\U0010ffff", "x" * 5000, "-1",
    "1e309", "NaN", "9" * 400, "١٢", "2026-13-45T99:99", "0001-01-01T00:00", "2026-01-01T00:00+99:99", "[]",
    "payment:x",
)  # fmt: skip
QUERY = (
    "q",
    "sort",
    "page",
    "cursor",
    "show",
    "org",
    "id",
    "period",
    "from",
    "to",
    "next",
    "group_by",
    "step",
    "project",
)


def path_of(route: Route) -> str:
    return PART.sub(lambda part: {"org": "acme"}.get(part[1], "none"), route.path)


@pytest.fixture
async def site(client: Client) -> AsyncIterator[Site]:
    async with console_site(client) as site:
        await site.ledger.accounts.grant("acme", 10_000_000, key="k", who="test", reason="first")
        yield site


@pytest.fixture
async def admin(site: Site) -> Browser:
    browser = site.browser()
    assert (await browser.sign_in(site.tokens["admin"])).status == 303
    return browser


async def csrf_of(browser: Browser) -> str:
    found = CSRF.search((await browser.get("/console/session")).text)
    assert found is not None
    return found[1]


async def kept(client: Client) -> dict[bytes, bytes]:
    """All that the ledger has, but for what looking at it changes."""
    passing = (b"credits:session", b"credits:tokens:used", b"credits:audit")
    names = [name for name in await client.keys("*") if not name.startswith(passing)]
    return {name: await client.dump(name) or b"" for name in sorted(names)}


def test_there_are_forms_and_pages_to_look_at() -> None:
    assert len(FORMS) > 8
    assert len(PAGES) > 15
    assert {route.via for route in FORMS} == {"session"}


@pytest.mark.parametrize("route", [one for one in FORMS if one.path != SIGN_IN], ids=lambda route: route.path)
async def test_no_form_is_taken_without_its_token_or_from_another_site(
    site: Site, admin: Browser, client: Client, route: Route
) -> None:
    other = site.browser()
    await other.sign_in(site.tokens["admin"])
    own, others = await csrf_of(admin), await csrf_of(other)
    fields = {
        "credits": "5",
        "org": "new",
        "reason": "x",
        "key": "console:x",
        "role": "viewer",
        "id": site.ids["owner"],
    }
    before = await kept(client)
    elsewhere = {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"}
    for given, headers in (
        (fields, {}), ({**fields, "csrf": ""}, {}), ({**fields, "csrf": others}, {}),
        ({**fields, "csrf": own}, elsewhere),
        ({**fields, "csrf": own}, {"Origin": None, "Sec_Fetch_Site": None}),
        ({**fields, "csrf": own}, {"Origin": None, "Sec_Fetch_Site": "same-site"}),
    ):  # fmt: skip
        answer = await admin.post(path_of(route), given, **headers)  # type: ignore[arg-type]
        assert answer.status == 403, (given, headers)
    for kind in ("text/plain", "application/json", "multipart/form-data; boundary=x"):
        answer = await admin.post(path_of(route), f"csrf={own}".encode(), Content_Type=kind)
        assert answer.status == 415, kind
    assert (await admin.post(path_of(route), b"csrf=" + own.encode() + b"&x=" + b"y" * 70_000)).status == 413
    assert await kept(client) == before
    assert (await admin.get("/console/session")).status == 200


async def test_head_is_as_get_without_a_body(site: Site, admin: Browser) -> None:
    for route in (*PAGES, *(path for path in ("/-/healthy", "/openapi.json", "/metrics"))):
        path = route if isinstance(route, str) else path_of(route)
        got, head = await admin.get(path), await admin.ask("HEAD", path)
        assert head.status == got.status, path
        assert head.text == ""
        assert head.headers.get("Content-Type") == got.headers.get("Content-Type")
    stranger = await site.browser().ask("HEAD", "/console/orgs")
    assert (stranger.status, stranger.where.partition("?")[0]) == (303, "/console/sign-in")


@pytest.mark.parametrize("route", PAGES, ids=lambda route: route.path)
async def test_every_page_is_behind_the_same_headers_and_a_session(site: Site, admin: Browser, route: Route) -> None:
    stranger = await site.browser().get(path_of(route))
    assert (stranger.status, stranger.where.partition("?")[0]) == (303, "/console/sign-in")
    assert "<" not in stranger.text
    answer = await admin.get(path_of(route))
    assert answer.status in (200, 303, 404), answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "base-uri 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert not re.search(r"<script(?! src=\"/console/static/)", answer.text)
    assert not re.search(r"<[^>]+ (style|on\w+)=", answer.text)
    assert not re.search(r"(src|href|action)=\"(https?:)?//", answer.text)


@pytest.mark.slow
@pytest.mark.parametrize("route", FORMS, ids=lambda route: route.path)
async def test_no_field_however_it_is_filled_in_breaks_a_form(site: Site, admin: Browser, route: Route) -> None:
    page = await admin.get(path_of(route))
    names = set(re.findall(r'<(?:input|select|textarea)[^>]* name="([^"]+)"', page.text)) - {"csrf"}
    names |= {"org", "id", "key", "role", "next", "revision"}
    good = {"credits": "5", "reason": "r", "source": "provision", "key": "console:k", "role": "viewer", "org": "acme"}
    csrf = "" if route.path == SIGN_IN else await csrf_of(admin)
    broken = []
    for name in sorted(names):
        for value in HOSTILE:
            browser = site.browser()
            browser.cookies = dict(admin.cookies)
            answer = await browser.post(path_of(route), {**good, name: value, "csrf": csrf})
            if answer.status >= 500 and answer.status not in (501, 502):
                broken.append((name, value, answer.status))
            if answer.status == 303 and route.path == "/console/sign-out":
                assert (await admin.sign_in(site.tokens["admin"])).status == 303
                csrf = await csrf_of(admin)
    assert broken == []


@pytest.mark.slow
@pytest.mark.parametrize("value", [value for value in HOSTILE if value.strip()])
async def test_no_address_however_it_is_made_breaks_a_page(admin: Browser, value: str) -> None:
    text = quote(value, safe="")
    for route in PAGES:
        path = PART.sub(text, route.path)
        asked = "&".join(f"{name}={text}" for name in QUERY)
        answer = await admin.get(f"{path}?{asked}")
        assert answer.status < 500, (route.path, value)
        assert "<script>" not in answer.text
