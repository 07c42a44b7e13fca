"""Signing in through a provider: there and back, who gets which role, and everything a provider can do wrong."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from joserfc.jwk import ECKey, RSAKey

from config.console import Console, Oidc, OidcRule
from config.values import Secret
from console.oidc import Provider
from ledger.connect import Client
from tests.servers import free_port
from tests.sign_in_lab import Answer, Browser, Site, console_site
from tests.standins.oidc import CLIENT_ID, CLIENT_SECRET, OidcProvider, oidc_provider

PUBLIC = "http://127.0.0.1:65000"
RULES = (
    OidcRule(claim="groups", value="credits-admins", role="admin"),
    OidcRule(claim="groups", value="org-*-owners", role="owner", org="{1}"),
    OidcRule(claim="groups", value="staff-*", role="viewer", org="{1}"),
    OidcRule(claim="department", value="*", role="viewer", org="{1}"),
)
PEOPLE: dict[str, dict[str, Any]] = {
    "ann": {"email": "ann@acme.com", "email_verified": True, "groups": ["org-acme-owners"], "department": "acme"},
    "root": {"email": "root@x.com", "email_verified": True, "groups": ["credits-admins"], "department": []},
    "bob": {"email": "bob@x.com", "email_verified": True, "groups": ["staff-acme", "org-globex-owners"]},
    "eve": {"email": "token:0123 (admin)", "groups": ["elsewhere"], "department": []},
}


class Lab:
    """A site and its provider."""

    def __init__(self, site: Site, idp: OidcProvider) -> None:
        self.site = site
        self.idp = idp
        self.http = site.http

    async def at_provider(self, browser: Browser, login: str, after: str = "/console/session") -> str:
        """Goes to the provider and signs in there; gives the path that it sends back to."""
        start = await browser.get(f"/console/oidc/start?next={after}")
        assert start.status == 303, start.text
        async with self.http.get(f"{start.where}&login={login}", allow_redirects=False) as response:
            assert response.status == 302, await response.text()
            back = urlsplit(response.headers["Location"])
        return f"{back.path}?{back.query}"

    async def sign_in(self, login: str, after: str = "/console/session") -> tuple[Browser, Answer]:
        browser = self.site.browser()
        return browser, await browser.get(await self.at_provider(browser, login, after))


def settings_of(idp: OidcProvider, **changes: Any) -> Oidc:
    given: dict[str, Any] = {
        "issuer": idp.url, "client_id": CLIENT_ID, "client_secret": Secret(CLIENT_SECRET), "rules": RULES,
        "timeout_seconds": 0.5, "button": "Sign in with the institute", **changes,
    }  # fmt: skip
    return Oidc(**given)


@asynccontextmanager
async def lab_of(client: Client, **changes: Any) -> AsyncIterator[Lab]:
    idp = OidcProvider(f"{PUBLIC}/console/oidc/callback", dict(PEOPLE))
    async with oidc_provider(idp), aiohttp.ClientSession() as http:
        settings = settings_of(idp, **changes)
        provider = Provider(settings, http, _now, idp.redirect_uri)
        async with console_site(client, Console(public_url=PUBLIC, oidc=settings), provider) as site:
            yield Lab(site, idp)


def _now() -> int:
    import time

    return time.time_ns() // 1000


@pytest.fixture
async def lab(client: Client) -> AsyncIterator[Lab]:
    async with lab_of(client) as lab:
        yield lab


# -- there and back --------------------------------------------------------------------------------------------------


async def test_an_owner_signs_in_and_goes_on_where_they_wanted_to(lab: Lab) -> None:
    page = await lab.site.browser().get("/console/sign-in?next=/console/session?a=b;c%26d")
    assert "Sign in with the institute" in page.text
    browser, answer = await lab.sign_in("ann", "/console/session?a=b;c")
    assert (answer.status, answer.where) == (303, "/console/session?a=b;c"), answer.text
    session = (await browser.get(answer.where)).text
    assert "sso:ann@acme.com (owner)" in session
    assert (await browser.get("/console")).where == "/console/orgs/acme"
    assert list(browser.cookies) == ["credits"]  # what belonged to the sign-in is gone


async def test_what_is_asked_of_the_provider(lab: Lab) -> None:
    browser = lab.site.browser()
    start = await browser.get("/console/oidc/start")
    asked = parse_qs(urlsplit(start.where).query)
    assert asked["tenant"] == ["1"]  # the provider's own part of its address
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["scope"] == ["openid profile email"]
    kept = browser.cookies["credits-oidc"]
    assert all(part not in kept for name in ("state", "nonce", "code_challenge") for part in asked[name])
    (cookie,) = start.cookies
    assert {"HttpOnly", "SameSite=Lax", "Max-Age=600"} <= set(cookie.split("; "))


async def test_an_administrator_is_one_by_group(lab: Lab) -> None:
    browser, answer = await lab.sign_in("root")
    assert answer.status == 303
    assert (await browser.get("/console")).where == "/console/orgs"


async def test_somebody_of_several_orgs_chooses_and_may_choose_again(lab: Lab) -> None:
    browser, answer = await lab.sign_in("bob")
    assert answer.where == "/console/choose?next=/console/session"
    assert (await browser.get("/console")).where.startswith("/console/sign-in")  # nobody yet
    assert (await browser.get("/console/sign-in?next=/console/session")).where == answer.where
    page = await browser.get(answer.where)
    assert "Viewer of <bdi>acme</bdi>" in page.text
    assert "Owner of <bdi>globex</bdi>" in page.text
    before = browser.cookies["credits"]
    chosen = await browser.send("/console/choose", {"role": "1", "next": "/console/session"}, answer.where)
    assert (chosen.status, chosen.where) == (303, "/console/session")
    assert browser.cookies["credits"] != before
    assert (await browser.get("/console")).where == "/console/orgs/acme"
    for wrong in ("2", "-1", "x", "", "1000", "²"):
        assert (await browser.send("/console/choose", {"role": wrong}, "/console/choose")).status == 422
    await browser.send("/console/choose", {"role": "0"}, "/console/choose")
    assert (await browser.get("/console")).where == "/console/orgs/globex"
    browser.cookies["credits"] = before
    assert (await browser.get("/console/choose")).where == "/console/sign-in"


async def test_who_has_no_role_is_told_so_and_is_not_signed_in(lab: Lab) -> None:
    browser, answer = await lab.sign_in("eve")
    assert answer.status == 403
    assert "gives you a role here" in answer.text
    assert "sub-eve" in answer.text  # an address that nobody verified is not a name
    assert browser.cookies == {}


async def test_signing_out_everywhere_ends_all_sessions_of_the_person(lab: Lab) -> None:
    (one, _), (two, _), (other, _) = [await lab.sign_in(name) for name in ("ann", "ann", "root")]
    await one.send("/console/sign-out", {"whose": "mine"}, "/console/session")
    assert (await two.get("/console/session")).status == 303
    assert (await other.get("/console/session")).status == 200


async def test_claims_that_only_userinfo_has_count(client: Client) -> None:
    async with lab_of(client) as lab:
        lab.idp.people["bob"] = {"email": "bob@x.com", "email_verified": True, "groups": []}
        lab.idp.userinfo = {"department": "acme", "groups": ["credits-admins"], "email": "root@x.com"}
        browser, answer = await lab.sign_in("bob")
        assert answer.status == 303, answer.text
        session = (await browser.get("/console/session")).text
        assert "sso:bob@x.com (viewer)" in session  # what the signed token says goes before userinfo
        assert "/userinfo" in lab.idp.asked


async def test_keys_that_the_provider_changed_are_fetched_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.sign_in("ann")
    lab.idp.rotate()
    monkeypatch.setattr("console.oidc._KEYS_AGAIN_SECONDS", 0.0)
    assert (await lab.sign_in("ann"))[1].status == 303
    assert lab.idp.asked.count("/keys") == 2


async def test_unknown_keys_do_not_have_the_provider_asked_at_everybodys_wish(lab: Lab) -> None:
    await lab.sign_in("ann")
    lab.idp.fault = "unknown kid"
    for _ in range(3):
        assert (await lab.sign_in("ann"))[1].status == 502
    assert lab.idp.asked.count("/keys") == 1


@pytest.mark.parametrize("algorithm", ["ES256", "PS256", "RS512"])
async def test_other_algorithms_that_the_provider_says_it_uses(lab: Lab, algorithm: str) -> None:
    if algorithm == "ES256":
        lab.idp.keys = [ECKey.generate_key("P-256", {"kid": "ec", "use": "sig"})]
    lab.idp.algorithms = (algorithm,)
    assert (await lab.sign_in("ann"))[1].status == 303


@pytest.mark.filterwarnings("ignore:Key size")
async def test_a_weak_key_is_none(lab: Lab) -> None:
    lab.idp.keys = [RSAKey.generate_key(1024, {"kid": "weak", "use": "sig"})]
    _, answer = await lab.sign_in("ann")
    assert "does not publish" in answer.text


async def test_a_token_without_a_key_id_is_checked_by_all_keys(lab: Lab) -> None:
    lab.idp.fault = "no kid"
    assert (await lab.sign_in("ann"))[1].status == 303


# -- what a provider can do wrong --------------------------------------------------------------------------------------

WRONG = {
    "wrong nonce": "another sign-in", "no nonce": "another sign-in", "wrong aud": "another service",
    "several aud without azp": "given to another service", "azp of another": "given to another service",
    "wrong iss": "another issuer", "expired": "expired", "exp is text": "exp is no time",
    "exp is no number": "", "no exp": "exp is no time", "from the future": "from the future",
    "not yet": "from the future", "no sub": "whom it is about", "sub is a number": "whom it is about",
    "alg none": "not accepted", "HS256 with the public key": "not accepted",
    "unknown kid": "does not publish", "another key under this kid": "signature is wrong",
    "key in the header": "cannot be read", "PS256 unannounced": "does not say it uses",
    "changed after signing": "signature is wrong", "no token": "cannot be read", "mix-up": "another provider",
    "no iss": "does not say whose it is", "userinfo of another": "about somebody else",
    "500 token": "answers 500", "500 keys": "answers 500", "500 userinfo": "answers 500",
    "slow token": "does not answer within 0.5 s", "slow keys": "does not answer within 0.5 s",
    "huge token": "larger than", "huge keys": "larger than", "huge userinfo": "larger than",
    "nonsense token": "is not what it has to be", "nonsense keys": "cannot be read",
    "redirect token": "answers 302", "redirect keys": "answers 302",
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
async def test_nobody_is_signed_in_by_an_answer_that_is_wrong(lab: Lab, fault: str) -> None:
    if "userinfo" in fault:
        lab.idp.people["ann"] = {"groups": []}
    lab.idp.fault = fault
    browser, answer = await lab.sign_in("ann")
    assert answer.status == 502, answer.text
    assert WRONG[fault] in answer.text
    assert "You can sign in with a token all the same" in answer.text
    assert "credits" not in browser.cookies
    assert (await browser.sign_in(lab.site.tokens["owner"])).status == 303


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("500 openid-configuration", "answers 500"),
        ("slow openid-configuration", "does not answer within 0.5 s"),
        ("huge openid-configuration", "larger than"),
        ("nonsense openid-configuration", "is not what it has to be"),
        ("redirect openid-configuration", "answers 302"),
        ("other issuer in discovery", "have to be the same"),
    ],
)
async def test_a_provider_that_cannot_be_used_is_said_and_tokens_go_on(lab: Lab, fault: str, said: str) -> None:
    lab.idp.fault = fault
    browser = lab.site.browser()
    answer = await browser.get("/console/oidc/start")
    assert answer.status == 502
    assert said in answer.text
    assert (await browser.get("/console/sign-in")).status == 200
    assert (await browser.sign_in(lab.site.tokens["owner"])).status == 303
    lab.idp.fault = ""
    assert (await browser.get("/console/oidc/start")).status == 303  # nothing of it was kept


async def test_a_provider_that_is_not_there(client: Client) -> None:
    async with lab_of(client, issuer=f"http://127.0.0.1:{free_port()}") as lab:
        answer = await lab.site.browser().get("/console/oidc/start")
        assert answer.status == 502
        assert "cannot be reached" in answer.text


async def test_what_the_provider_says_is_shown_as_text(lab: Lab) -> None:
    lab.idp.fault = "denied"
    _, answer = await lab.sign_in("ann")
    assert answer.status == 403
    assert "access_denied" in answer.text
    assert "&lt;b&gt;Not&lt;/b&gt; today" in answer.text


async def test_a_wrong_client_secret_is_the_providers_word(client: Client) -> None:
    async with lab_of(client, client_secret=Secret("wrong")) as lab:
        _, answer = await lab.sign_in("ann")
        assert answer.status == 502
        assert "invalid_client" in answer.text


# -- what somebody else can do -----------------------------------------------------------------------------------------


async def test_an_answer_counts_once_and_in_the_browser_that_asked(lab: Lab) -> None:
    browser = lab.site.browser()
    back = await lab.at_provider(browser, "ann")
    other = lab.site.browser()
    assert (await other.get(back)).status == 400  # a link with somebody else's code signs nobody in
    assert other.cookies == {}
    await other.get("/console/oidc/start")
    assert (await other.get(back)).status == 400
    kept = browser.cookies["credits-oidc"]
    assert (await browser.get(back)).status == 303
    again = await browser.get(back)
    assert (again.status, "Start again" in again.text) == (400, True)
    browser.cookies["credits-oidc"] = kept
    replayed = await browser.get(back)
    assert replayed.status == 502
    assert "The code is not known" in replayed.text


@pytest.mark.parametrize(
    "query",
    ["", "code=x", "state=x", "state=%ff&code=x", "state={state}", "state={state}&code=a&code=b", "state={state}&code=",
     "state={state}&state={state}&code=x", "state={state}&error=<script>&error_description=<script>",
     "state={state}&code=x&iss=&iss=", "state={state}&error="],
)  # fmt: skip
async def test_answers_that_are_none_are_refused_in_words(lab: Lab, query: str) -> None:
    browser = lab.site.browser()
    start = await browser.get("/console/oidc/start")
    state = parse_qs(urlsplit(start.where).query)["state"][0]
    answer = await browser.get(f"/console/oidc/callback?{query.replace('{state}', state)}")
    assert answer.status in (400, 403, 502)
    assert 'role="alert"' in answer.text
    assert "<script>" not in answer.text
    assert "credits" not in browser.cookies


@pytest.mark.parametrize("cookie", ["", "x", "x" * 43, "é" * 43, "A" * 43 + "//evil.example", '"', "%00" * 50])
async def test_cookies_of_a_sign_in_that_never_was(lab: Lab, cookie: str) -> None:
    browser = lab.site.browser()
    browser.cookies["credits-oidc"] = cookie
    answer = await browser.get("/console/oidc/callback?state=x&code=y")
    assert answer.status == 400
    assert "evil" not in answer.text


async def test_failing_at_it_is_limited(lab: Lab) -> None:
    lab.idp.fault = "wrong nonce"
    statuses = [(await lab.sign_in("ann"))[1].status for _ in range(22)]
    assert statuses == [502] * 20 + [429] * 2


async def test_several_sign_ins_at_once_do_not_get_mixed_up(lab: Lab) -> None:
    names = list(itertools.islice(itertools.cycle(["ann", "root"]), 8))
    done = await asyncio.gather(*(lab.sign_in(name) for name in names))
    for name, (browser, _) in zip(names, done, strict=True):
        assert f"sso:{name}@" in (await browser.get("/console/session")).text
