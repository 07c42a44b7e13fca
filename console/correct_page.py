"""Corrections: giving credits, or taking them back, with what is corrected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from console.desk import Desk
from console.forms_once import new_key, note, read_form
from console.pages import org_url
from console.texts import credits_are
from ledger.accounts import GrantRecord
from ledger.corrections import CorrectionReceipt
from ledger.errors import IdempotencyConflict, InvalidRequest

_WAYS: Final = (("take", "Take back"), ("give", "Give"))
_REFERENCE_MAX: Final = 300
_EMPTY: Final = {"way": "take", "credits": "", "corrects": "", "reason": "", "key": ""}


class CorrectPage:
    """One form."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """`of`: the key of a grant, the id of a journal entry or of a workload. Raises: UnknownOrg."""
        of = request.query.get("of", "")[:_REFERENCE_MAX]
        return await self._page(request, {**_EMPTY, "corrects": of, "key": new_key()}, {})

    async def correct(self, request: web.Request) -> web.Response:
        """Raises: web.HTTPForbidden, UnknownOrg, LedgerUnavailable (sending it again is safe)."""
        org = request.match_info["org"]
        values, micro, errors = await read_form(self._desk, request, _EMPTY)
        if values["way"] not in dict(_WAYS):
            errors["way"] = "Choose one of these."
        if not 0 < len(values["corrects"]) <= _REFERENCE_MAX:
            errors["corrects"] = "What is corrected? The key of a grant, or the id of a journal entry or of a workload."
        if not errors:
            try:
                receipt = await self._desk.ledger.corrections.correct(
                    org, micro if values["way"] == "give" else -micro, corrects=values["corrects"], key=values["key"],
                    reason=values["reason"], **self._desk.signed(request),
                )  # fmt: skip
                return self._desk.pages.redirect(request, org_url(org, "grants"), _said(receipt))
            except (IdempotencyConflict, InvalidRequest) as error:
                note(error, values, errors, "correction")
        return await self._page(request, values, errors)

    async def _page(self, request: web.Request, values: Mapping[str, str], errors: Mapping[str, str]) -> web.Response:
        org = request.match_info["org"]
        balance = await self._desk.ledger.accounts.balance(org)
        grants = await self._desk.ledger.accounts.grants(org)
        found: GrantRecord | None = next((grant for grant in grants if grant.key == values["corrects"]), None)
        return self._desk.pages.render(
            request, "correct.html", status=422 if errors else 200, values=values, errors=errors, balance=balance,
            grant=found, ways=_WAYS,
        )  # fmt: skip


def _said(receipt: CorrectionReceipt) -> str:
    record = receipt.record
    taken = record.credits.startswith("-")
    said = f"{credits_are(record.credits.removeprefix('-'))} {'taken back' if taken else 'given'}."
    if record.overdraft != "0":
        said += f" {record.overdraft} of them were spent already and are overdrawn: the next grant pays them."
    return f"{said} That was done when this form was first sent, and not again." if receipt.replayed else said
