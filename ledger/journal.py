"""An org's whole journal, page by page: what moved credits or changed limits, kept for ever, and the last refusals."""

from __future__ import annotations

import secrets
from typing import Any

from ledger.admission import AdmissionRequest, Decision
from ledger.clock import format_time
from ledger.errors import InvalidRequest
from ledger.money import format_micro
from ledger.refusals import merge_page
from ledger.store import Ledger

_ID_MAX = 40


async def journal_page(
    ledger: Ledger, org: str, cursor: str | None, limit: int
) -> tuple[list[dict[str, Any]], str | None]:
    """Up to `limit` entries in the order they happened, and the cursor of the next page (None: this was the last).

    Raises: UnknownOrg; InvalidRequest for a cursor that is none; LedgerUnavailable.
    """
    moved, refused = _read_cursor(cursor)
    await ledger.accounts.balance(org)  # says it when there is no such org
    entries, _ = await ledger.accounts.journal(org, moved, limit + 1)
    refusals = await ledger.refusals.read(org, refused, limit + 1)
    page = merge_page(entries, refusals, limit)
    for is_moved, entry in page:
        if is_moved:
            moved = entry["id"]
        else:
            refused = entry["id"]
    more = len(entries) + len(refusals) > len(page)
    return [entry for _, entry in page], f"{moved or ''}_{refused or ''}" if more else None


def decision_entry(
    kind: str, request: AdmissionRequest, decision: Decision, *, who: str, via: str, now_us: int
) -> dict[str, Any]:
    """The entry of a decision; `kind` as in `refusals`, `via`: how it was asked."""
    return {
        "type": kind,
        "event": secrets.token_hex(8),
        "at": format_time(now_us),
        "who": who,
        "via": via,
        "code": decision.code.value,
        "reason": decision.reason,
        "tier": decision.tier,
        "required": format_micro(decision.required_micro),
        "available": None if decision.available_micro is None else format_micro(decision.available_micro),
        "cluster": request.cluster,
        "project": request.project,
        "user": request.user,
        "kind": request.kind,
        "preset": request.preset,
        "app": request.app,
        "workload": request.workload_id,
        "count": request.count,
        "dry_run": request.dry_run,
    }


def _read_cursor(text: str | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    parts = text.split("_")
    if len(parts) != 2 or not all(_is_id(part) for part in parts):
        raise InvalidRequest(f"cursor: {text!r:.60} is not one that was given here")
    return parts[0] or None, parts[1] or None


def _is_id(text: str) -> bool:
    ms, dash, number = text.partition("-")
    return text == "" or (bool(dash) and text.isascii() and ms.isdigit() and number.isdigit() and len(text) < _ID_MAX)
