"""An org's whole journal, page by page: what moved credits or changed limits, kept for ever, and the last refusals."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.admission import AdmissionRequest, Decision
from ledger.audit import CHANGES, SIGN_INS
from ledger.clock import format_time
from ledger.connect import again
from ledger.errors import InvalidRequest
from ledger.lua import text
from ledger.money import format_micro
from ledger.refusals import EXCEPTION, REFUSAL, SHADOW
from ledger.store import Ledger

PARTS: Final = ("changes", "refusals")
JOURNAL_TYPES: Final = (
    "grant", "correction", "transfer", "withdrawal", "restoration", "org", "budget", "budget_removed", "order",
    "payment_refused", "card", "top_up", "top_up_terms", "notices", "stage", REFUSAL, SHADOW, EXCEPTION,
)  # fmt: skip
"""All types of entries in the journal of an org."""
_ID_MAX = 40
_BATCH = 500
_LOOKED_AT_MAX = 5000
"""Entries looked at for one page: a filter that few of them pass gives a short page, and the cursor to go on."""


@dataclass(frozen=True, slots=True)
class JournalFilter:
    """Which entries, and in which order. [from_us, until_us): when they came into the journal; no types: all.

    `parts`: what moved credits or changed something, and what was refused (or let through by exception).
    """

    types: frozenset[str] = frozenset()
    from_us: int | None = None
    until_us: int | None = None
    newest_first: bool = False
    parts: Collection[str] = PARTS


async def journal_page(
    ledger: Ledger, org: str, cursor: str | None, limit: int, wanted: JournalFilter | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Up to `limit` entries in the order they happened, and the cursor of the next page (None: this was the last).

    With types asked for, a page may have fewer entries, or none, and still a next one.
    Raises: UnknownOrg; InvalidRequest for a type that is none, or a cursor; LedgerUnavailable.
    """
    asked = wanted or JournalFilter()
    _check_types(asked.types, JOURNAL_TYPES)
    positions = _read_cursor(cursor)
    await ledger.accounts.balance(org)  # says it when there is no such org
    names = keys.of_org(org)
    batch = _BATCH if asked.types else limit + 1
    streams = [
        _Stream(ledger, stream, asked, batch, is_over=part not in asked.parts)
        for part, stream in zip(PARTS, (names.journal, names.refusals), strict=True)
    ]
    return await _page(streams, positions, limit, asked)


async def audit_page(
    ledger: Ledger, cursor: str | None, limit: int, wanted: JournalFilter | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """The same of what concerns no org (see ledger/audit.py)."""
    asked = wanted or JournalFilter()
    _check_types(asked.types, (*CHANGES, *SIGN_INS))
    position, other = _read_cursor(cursor)
    if other is not None:
        raise InvalidRequest(f"cursor: {cursor!r:.60} is not one that was given here")
    stream = _Stream(ledger, keys.AUDIT, asked, _BATCH if asked.types else limit + 1)
    return await _page([stream], [position], limit, asked)


def _check_types(asked: Collection[str], known: Sequence[str]) -> None:
    for one in sorted(asked):
        if one not in known:
            raise InvalidRequest(f"type: {one!r:.40} is none of {', '.join(known)}")


class _Stream:
    """One stream's entries from a position on, in one order, read in batches."""

    def __init__(self, ledger: Ledger, name: str, wanted: JournalFilter, batch: int, *, is_over: bool = False) -> None:
        self._client: Any = ledger.client
        self._name = name
        self._batch = batch
        self._is_reversed = wanted.newest_first
        first = "-" if wanted.from_us is None else _id_at(wanted.from_us)
        last = "+" if wanted.until_us is None else f"({_id_at(wanted.until_us)}"
        self._first, self._last = first, last
        self._read: deque[dict[str, Any]] = deque()
        self._is_over = is_over or (wanted.until_us is not None and wanted.until_us <= 0)

    async def head(self, after: str | None) -> dict[str, Any] | None:
        """The first entry after a position that is not taken yet; None where there is none."""
        if not self._read and not self._is_over:
            if self._is_reversed:
                last = self._last if after is None else f"({after}"
                items = await again(
                    lambda: self._client.xrevrange(self._name, max=last, min=self._first, count=self._batch)
                )
            else:
                first = self._first if after is None else f"({after}"
                items = await again(
                    lambda: self._client.xrange(self._name, min=first, max=self._last, count=self._batch)
                )
            self._is_over = len(items) < self._batch
            self._read.extend({"id": text(i), **msgspec.json.decode(fields[b"entry"])} for i, fields in items)
        return self._read[0] if self._read else None

    def take(self) -> dict[str, Any]:
        return self._read.popleft()


async def _page(
    streams: Sequence[_Stream], positions: Sequence[str | None], limit: int, wanted: JournalFilter
) -> tuple[list[dict[str, Any]], str | None]:
    at = list(positions)
    found: list[dict[str, Any]] = []
    looked_at = 0
    while True:
        heads = [(number, await stream.head(at[number])) for number, stream in enumerate(streams)]
        there = [(_order(head["id"]), number) for number, head in heads if head is not None]
        if not there:
            return found, None
        if len(found) == limit or looked_at == _LOOKED_AT_MAX:
            return found, "_".join(position or "" for position in (*at, None)[:2])
        # Of the same instant, the journal's go before the refusals.
        _, number = max(there) if wanted.newest_first else min(there)
        entry = streams[number].take()
        at[number] = entry["id"]
        looked_at += 1
        if not wanted.types or entry["type"] in wanted.types:
            found.append(entry)


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


def _id_at(us: int) -> str:
    """The first id that an entry of this instant or later can have."""
    return f"{max(0, -(-us // 1000))}-0"


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


def _read_cursor(cursor: str | None) -> tuple[str | None, str | None]:
    if cursor is None:
        return None, None
    parts = cursor.split("_")
    if len(parts) != 2 or not all(_is_id(part) for part in parts):
        raise InvalidRequest(f"cursor: {cursor!r:.60} is not one that was given here")
    return parts[0] or None, parts[1] or None


def _is_id(part: str) -> bool:
    ms, dash, number = part.partition("-")
    if part == "" or not (dash and part.isascii() and ms.isdigit() and number.isdigit() and len(part) < _ID_MAX):
        return part == ""
    # The server knows no ids beyond 64 bits, and nothing before the first of all.
    return (int(ms), int(number)) > (0, 0) and max(int(ms), int(number)) < 2**64 - 1
