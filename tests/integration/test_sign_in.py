"""Signing in by token: what it takes, what the cookie is like, and what other sites cannot do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import msgspec
import pytest

from config.console import Console
from console.places import safe_next
from ledger import keys
from ledger.connect import Client, connect
from tests.servers import ServerProcess
from tests.sign_in_lab import CSRF, Browser, Site, console_site


@pytest.fixture
async def site(client: Client) -> AsyncIterator[Site]:
    async with console_site(client) as site:
        yield site


async def signed_in(site: Site, role: str) -> Browser:
    browser = site.browser()
    answer = await browser.sign_in(site.tokens[role])
    assert (answer.status, answer.where) == (303, "/console"), answer.text
    return browser


async def csrf_of(browser: Browser) -> str:
    found = CSRF.search((await browser.get("/console/session")).text)
    assert found is not None
    return found[1]


# -- signing in ------------------------------------------------------------------------------------------------------


async def test_a_token_signs_in_and_leads_back_to_the_page_that_was_asked_for(site: Site) -> None:
    browser = site.browser()
    asked = await browser.get("/console/session?x=1")
    assert asked.status == 303
    assert (await browser.get("/console/")).where == "/console/sign-in?next=/console/"
    page = await browser.get(asked.where)
    assert page.status == 200
    assert 'type="password"' in page.text
    assert 'autocomplete="off"' in page.text
    assert 'name="next" value="/console/session?x=1"' in page.text
    answer = await browser.sign_in(f"  {site.tokens['viewer']} ", "/console/session?x=1")
    assert (answer.status, answer.where) == (303, "/console/session?x=1")
    session = await browser.get("/console/session")
    assert f"token:{site.ids['viewer']} (viewer)" in session.text
    assert (await browser.get("/console/sign-in?next=/console/session")).where == "/console/session"


@pytest.mark.parametrize(("role", "home"), [("admin", "/console/orgs"), ("owner", "/console/orgs/acme")])
async def test_the_first_page_is_the_list_of_orgs_or_the_callers_org(site: Site, role: str, home: str) -> None:
    assert (await (await signed_in(site, role)).get("/console")).where == home


async def test_the_cookie_on_plain_http_of_the_own_machine(site: Site) -> None:
    answer = await site.browser().sign_in(site.tokens["owner"])
    (cookie,) = answer.cookies
    name, *flags = cookie.split("; ")
    assert name.startswith("credits=")
    assert sorted(flags) == ["HttpOnly", "Path=/", "SameSite=Lax"]


async def test_the_cookie_over_https_is_secure_and_of_this_host_alone(client: Client) -> None:
    async with console_site(client, Console(public_url="https://credits.example.org")) as site:
        answer = await site.browser().post(
            "/console/sign-in", {"token": site.tokens["owner"]}, Origin="https://credits.example.org"
        )
        (cookie,) = answer.cookies
        name, *flags = cookie.split("; ")
        assert name.startswith("__Host-credits=")
        assert sorted(flags) == ["HttpOnly", "Path=/", "SameSite=Lax", "Secure"]
        # A cookie of the name that any site of the domain could set is none.
        browser = site.browser()
        browser.cookies["credits"] = name.partition("=")[2]
        assert (await browser.get("/console/session")).status == 303
        browser.cookies["__Host-credits"] = name.partition("=")[2]
        assert (await browser.get("/console/session")).status == 200


async def test_over_plain_http_from_another_machine_no_token_is_taken(site: Site) -> None:
    browser = site.browser()
    page = await browser.get("/console/sign-in", Host="credits.example.org")
    assert page.status == 400
    assert "Reach it by https" in page.text
    given = {"token": site.tokens["admin"]}
    answer = await browser.post(
        "/console/sign-in", given, Host="credits.example.org", Origin="http://credits.example.org"
    )
    assert (answer.status, answer.cookies) == (400, [])
    for host in ("localhost:9471", "[::1]:9471", "127.1.2.3"):
        assert (await browser.get("/console/sign-in", Host=host)).status == 200
    for host in ("127.evil.example", "localhost.evil.example", "[::1"):
        assert (await browser.get("/console/sign-in", Host=host)).status == 400


@pytest.mark.parametrize("token", ["", "x", "act_" + "a" * 43, "act_" + "a" * 5000, "act_é", "Bearer act_x", "\0", "%"])
async def test_what_is_no_token_is_said_so_and_not_shown_again(site: Site, token: str) -> None:
    answer = await site.browser().sign_in(token)
    assert answer.status == 403
    assert answer.cookies == []
    assert "not known, expired or revoked" in answer.text
    assert len(token) < 4 or token not in answer.text


async def test_a_schedulers_token_is_refused_with_a_sentence(site: Site) -> None:
    answer = await site.browser().sign_in(site.tokens["scheduler"])
    assert (answer.status, answer.cookies) == (403, [])
    assert "only admits work" in answer.text


async def test_trying_tokens_is_limited_and_who_has_one_still_gets_in(site: Site) -> None:
    browser = site.browser()
    statuses = [(await browser.sign_in(f"act_{number:043}")).status for number in range(23)]
    assert statuses == [403] * 20 + [429] * 3
    limited = await browser.sign_in("act_x")
    assert 0 < int(limited.headers["Retry-After"]) <= 60
    assert "Try again in" in limited.text
    assert (await browser.sign_in(site.tokens["viewer"])).status == 303


# -- sessions --------------------------------------------------------------------------------------------------------


async def test_a_session_id_from_before_signing_in_is_not_taken_over(site: Site) -> None:
    browser = site.browser()
    browser.cookies["credits"] = "A" * 43
    await browser.sign_in(site.tokens["owner"])
    first = browser.cookies["credits"]
    assert first != "A" * 43
    await browser.sign_in(site.tokens["viewer"])
    assert browser.cookies["credits"] != first
    old = site.browser()
    old.cookies["credits"] = first
    assert (await old.get("/console/session")).status == 303  # the browser is somebody else now


async def test_signing_out_ends_the_session_on_the_server_too(site: Site) -> None:
    browser = await signed_in(site, "owner")
    secret = browser.cookies["credits"]
    answer = await browser.send("/console/sign-out", {}, "/console/session")
    assert (answer.status, answer.where) == (303, "/console/sign-in")
    assert "credits" not in browser.cookies
    browser.cookies["credits"] = secret
    assert (await browser.get("/console/session")).status == 303
    assert (await browser.post("/console/sign-out", {})).where == "/console/sign-in"


async def test_signing_out_everywhere_ends_the_sessions_of_that_token_in_all_browsers(site: Site) -> None:
    one, two, other = await signed_in(site, "owner"), await signed_in(site, "owner"), await signed_in(site, "viewer")
    await one.send("/console/sign-out", {"whose": "mine"}, "/console/session")
    assert (await two.get("/console/session")).status == 303
    assert (await other.get("/console/session")).status == 200


async def test_an_administrator_signs_everybody_out_and_nobody_else_does(site: Site) -> None:
    admin, owner, viewer = [await signed_in(site, role) for role in ("admin", "owner", "viewer")]
    refused = await owner.send("/console/sign-out", {"whose": "everybody"}, "/console/session")
    assert refused.status == 403
    assert "Only an administrator" in refused.text
    assert (await viewer.get("/console/session")).status == 200
    assert "Sign everybody out" not in (await owner.get("/console/session")).text
    await admin.send("/console/sign-out", {"whose": "everybody"}, "/console/session")
    for browser in (admin, owner, viewer):
        assert (await browser.get("/console/session")).status == 303
    await signed_in(site, "owner")


async def test_a_revoked_token_is_signed_out_with_the_next_click(site: Site) -> None:
    browser = await signed_in(site, "owner")
    csrf = await csrf_of(browser)
    await site.ledger.tokens.revoke(site.ids["owner"])
    assert (await browser.get("/console/session")).where.startswith("/console/sign-in?next=")
    assert (await browser.post("/console/choose", {"csrf": csrf, "role": "0"})).status in (303, 422)


async def test_a_change_of_role_takes_effect_with_the_next_click(site: Site) -> None:
    browser = await signed_in(site, "admin")
    assert (await browser.get("/console")).where == "/console/orgs"
    client = site.ledger.client
    record = next(token for token, _ in await site.ledger.tokens.list() if token.id == site.ids["admin"])
    changed = msgspec.structs.replace(record, role="viewer", org="acme")
    await client.hset(keys.TOKENS, record.id, msgspec.json.encode(changed))  # type: ignore[misc]
    assert (await browser.get("/console")).where == "/console/orgs/acme"
    demoted = msgspec.structs.replace(record, role="scheduler")
    await client.hset(keys.TOKENS, record.id, msgspec.json.encode(demoted))  # type: ignore[misc]
    assert (await browser.get("/console/session")).status == 403


@pytest.mark.parametrize("cookie", ["", "é", "x" * 7000, "%00", '"', "a b", "../..", "\x80"])
async def test_a_cookie_that_is_none_is_nobodys(site: Site, cookie: str) -> None:
    browser = site.browser()
    browser.cookies["credits"] = cookie
    assert (await browser.get("/console/session")).status == 303
    assert (await browser.get("/console/sign-in")).status == 200
    assert (await browser.post("/console/sign-out", {"csrf": "x"})).status == 303


# -- forms of other sites --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("csrf", [None, "", "0" * 64, "é", "another"])
async def test_a_form_without_the_token_of_its_session_does_nothing(site: Site, csrf: str | None) -> None:
    browser = await signed_in(site, "owner")
    if csrf == "another":
        csrf = await csrf_of(await signed_in(site, "owner"))
    answer = await browser.post("/console/sign-out", {} if csrf is None else {"csrf": csrf})
    assert answer.status == 403
    assert "nothing was done" in answer.text
    assert (await browser.get("/console/session")).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "https://evil.example", "Sec_Fetch_Site": None},
        {"Origin": "null", "Sec_Fetch_Site": None},
        {"Origin": None, "Sec_Fetch_Site": None},
        {"Origin": None, "Sec_Fetch_Site": "same-site"},
        {"Origin": None, "Sec_Fetch_Site": "none"},
        {"Origin": "https://evil.example", "Sec_Fetch_Site": "same-origin"},
    ],
)
async def test_a_form_from_another_site_does_nothing_even_with_the_right_token(
    site: Site, headers: dict[str, str]
) -> None:
    browser = await signed_in(site, "owner")
    csrf = await csrf_of(browser)
    assert (await browser.post("/console/sign-out", {"csrf": csrf}, **headers)).status == 403
    assert (await browser.get("/console/session")).status == 200
    # Nor does it sign somebody in as somebody else.
    victim = site.browser()
    answer = await victim.post("/console/sign-in", {"token": site.tokens["viewer"]}, **headers)
    assert (answer.status, victim.cookies) == (403, {})


async def test_a_form_from_a_page_that_hides_its_address_is_taken_on_the_browsers_word(site: Site) -> None:
    browser = await signed_in(site, "owner")
    answer = await browser.post("/console/sign-out", {"csrf": await csrf_of(browser)}, Origin="null")
    assert answer.status == 303


async def test_bodies_are_bounded_and_of_one_kind(site: Site) -> None:
    browser = await signed_in(site, "owner")
    assert (await browser.post("/console/sign-out", b"a=" + b"b" * 70_000)).status == 413
    assert (await browser.post("/console/sign-out", b"{}", Content_Type="application/json")).status == 415
    assert (await browser.post("/console/sign-out", b"&".join([b"a=b"] * 300))).status == 400
    assert (await browser.post("/console/sign-out", b"a=%ff")).status == 400
    assert (await browser.post("/console/sign-out", b"\xff")).status == 400
    assert (await browser.get("/console/session")).status == 200


# -- where one goes on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "https:evil.example",
        "//evil.example/console", "/console/../../evil", "/console/%2e%2e/x", "/console/..", "/console\\evil",
        "/console/\\evil", "/consoleevil", "/console@evil.example", "/console.evil.example", "javascript:alert(1)",
        "/console/\tx", "/console/\r\nSet-Cookie: a=b", " /console/x", "/v1/orgs", "", "console", "/console/#x",
        "/console/sign-in", "/console/sign-out", "/console/oidc/start", "/console/" + "a" * 3000, "/console/é",
        "/%63onsole/../x", "/console/%0d%0aSet-Cookie:a=b/..", "data:text/html,x", "/console;@evil.example",
    ],
)  # fmt: skip
async def test_signing_in_leads_nowhere_but_to_pages_of_this_console(site: Site, text: str) -> None:
    answer = await site.browser().sign_in(site.tokens["owner"], text)
    assert (answer.status, answer.where) == (303, "/console")
    page = await site.browser().get(f"/console/sign-in?next={quote(text, safe='')}")
    assert 'name="next" value="/console"' in page.text


@pytest.mark.parametrize(
    "text",
    [
        "/console", "/console/", "/console?x=//evil.example", "/console/orgs/a%20b%2Fc/usage?from=2026-11-01&step=day",
        "/console/orgs/%3Cscript%3E", "/console/orgs/..a", "/console/orgs/a;b,c=d",
    ],
)  # fmt: skip
def test_pages_of_this_console_are_kept_as_they_are(text: str) -> None:
    assert safe_next(text) == text


# -- headers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("public_url", [None, "https://credits.example.com"])
async def test_over_https_browsers_are_told_to_stay_there(client: Client, public_url: str | None) -> None:
    async with console_site(client, Console(public_url=public_url)) as site:
        for path in ("/console/sign-in", "/console/nothing"):
            said = (await site.browser().get(path)).headers.get("Strict-Transport-Security")
            assert said == (None if public_url is None else "max-age=31536000")


@pytest.mark.parametrize("path", ["/console/sign-in", "/console/session", "/console/nothing", "/console"])
async def test_no_page_is_framed_kept_or_given_scripts_of_others(site: Site, path: str) -> None:
    answer = await (await signed_in(site, "owner")).get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] in ("same-origin", "no-referrer")


# -- the ledger is away ------------------------------------------------------------------------------------------------


async def test_while_the_ledger_is_away_pages_say_so_and_nobody_is_signed_out(
    make_server: Callable[..., ServerProcess],
) -> None:
    server = make_server(appendfsync="always")
    async with connect(server.url, None) as client, console_site(client) as site:
        browser = await signed_in(site, "admin")
        server.kill9()
        for path in ("/console/session", "/console/orgs", "/console/sign-in"):
            page = await browser.get(path)
            assert (page.status, page.headers["Retry-After"]) == (503, "1"), path
            assert page.headers["Content-Type"].startswith("text/html")
        stranger = await site.browser().sign_in(site.tokens["viewer"])
        assert (stranger.status, stranger.cookies) == (503, [])
        server.start()
        assert (await browser.get("/console/session")).status == 200
