"""Calls of the console behind the enforcer's guard: who is signed in, which role, which org, and how errors look."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from api.routes import Route
from config.settings import EnforcerSettings
from enforcer.access import ADMIN, OWNER, VIEWER, ConsoleSide, token_of
from enforcer.app import build_app
from enforcer.failures import Failures
from enforcer.metrics import AUTH_FAILURES
from exporter import metric_names
from ledger.connect import Client
from ledger.store import Ledger
from ledger.tokens import Token
from tests.integration.test_enforcer_http import SETTINGS, T0

Http = TestClient[Any, Any]


async def whose(request: web.Request) -> web.Response:
    return web.Response(text=token_of(request).who)


async def broken(request: web.Request) -> web.Response:
    raise RuntimeError("the page's own fault")


def error_page(request: web.Request, status: int, text: str) -> web.Response:
    return web.Response(text=f"<h1>{status}</h1>{text}", status=status, content_type="text/html")


@pytest.fixture
async def http(client: Client) -> AsyncIterator[Http]:
    """A console whose cookie is a token itself."""
    ledger = Ledger(client, T0)

    async def identify(request: web.Request) -> Token | None:
        return await ledger.tokens.authenticate(request.cookies.get("credits", ""))

    routes = [
        Route("GET", "/console/orgs/{org}", whose, (ADMIN, OWNER, VIEWER), "session"),
        Route("POST", "/console/orgs/{org}/budgets", whose, (ADMIN, OWNER), "session"),
        Route("GET", "/console/rates", whose, (ADMIN,), "session"),
        Route("GET", "/console/broken", broken, (ADMIN,), "session"),
    ]
    app = build_app(ledger, SETTINGS, console=ConsoleSide(identify, error_page, routes))
    async with TestClient(TestServer(app)) as http:
        http.tokens = {}  # type: ignore[attr-defined]
        for role, org in (("admin", None), ("owner", "acme"), ("viewer", "acme"), ("scheduler", None)):
            http.tokens[role] = (await ledger.tokens.create(role, org))[1]  # type: ignore[attr-defined]
        yield http


async def call(http: Http, method: str, path: str, role: str | None) -> tuple[int, str, str]:
    """(status, body, Location) with the cookie of a role."""
    tokens: dict[str, str] = http.tokens  # type: ignore[attr-defined]
    headers = {} if role is None else {"Cookie": f"credits={tokens[role]}"}
    async with http.request(method, path, headers=headers, allow_redirects=False) as response:
        return response.status, await response.text(), response.headers.get("Location", "")


@pytest.mark.parametrize("role", ["admin", "owner", "viewer", "scheduler"])
async def test_a_page_is_for_its_roles_and_the_org_of_the_token(http: Http, role: str) -> None:
    own = await call(http, "GET", "/console/orgs/acme", role)
    assert own[0] == (403 if role == "scheduler" else 200)
    assert role == "scheduler" or f"({role})" in own[1]
    assert (await call(http, "GET", "/console/orgs/globex", role))[0] == (200 if role == "admin" else 403)
    assert (await call(http, "GET", "/console/rates", role))[0] == (200 if role == "admin" else 403)
    posted = (await call(http, "POST", "/console/orgs/acme/budgets", role))[0]
    assert posted == (200 if role in ("admin", "owner") else 403)


async def test_who_is_not_signed_in_is_sent_to_do_so_and_comes_back(http: Http) -> None:
    status, _, where = await call(http, "GET", "/console/orgs/a%20b%2Fc?from=2026-11-01&x=//evil.example", None)
    assert status == 303
    assert where == "/console/sign-in?next=/console/orgs/a%2520b%252Fc?from%3D2026-11-01%26x%3D//evil.example"


async def test_a_form_of_somebody_who_is_signed_out_does_nothing_and_says_so(http: Http) -> None:
    status, page, _ = await call(http, "POST", "/console/orgs/acme/budgets", None)
    assert status == 403
    assert "Sign in" in page


async def test_a_bearer_token_is_no_session_and_a_session_no_bearer_token(http: Http) -> None:
    tokens: dict[str, str] = http.tokens  # type: ignore[attr-defined]
    headers = {"Authorization": f"Bearer {tokens['admin']}"}
    async with http.get("/console/rates", headers=headers, allow_redirects=False) as response:
        assert response.status == 303
    assert (await call(http, "GET", "/v1/orgs", "admin"))[0] == 401


async def test_errors_are_pages_below_console_and_problems_elsewhere(
    http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    for path, status in (("/console/broken", 500), ("/console/nothing", 404)):
        assert (await call(http, "GET", path, "admin"))[:2][0] == status
    assert "the page's own fault" in caplog.text
    status, page, _ = await call(http, "GET", "/console/broken", "admin")
    assert (status, page.startswith("<h1>500</h1>"), "own fault" in page) == (500, True, False)
    async with http.get("/v1/nothing") as response:
        assert (response.status, response.content_type) == (404, "application/problem+json")


async def test_made_up_tokens_are_limited_and_valid_ones_are_not(http: Http) -> None:
    tokens: dict[str, str] = http.tokens  # type: ignore[attr-defined]

    async def status(token: str, path: str = "/v1/orgs", method: str = "GET") -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {token}"}
        async with http.request(method, path, headers=headers) as response:
            if response.status >= 400:
                assert response.content_type == "application/problem+json"
            return response.status, response.headers.get("Retry-After", "")

    answers = [await status(f"act_made_up_{number}") for number in range(19)]
    answers.append(await status("act_x", "/k8s/admission/c", "POST"))
    assert {code for code, _ in answers} == {401}
    code, wait = await status("act_made_up_20")
    assert code == 429
    assert 1 <= int(wait) <= 60
    assert (await status("", "/k8s/admission/c/act_guess", "POST"))[0] == 429
    assert (await status(tokens["admin"]))[0] == 200
    async with http.get("/v1/orgs") as response:
        assert response.status == 401  # no token at all is no guess
    async with http.get("/metrics") as response:
        text = await response.text()
    assert f'{AUTH_FAILURES}{{outcome="refused"}} 20.0' in text
    assert f'{AUTH_FAILURES}{{outcome="limited"}} 2.0' in text
    assert metric_names.AUTH_FAILURES.name == AUTH_FAILURES


async def test_callers_behind_a_proxy_are_limited_one_by_one(client: Client) -> None:
    proxied = replace(SETTINGS, enforcer=EnforcerSettings(trusted_proxies=(ip_network("127.0.0.1/32"),)))
    app = build_app(Ledger(client, T0), proxied, failures=Failures(1))
    async with TestClient(TestServer(app)) as http:
        for address, expected in (("203.0.113.1", 401), ("203.0.113.1", 429), ("203.0.113.2", 401)):
            headers = {"Authorization": "Bearer act_x", "X-Forwarded-For": address}
            async with http.get("/v1/orgs", headers=headers) as response:
                assert response.status == expected


async def test_the_console_counts_the_same_failures(client: Client) -> None:
    failures = Failures(1)
    failures.failed("127.0.0.1")
    async with (
        TestClient(TestServer(build_app(Ledger(client, T0), SETTINGS, failures=failures))) as http,
        http.get("/v1/orgs", headers={"Authorization": "Bearer act_x"}) as response,
    ):
        assert response.status == 429


def test_failures_are_counted_by_address_and_forgotten_after_a_while() -> None:
    now = [100.0]
    failures = Failures(3, 60, lambda: now[0])
    for _ in range(3):
        assert failures.check("192.0.2.1") == 0
        failures.failed("192.0.2.1")
    assert failures.check("192.0.2.1") == 61
    assert failures.check("::ffff:192.0.2.1") == 61
    assert failures.check("192.0.2.2") == 0
    now[0] += 59.5
    assert failures.check("192.0.2.1") == 1
    now[0] += 0.5
    assert failures.check("192.0.2.1") == 0
    failures.failed("192.0.2.1")
    assert failures.check("192.0.2.1") == 0


def test_addresses_of_ipv6_count_by_their_64_bits() -> None:
    failures = Failures(2, 60, lambda: 0.0)
    failures.failed("2001:db8:1:2::1")
    failures.failed("2001:db8:1:2:ffff::9")
    assert failures.check("2001:db8:1:2:3:4:5:6") > 0
    assert failures.check("2001:db8:1:3::1") == 0


def test_the_table_of_addresses_is_bounded() -> None:
    failures = Failures(1, 60, lambda: 0.0)
    for number in range(30_000):
        failures.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert failures.size == 10_000
    assert failures.check("10.0.117.47") > 0
    assert failures.check("10.0.0.0") == 0
