"""Where an org's credits came from: its grants, and its journal."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from console.desk import Desk, page_number
from console.journal_words import in_words
from ledger.errors import InvalidRequest
from ledger.grants_left import grants_left
from ledger.journal_newest import KINDS, newest_first

_GRANTS_AT_ONCE: Final = 50
_ENTRIES_AT_ONCE: Final = 50
_STATES: Final = {"active": "in force", "later": "later", "spent": "used up", "expired": "expired"}
_SOURCES: Final = {"provision": "Provisioned", "purchase": "Bought", "refund": "Given back", "gift": "Gift"}
_SHOW: Final = dict(zip(KINDS, ("Everything", "Credits and settings", "Refusals"), strict=True))


class HistoryPages:
    """Two pages."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def grants(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        org, number = request.match_info["org"], page_number(request)
        balance = await self._desk.ledger.accounts.balance(org)
        grants = await grants_left(self._desk.ledger, org)
        start = (number - 1) * _GRANTS_AT_ONCE
        return self._desk.pages.render(
            request,
            "grants.html",
            balance=balance,
            grants=grants[start : start + _GRANTS_AT_ONCE],
            count=len(grants),
            start=start,
            states=_STATES,
            sources=_SOURCES,
            first_page="?page=1" if number > 1 else None,
            next_page=f"?page={number + 1}" if len(grants) > start + _GRANTS_AT_ONCE else None,
        )

    async def journal(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        ledger, org = self._desk.ledger, request.match_info["org"]
        kind, cursor = request.query.get("show", "all"), request.query.get("cursor")
        problem = ""
        try:
            entries, after = await newest_first(ledger, org, kind, cursor, _ENTRIES_AT_ONCE)
        except InvalidRequest as error:
            problem, kind, cursor = str(error), "all", None
            entries, after = await newest_first(ledger, org, kind, None, _ENTRIES_AT_ONCE)
        return self._desk.pages.render(
            request,
            "journal.html",
            status=422 if problem else 200,
            problem=problem,
            entries=[in_words(entry) for entry in entries],
            kinds=[(f"?show={key}", title, key == kind) for key, title in _SHOW.items()],
            first_page=f"?show={kind}" if cursor else None,
            next_page=f"?{urlencode({'show': kind, 'cursor': after})}" if after else None,
        )
