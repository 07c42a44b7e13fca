"""An org's journal from its newest entry back, page by page."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ledger import keys
from ledger.connect import again
from ledger.errors import InvalidRequest
from ledger.lua import text
from ledger.store import Ledger

KINDS: Final = ("all", "changes", "refusals")
"""Everything; what moved credits or changed something; what was refused or let through by exception."""
_ID_MAX: Final = 40


async def newest_first(
    ledger: Ledger, org: str, kind: str, cursor: str | None, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Up to `limit` entries older than `cursor`, the newest first, and the cursor of what is older still.

    Raises: UnknownOrg; InvalidRequest for a kind or a cursor that is none; LedgerUnavailable.
    """
    if kind not in KINDS:
        raise InvalidRequest(f"show: {kind!r:.40} is none of {', '.join(KINDS)}")
    moved, refused = _read_cursor(cursor)
    await ledger.accounts.balance(org)  # says it when there is no such org
    entries = [] if kind == "refusals" else await _entries(ledger, org, moved, limit + 1)
    refusals = [] if kind == "changes" else await ledger.refusals.latest(org, limit + 1, refused)
    both = [(True, entry) for entry in entries] + [(False, entry) for entry in refusals]
    both.sort(key=lambda item: (*(int(part) for part in item[1]["id"].split("-")), item[0]), reverse=True)
    page = both[:limit]
    for is_moved, entry in page:
        if is_moved:
            moved = entry["id"]
        else:
            refused = entry["id"]
    after = f"{moved or ''}_{refused or ''}" if len(both) > len(page) else None
    return [entry for _, entry in page], after


async def _entries(ledger: Ledger, org: str, before: str | None, limit: int) -> list[dict[str, Any]]:
    client: Any = ledger.client
    stream, last = keys.of_org(org).journal, "+" if before is None else f"({before}"
    items = await again(lambda: client.xrevrange(stream, max=last, min="-", count=limit))
    return [{"id": text(i), **msgspec.json.decode(fields[b"entry"])} for i, fields in items]


def _read_cursor(cursor: str | None) -> tuple[str | None, str | None]:
    if cursor is None:
        return None, None
    parts = cursor.split("_")
    if len(parts) != 2 or not all(_is_id(part) for part in parts):
        raise InvalidRequest(f"cursor: {cursor!r:.60} is not one that was given here")
    return parts[0] or None, parts[1] or None


def _is_id(part: str) -> bool:
    ms, dash, number = part.partition("-")
    is_number = ms.isascii() and ms.isdigit() and number.isascii() and number.isdigit()
    return part == "" or (bool(dash) and is_number and len(part) < _ID_MAX)
