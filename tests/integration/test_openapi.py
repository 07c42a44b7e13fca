"""The OpenAPI document: valid by the specification's own schema, whole, and true of what tests see; and its page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
from aiohttp.test_utils import TestClient, TestServer
from axe_playwright_python.base import AXE_FILE_PATH
from jsonschema import Draft202012Validator
from schemathesis.specs.openapi.definitions import OPENAPI_31

from api.routes import Route
from console.payments_api import PaymentsApi
from enforcer.app import ROUTES, build_app
from enforcer.openapi import TAGS
from ledger.connect import Client
from ledger.store import Ledger
from tests.console_browser import PHONE, WIDE, chromium, visitor
from tests.described import Described
from tests.integration.test_enforcer_http import SETTINGS, T0

Http = TestClient[Any, Any]


@pytest.fixture
async def http(client: Client) -> AsyncIterator[Http]:
    app = build_app(Ledger(client, T0), SETTINGS, more=PaymentsApi(None, lambda request: "").calls())
    async with TestClient(TestServer(app)) as http:
        yield http


@pytest.fixture
async def document(http: Http) -> dict[str, Any]:
    async with http.get("/openapi.json") as response:
        assert (response.status, response.content_type) == (200, "application/json")
        found: dict[str, Any] = await response.json()
        return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


async def test_the_document_is_valid_by_the_schema_of_openapi(document: dict[str, Any]) -> None:
    whole = jsonschema_rs.validator_for(OPENAPI_31)
    assert [error.message for error in whole.iter_errors(document)] == []
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    named = {name.rpartition("/")[2] for name in re.findall(r"#/components/schemas/[\w.]+", str(document))}
    assert named <= document["components"]["schemas"].keys()


async def test_every_call_is_described_and_declared(http: Http, document: dict[str, Any]) -> None:
    routes: list[Route] = http.server.app[ROUTES]  # type: ignore[attr-defined]
    expected = {f"{route.method} {route.path}" for route in routes if not route.path.startswith("/console")}
    assert {name for name, _ in operations(document)} == expected
    assert len(expected) >= 25
    undeclared = [f"{route.method} {route.path}" for route in routes if route.about is None and route.via == "token"]
    assert undeclared == []


async def test_each_call_says_what_it_does_takes_and_gives(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for name, operation in operations(document):
        assert operation["tags"][0] in TAGS, name
        assert re.fullmatch(r"[A-Z].{8,200}[.?]", operation["summary"]), (name, operation["summary"])
        assert any(status.startswith("2") for status in operation["responses"]), name
        is_guarded = bool(operation["security"])
        assert is_guarded == ("x-roles" in operation), name
        if is_guarded:
            assert {"401", "403", "429", "503"} <= operation["responses"].keys(), name
            assert set(operation["x-roles"]) <= {"admin", "owner", "viewer", "scheduler"}
        parts = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
        assert parts == set(re.findall(r"\{(\w+)\}", name)), name
        for status, said in operation["responses"].items():
            if int(status) >= 400:
                assert list(said["content"]) == ["application/problem+json"], (name, status)
        for one in operation["parameters"]:
            assert one["schema"].get("type") or one["schema"].get("enum"), (name, one["name"])
        if "requestBody" in operation:
            assert {"400", "413", "422"} <= operation["responses"].keys(), name


async def test_what_moves_credits_needs_a_key(document: dict[str, Any]) -> None:
    schemas, moves = document["components"]["schemas"], 0
    for name, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        body = schemas.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2], {})
        if name.startswith("POST") and "credits" in body.get("properties", {}):
            moves += 1
            needed = {one["name"] for one in operation["parameters"] if one["required"]}
            assert "Idempotency-Key" in needed, name
            assert "409" in operation["responses"], name
    assert moves >= 2


async def test_examples_are_as_their_schemas_say(document: dict[str, Any]) -> None:
    described = Described(document)
    for name, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in content:
                described.validate(content["schema"], content["example"], name)
        for one in operation["parameters"]:
            for example in one["schema"].get("examples", ()):
                described.validate(one["schema"], example, f"{name} {one['name']}")


class Page(HTMLParser):
    """What a page names and asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"] or ""] if "id" in given else []
        self.links += [given["href"] or ""] if tag == "a" else []
        self.loads += [tag] if tag in ("script", "img", "link", "iframe", "object") or "style" in given else []
        if tag not in ("meta", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_the_page_shows_every_call_and_loads_nothing(http: Http, document: dict[str, Any]) -> None:
    async with http.get("/docs") as response:
        assert (response.status, response.content_type) == (200, "text/html")
        policy = response.headers["Content-Security-Policy"]
        text = await response.text()
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    page = Page()
    page.feed(text)
    assert page.loads == []
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} - {"/openapi.json"} <= set(page.ids)
    for name, operation in operations(document):
        assert operation["operationId"] in page.ids, name
    assert "Authorization: Bearer $TOKEN" in text
    assert "Idempotency-Key: invoice-2026-11" in text


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", PHONE)])
async def test_the_page_is_usable_by_all_and_on_a_phone(http: Http, scheme: str, size: tuple[int, int]) -> None:
    async with (
        chromium() as browser,
        visitor(browser, str(http.make_url("/")), scheme=scheme, size=size) as page,
    ):
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        await page.goto("/docs")
        assert await page.evaluate("document.documentElement.scrollWidth") == size[0]
        await page.get_by_role("link", name="/v1/orgs/{org}/balance").click()
        assert page.url.endswith("#get_v1_orgs_org_balance")
        assert said == []  # the page's own policy refuses nothing of it
        await page.evaluate(AXE_FILE_PATH.read_text())
        found = await page.evaluate("axe.run()")
        assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found["violations"]] == []
