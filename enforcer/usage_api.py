"""Usage and statements over HTTP: JSON, CSV for spreadsheets, HTML to print."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

import msgspec
from aiohttp import web

from api import usage_shapes
from api.routes import Operation, Route
from api.types import AskedTime, Name, Zone, said
from enforcer.access import SEE, check_org, token_of
from enforcer.bodies import answer, paging, required_name, time
from enforcer.problems import Problem
from ledger.model import Kind
from ledger.statement import statement
from ledger.statement_html import statement_html
from ledger.steps import STEPS
from ledger.store import Ledger
from ledger.usage import usage, whole_period
from ledger.usage_report import GROUPS, UsageQuery

_KINDS: Final = tuple(kind.value for kind in Kind)
_PAGE: Final = 10_000
_AT_ONCE: Final = 2


class UsageParameters(msgspec.Struct):
    """Which sums; empty is as left out."""

    cluster: Name | None = None
    org: Name | None = None
    project: Name | None = None
    user: Name | None = None
    kind: Annotated[str, said(enum=list(_KINDS))] | None = None
    since: AskedTime | None = msgspec.field(default=None, name="from")
    until: AskedTime | None = msgspec.field(default=None, name="to")
    group_by: Annotated[str, said(description=f"One or more of {', '.join(GROUPS)}, by commas.")] = "org"
    step: Annotated[str, said(enum=list(STEPS))] | None = None
    timezone: Zone = "UTC"
    limit: Annotated[int, said(minimum=1, maximum=_PAGE)] = _PAGE
    cursor: Annotated[str, said(description="`next` of the page before.")] | None = None


class StatementParameters(msgspec.Struct):
    """Which month, in which zone."""

    month: Annotated[str, said(pattern=r"^[0-9]{4}-[0-9]{2}$", examples=["2026-11"])]
    timezone: Zone = "UTC"


class UsageApi:
    """What was used. Reads go on beside admissions, a few at a time, so that none of them waits for long."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def routes(self) -> list[Route]:
        csv = {"text/csv": "A header, all rows, and the totals."}
        used = Operation("usage", usage_shapes.Usage, query=UsageParameters, media=csv, problems=(404,))
        both = {**csv, "text/html": "A page to print."}
        stated = Operation("usage", usage_shapes.Statement, query=StatementParameters, media=both)
        return [
            Route("GET", "/v1/usage", self.usage, SEE, about=used),
            Route("GET", "/v1/orgs/{org}/statement", self.statement, SEE, about=stated),
        ]

    async def usage(self, request: web.Request) -> web.Response:
        """Sums of a period; a token of an org sees its own org only."""
        asked = _parameters(request)
        token = token_of(request)
        org = asked.get("org") or token.org
        if org is not None:
            check_org(token, org)
        for field in ("cluster", "org", "project", "user"):
            required_name(field, asked.get(field, "-"))
        if asked.get("kind") not in (None, *_KINDS):
            raise Problem(422, "invalid", f"kind: {asked['kind']!r:.40} is none of {', '.join(_KINDS)}")
        limit, cursor = paging(request, _PAGE) if "limit" in asked else (_PAGE, asked.get("cursor"))
        since, until = time("from", asked.get("from")), time("to", asked.get("to"))
        whole = await whole_period(self._ledger) if since is None or until is None else (since, until)
        names = asked.get("group_by", "org")
        query = UsageQuery(
            from_us=whole[0] if since is None else since,
            to_us=whole[1] if until is None else until,
            org=org,
            cluster=asked.get("cluster"),
            project=asked.get("project"),
            user=asked.get("user"),
            kind=asked.get("kind"),
            group_by=tuple(dict.fromkeys(part.strip() for part in names.split(","))),
            step=asked.get("step"),
            timezone=asked.get("timezone", "UTC"),
        )
        async with self._turns:
            report = await usage(self._ledger, query)
        if _wants(request, "text/csv", "application/json") == "text/csv":
            return _file("".join(report.csv()), "usage.csv")
        return answer(report.shape(limit, cursor))

    async def statement(self, request: web.Request) -> web.Response:
        """What an org had, got and used in a month, such as `month=2026-11`."""
        asked = _parameters(request)
        if "month" not in asked:
            raise Problem(422, "invalid", "month: expected one like 2026-11")
        async with self._turns:
            found = await statement(
                self._ledger, request.match_info["org"], asked["month"], asked.get("timezone", "UTC")
            )
        kind = _wants(request, "text/csv", "text/html", "application/json")
        if kind == "text/csv":
            return _file("".join(found.csv()), f"statement-{found.month}.csv")
        if kind == "text/html":
            policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
            return web.Response(text=statement_html(found), content_type="text/html", headers=policy)
        return answer(found.shape())


def _parameters(request: web.Request) -> dict[str, str]:
    """The query's parameters, empty ones left out."""
    return {name: value for name, value in request.query.items() if value}


def _wants(request: web.Request, *kinds: str) -> str:
    """The media type that the caller asks for first; JSON where it has no wish."""
    for part in request.headers.get("Accept", "").split(","):
        kind = part.partition(";")[0].strip().lower()
        if kind in kinds:
            return kind
    return "application/json"


def _file(content: str, name: str) -> web.Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(text=content, content_type="text/csv", charset="utf-8", headers=headers)
