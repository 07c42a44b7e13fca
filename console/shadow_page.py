"""The shadow report: what shadow mode let through and would have refused, before anybody is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from console.desk import Desk
from console.periods import CUSTOM, PERIODS, Period, read_period
from ledger import csv_text
from ledger.errors import InvalidRequest
from ledger.names import is_name

_ROWS_MAX: Final = 500
_READ_AT_ONCE: Final = 16
_COLUMNS: Final = ("org", "project", "user", "preset", "app", "code", "count", "required", "first_at", "last_at")
CODES: Final = {
    "no_credits": "no credits", "budget_exhausted": "budget used up", "unknown_org": "unknown org",
    "unpriced": "no rate", "ledger_unavailable": "ledger away",
}  # fmt: skip


class ShadowPage:
    """One page, and the same as CSV."""

    def __init__(self, desk: Desk, mode: str, clusters: Mapping[str, str]) -> None:
        """`mode`: of admission, by the settings; `clusters`: those with another one."""
        self._desk = desk
        self._mode = mode
        self._clusters = clusters

    async def page(self, request: web.Request) -> web.Response:
        """`org`: only this one; `period`, `from`, `to`. Raises: LedgerUnavailable."""
        zone, now = self._desk.pages.zone(request), self._desk.ledger.clock()
        org, problem = request.query.get("org", "").strip(), ""
        try:
            period = read_period(request.query, zone, now, "30d")
            if org and not is_name(org):
                raise InvalidRequest("org: this cannot be the name of an org")
        except InvalidRequest as error:
            problem, org, period = str(error), "", read_period({}, zone, now, "30d")
        rows = await self._rows(org, period)
        if "csv" in request.query and not problem:
            about = {"Content-Disposition": 'attachment; filename="shadow.csv"', "Cache-Control": "no-store"}
            text = "".join(csv_text.lines(_COLUMNS, rows))
            return web.Response(text=text, content_type="text/csv", headers=about)
        asked = {**({"org": org} if org else {}), **period.query()}
        return self._desk.pages.render(
            request, "shadow.html", status=422 if problem else 200, problem=problem, rows=rows[:_ROWS_MAX],
            count=len(rows), total=sum(row["count"] for row in rows), org_asked=org, period=period, codes=CODES,
            periods=[*PERIODS, (CUSTOM, "From – to")], csv_url=f"?{urlencode({**asked, 'csv': '1'})}", mode=self._mode,
            clusters=self._clusters,
        )  # fmt: skip

    async def _rows(self, org: str, period: Period) -> list[dict[str, Any]]:
        """The most frequent first; without an org, of all, and of those that the ledger does not know."""
        asked: list[str | None] = [org] if org else [*await self._desk.ledger.accounts.orgs(), None]
        report, found = self._desk.ledger.refusals.shadow_report, []
        async with self._desk.turns:
            for begin in range(0, len(asked), _READ_AT_ONCE):
                part = asked[begin : begin + _READ_AT_ONCE]
                read = await asyncio.gather(*(report(name, period.since_us, period.until_us) for name in part))
                found += [row for rows in read for row in rows]
        return sorted(found, key=lambda row: (-row["count"], *(row[name] for name in _COLUMNS[:6])))
