"""A console behind a real server, and a browser's worth of client: cookies, forms, and nothing followed unasked."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from cli.console import console_side
from config.console import Console
from config.settings import Settings
from console.oidc import Provider
from enforcer.app import build_app
from enforcer.failures import Failures
from ledger.connect import Client
from ledger.store import Ledger

T0 = 1_795_000_000_000_000
CSRF = re.compile(r'name="csrf" value="([^"]+)"')


@dataclass
class Answer:
    """What came back."""

    status: int
    text: str
    headers: Mapping[str, str]
    cookies: list[str]

    @property
    def where(self) -> str:
        return self.headers.get("Location", "")


@dataclass
class Browser:
    """Keeps cookies by name, sends what a browser would say of where a form is from."""

    url: str
    http: aiohttp.ClientSession
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, None, headers)

    async def post(self, path: str, fields: Mapping[str, str] | bytes, **headers: str) -> Answer:
        """A form; headers given as None are left out."""
        given = {"Origin": self.url, "Sec_Fetch_Site": "same-origin", **headers}
        body = fields if isinstance(fields, bytes) else urlencode(fields).encode()
        return await self.ask("POST", path, body, {"Content_Type": "application/x-www-form-urlencoded", **given})

    async def send(self, path: str, fields: Mapping[str, str], at: str = "") -> Answer:
        """A form as the page at `at` (else at `path`) gives it, with its hidden token."""
        page = await self.get(at or path)
        found = CSRF.search(page.text)
        assert found is not None, page.text
        return await self.post(path, {"csrf": found[1], **fields})

    async def sign_in(self, token: str, after: str = "/console") -> Answer:
        return await self.post("/console/sign-in", {"token": token, "next": after})

    async def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """A request, with the cookies."""
        given = {name.replace("_", "-"): value for name, value in (headers or {}).items() if value is not None}
        if self.cookies:
            given.setdefault("Cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        async with self.http.request(
            method, self.url + path, data=body, headers=given, allow_redirects=False
        ) as response:  # fmt: skip
            set_ = response.headers.getall("Set-Cookie", [])
            for line in set_:
                name, _, value = line.partition(";")[0].partition("=")
                if "Max-Age=0" in line or not value.strip('"'):
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = value
            return Answer(response.status, await response.text(), response.headers, set_)


@dataclass
class Site:
    """A console that is served."""

    url: str
    ledger: Ledger
    failures: Failures
    tokens: dict[str, str]
    ids: dict[str, str]
    http: aiohttp.ClientSession

    def browser(self) -> Browser:
        return Browser(self.url, self.http)


@asynccontextmanager
async def console_site(
    client: Client, console: Console | None = None, provider: Provider | None = None, clock: Any = None,
    port: int | None = None, **settings: Any,
) -> AsyncIterator[Site]:  # fmt: skip
    """The whole enforcer with its console; tokens of every role, `owner` and `viewer` of acme, `other` of globex."""
    ledger = Ledger(client, T0, clock)
    given = Settings(path=Path("settings.yaml"), console=console or Console())
    given = replace(given, **settings)
    failures = Failures()
    tokens, ids = {}, {}
    for role, org in (("admin", None), ("owner", "acme"), ("viewer", "acme"), ("scheduler", None), ("other", "globex")):
        record, tokens[role] = await ledger.tokens.create("owner" if role == "other" else role, org)
        ids[role] = record.id
    app = build_app(ledger, given, console=console_side(ledger, given, failures, provider), failures=failures)
    async with serving(app, port) as url, aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
        yield Site(url, ledger, failures, tokens, ids, http)


@asynccontextmanager
async def serving(app: web.Application, port: int | None = None) -> AsyncIterator[str]:
    """The URL of an application on a port of the loopback."""
    server = TestServer(app, port=port)
    await server.start_server()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.close()
