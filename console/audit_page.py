"""The audit: what was changed that concerns no org, and who signed in, with name and address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from console.desk import Desk
from console.journal_words import in_words
from ledger.audit import CHANGES, SIGN_INS
from ledger.errors import InvalidRequest
from ledger.journal import JournalFilter, audit_page

_AT_ONCE: Final = 50
_KINDS: Final = {
    "all": ("Everything", frozenset()),
    "changes": ("Changes", frozenset(CHANGES)),
    "sign-ins": ("Signing in and out", frozenset(SIGN_INS)),
}


class AuditPage:
    """One page."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """`show`: all, changes or sign-ins; `cursor`. The newest first. Raises: LedgerUnavailable."""
        kind, cursor = request.query.get("show", "all"), request.query.get("cursor") or None
        kind = kind if kind in _KINDS else "all"
        wanted = JournalFilter(types=_KINDS[kind][1], newest_first=True)
        problem = ""
        try:
            entries, after = await audit_page(self._desk.ledger, cursor, _AT_ONCE, wanted)
        except InvalidRequest as error:
            problem, cursor = str(error), None
            entries, after = await audit_page(self._desk.ledger, None, _AT_ONCE, wanted)
        return self._desk.pages.render(
            request, "audit.html", status=422 if problem else 200, problem=problem,
            entries=[(in_words(entry), entry.get("from"), _details(entry)) for entry in entries],
            kinds=[(f"?show={key}", title, key == kind) for key, (title, _) in _KINDS.items()],
            first_page=f"?show={kind}" if cursor else None,
            next_page=f"?{urlencode({'show': kind, 'cursor': after})}" if after else None,
        )  # fmt: skip


def _details(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    # The address has a column of its own; of which org a token is, a journal has no need to say.
    org = [("org", str(entry["org"]))] if entry.get("org") else []
    return org + in_words({name: value for name, value in entry.items() if name != "from"}).more
