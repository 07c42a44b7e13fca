"""Every call as everybody, for the own org, another and one that is not there: as docs/access.md says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from api.routes import PART, Route
from cli.access_table import OPEN, concerns_org, every_route, render
from enforcer.failures import Failures
from tests.api_lab import HIDDEN, LiveApi, live_api

ROOT = Path(__file__).parents[2]
ROUTES = every_route()
GUARDED = [route for route in ROUTES if route.roles is not None]
CALLERS: dict[str, tuple[str, str | None]] = {
    "admin": ("admin", None), "owner": ("owner", "acme"), "viewer": ("viewer", "acme"),
    "scheduler": ("scheduler", None), "scheduler of acme": ("scheduler", "acme"), "other": ("owner", "globex"),
}  # fmt: skip
NOBODY = ("revoked", "expired", "unknown", None)
FILLED = {"project": "vision", "user": "ann", "order": "o1", "cluster": "default", "token": "x", "id": "0" * 16}
ABOUT_SOMETHING = (
    "POST /v1/orgs/{org}/corrections", "GET /v1/orgs/{org}/budgets/{project}/{user}", "DELETE /v1/tokens/{token}",
    "DELETE /v1/orgs/{org}/budgets/{project}", "DELETE /v1/orgs/{org}/budgets/{project}/{user}",
    "GET /v1/orgs/{org}/purchases/{order}", "GET /v1/orgs/{org}/budgets/{project}",
    "POST /v1/orgs/{org}/notices/test",
)  # fmt: skip
"""Calls about a thing that has to be there: a grant, a budget, a mail server."""
WRONG_ROLE, WRONG_ORG = "may not do this", "is for org"


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: str
    location: str


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    with pytest.MonkeyPatch.context() as patch, live_api(tmp_path_factory.mktemp("api")) as api:
        patch.setattr(Failures, "check", lambda *_: 0)  # tokens that are none are shown by the hundred
        yield api


@pytest.fixture
async def http(api: LiveApi) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(api.url, cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield http


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


async def ask(http: aiohttp.ClientSession, api: LiveApi, route: Route, org: str, caller: str | None) -> Answer:
    """A call as its description shows it, about `org`."""
    about = route.about
    headers = {"Idempotency-Key": f"{caller}-{org}-{route.path}"[:200].replace(" ", "-")}
    if route.via == "session":
        headers["Cookie"] = f"credits={api.cookies.get(caller or '', 'none')}"
    elif caller is not None:
        headers["Authorization"] = f"Bearer {api.tokens.get(caller, 'act_unknown')}"
    parts = {**FILLED, "org": org, "hold_id": f"{org}.01"}
    path = PART.sub(lambda part: parts[part[1]], route.path)
    body: Any = None
    if about is not None and about.body is not None:
        body = dict(about.example or {})
        if "org" in body:
            body["org"] = org
        if route.path.endswith("/slurm"):
            body = {"scheduler": "slurm", "cluster": "default", "account": f"{org}-vision", "user": "ann"}
    if about is not None and about.query is not None and "org" in about.query.__struct_fields__:
        path += f"?org={org}"
    if about is not None and about.query is not None and "month" in about.query.__struct_fields__:
        path += "?month=2026-11"
    data = None if body is None else json.dumps(body)
    async with http.request(route.method, path, data=data, headers=headers, allow_redirects=False) as response:
        return Answer(response.status, await response.text(), response.headers.get("Location", ""))


def is_denied(answer: Answer) -> bool:
    return answer.status == 403 and (WRONG_ROLE in answer.body or WRONG_ORG in answer.body)


@pytest.mark.parametrize("route", GUARDED, ids=name_of)
async def test_each_call_is_for_its_roles_and_the_own_org(
    api: LiveApi, http: aiohttp.ClientSession, route: Route
) -> None:
    orgs = ("acme", "globex", "nobody-there") if concerns_org(route) else ("acme",)
    for caller, (role, bound) in CALLERS.items():
        for org in orgs:
            answer = await ask(http, api, route, org, caller)
            is_allowed = role in (route.roles or ()) and (len(orgs) == 1 or bound in (None, org) or lists(route))
            where = f"{caller}, org {org}: {answer.status} {answer.body[:300]}"
            assert is_denied(answer) == (not is_allowed), where
            assert answer.status not in (401, 429), where
            assert "sign-in" not in answer.location, where
            assert "not signed in" not in answer.body, where
            assert answer.status < 500, where
            if bound == "acme":
                assert not [secret for secret in HIDDEN if secret in answer.body], where


@pytest.mark.parametrize("route", [route for route in GUARDED if route.via == "token"], ids=name_of)
async def test_each_call_does_what_its_example_asks(api: LiveApi, http: aiohttp.ClientSession, route: Route) -> None:
    caller = next(caller for caller, (role, _) in CALLERS.items() if role in (route.roles or ()))
    answer = await ask(http, api, route, "acme", caller)
    assert answer.status in (200, 201, 202, 204) or name_of(route) in ABOUT_SOMETHING, answer


@pytest.mark.parametrize("route", [one for one in GUARDED if (one.via, one.method) == ("session", "POST")], ids=name_of)
async def test_a_form_without_its_secret_does_nothing(api: LiveApi, http: aiohttp.ClientSession, route: Route) -> None:
    for caller, (role, bound) in CALLERS.items():
        if role in (route.roles or ()):
            answer = await ask(http, api, route, bound or "acme", caller)
            assert answer.status == 403, (caller, answer)
            assert not is_denied(answer), (caller, answer)


@pytest.mark.parametrize("route", GUARDED, ids=name_of)
async def test_nobody_gets_nothing(api: LiveApi, http: aiohttp.ClientSession, route: Route) -> None:
    for caller in NOBODY:
        answers = {org: await ask(http, api, route, org, caller) for org in ("acme", "globex", "nobody-there")}
        for org, answer in answers.items():
            where = f"{caller}, org {org}: {answer}"
            if route.via == "session" and route.method == "GET":
                assert answer.status == 303, where
                assert answer.location.startswith("/console/sign-in?next=/"), where
            else:
                assert answer.status == (403 if route.via == "session" else 401), where
            assert not [secret for secret in HIDDEN if secret in answer.body], where
        assert len({answer.body.replace(org, "") for org, answer in answers.items()}) == 1


@pytest.mark.parametrize("route", [route for route in GUARDED if concerns_org(route)], ids=name_of)
async def test_what_is_refused_is_refused_alike_whether_it_is_there_or_not(
    api: LiveApi, http: aiohttp.ClientSession, route: Route
) -> None:
    for caller, (_, bound) in CALLERS.items():
        if bound != "acme" or lists(route):
            continue
        there, absent = [await ask(http, api, route, org, caller) for org in ("globex", "nobody-there")]
        assert there.status == absent.status == 403
        assert without_path(there, "globex") == without_path(absent, "nobody-there")


def without_path(answer: Answer, org: str) -> str:
    """A page may repeat the path that was asked for, and has a secret of its own in each form."""
    return re.sub(r'value="[^"]*"', "", answer.body).replace(org, "")


def lists(route: Route) -> bool:
    """Whether it answers about the caller's own org whatever is asked."""
    return route.path == "/v1/orgs"


def test_every_route_has_roles_or_is_known_to_be_open() -> None:
    without = {route.path for route in ROUTES if route.roles is None}
    assert without == OPEN.keys()
    assert len(GUARDED) >= 40


def test_the_table_is_up_to_date() -> None:
    page = (ROOT / "docs/access.md").read_text(encoding="utf-8")
    assert render(ROUTES) == page, "run: python -m cli.access_table docs/access.md"


async def test_an_org_sees_its_own_only_in_lists_and_sums(api: LiveApi, http: aiohttp.ClientSession) -> None:
    headers = {"Authorization": f"Bearer {api.tokens['viewer']}"}
    for path in ("/v1/orgs", "/v1/usage", "/v1/orgs?limit=1000&cursor=a", "/v1/usage?group_by=org,project,user"):
        async with http.get(path, headers=headers) as response:
            assert response.status == 200
            assert "globex" not in await response.text()
