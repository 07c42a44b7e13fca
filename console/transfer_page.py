"""Moving credits from one org to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from console.desk import Desk
from console.forms_once import new_key, note, read_form
from console.pages import org_url
from console.texts import credits_are
from ledger.errors import IdempotencyConflict, Insufficient, InvalidRequest, UnknownOrg
from ledger.names import NAME_MAX, is_name

_EMPTY: Final = {"to": "", "credits": "", "reason": "", "key": ""}


class TransferPage:
    """One form."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        return await self._page(request, {**_EMPTY, "key": new_key()}, {})

    async def transfer(self, request: web.Request) -> web.Response:
        """Raises: web.HTTPForbidden, UnknownOrg, LedgerUnavailable (sending it again is safe, and needed)."""
        org = request.match_info["org"]
        values, micro, errors = await read_form(self._desk, request, _EMPTY)
        if not is_name(values["to"]):
            errors["to"] = f"Expected the name of an org, of 1 to {NAME_MAX} characters."
        if not errors:
            try:
                receipt = await self._desk.ledger.transfers.transfer(
                    org, values["to"], micro, key=values["key"], reason=values["reason"], **self._desk.signed(request)
                )
                said = f"{credits_are(receipt.record.credits)} moved to org {values['to']:.100}."
                if receipt.replayed:
                    said += " That was done when this form was first sent, and not again."
                return self._desk.pages.redirect(request, org_url(org, "grants"), said)
            except UnknownOrg:
                errors["to"] = "There is no such org. Make it first."
            except Insufficient as error:
                errors["credits"] = str(error).partition(" ")[2]
            except (IdempotencyConflict, InvalidRequest) as error:
                note(error, values, errors, "transfer")
        return await self._page(request, values, errors)

    async def _page(self, request: web.Request, values: Mapping[str, str], errors: Mapping[str, str]) -> web.Response:
        balance = await self._desk.ledger.accounts.balance(request.match_info["org"])
        return self._desk.pages.render(
            request, "transfer.html", status=422 if errors else 200, values=values, errors=errors, balance=balance
        )
