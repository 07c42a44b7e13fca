"""Where an org's credits came from: its grants, and its journal."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from console.desk import Desk
from console.journal_words import in_words
from ledger.errors import InvalidRequest
from ledger.grant_list import EXPIRED, IN_FORCE, NOT_YET, USED_UP, grants_page
from ledger.journal import PARTS, JournalFilter, journal_page

_GRANTS_AT_ONCE: Final = 50
_ENTRIES_AT_ONCE: Final = 50
_STATES: Final = {
    IN_FORCE: ("in force", "ok"), NOT_YET: ("later", "warn"), USED_UP: ("used up", ""), EXPIRED: ("expired", ""),
}  # fmt: skip
_SOURCES: Final = {"provision": "Provisioned", "purchase": "Bought", "refund": "Given back", "gift": "Gift"}
_SHOW: Final = {
    "all": ("Everything", PARTS),
    "changes": ("Credits and settings", ("changes",)),
    "refusals": ("Refusals", ("refusals",)),
}


class HistoryPages:
    """Two pages."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def grants(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        ledger, org = self._desk.ledger, request.match_info["org"]
        cursor, problem = request.query.get("cursor") or None, ""
        try:
            grants, after = await grants_page(ledger, org, cursor, _GRANTS_AT_ONCE, newest_first=True)
        except InvalidRequest as error:
            problem, cursor = str(error), None
            grants, after = await grants_page(ledger, org, None, _GRANTS_AT_ONCE, newest_first=True)
        return self._desk.pages.render(
            request,
            "grants.html",
            status=422 if problem else 200,
            problem=problem,
            balance=await ledger.accounts.balance(org),
            grants=grants,
            states=_STATES,
            sources=_SOURCES,
            first_page="?" if cursor else None,
            next_page=f"?{urlencode({'cursor': after})}" if after else None,
        )

    async def journal(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        kind, cursor = request.query.get("show") or "all", request.query.get("cursor") or None
        problem = ""
        try:
            entries, after = await self._entries(request, kind, cursor)
        except InvalidRequest as error:
            problem, kind, cursor = str(error), "all", None
            entries, after = await self._entries(request, kind, None)
        return self._desk.pages.render(
            request,
            "journal.html",
            status=422 if problem else 200,
            problem=problem,
            entries=[in_words(entry) for entry in entries],
            kinds=[(f"?show={key}", title, key == kind) for key, (title, _) in _SHOW.items()],
            first_page=f"?show={kind}" if cursor else None,
            next_page=f"?{urlencode({'show': kind, 'cursor': after})}" if after else None,
        )

    async def _entries(
        self, request: web.Request, kind: str, cursor: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        if kind not in _SHOW:
            raise InvalidRequest(f"show: {kind!r:.40} is none of {', '.join(_SHOW)}")
        wanted = JournalFilter(newest_first=True, parts=_SHOW[kind][1])
        return await journal_page(self._desk.ledger, request.match_info["org"], cursor, _ENTRIES_AT_ONCE, wanted)
