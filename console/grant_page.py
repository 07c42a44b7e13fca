"""Granting credits: a form that grants once, however often it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from console.desk import Desk
from console.forms_once import new_key, note, read_form
from console.moments import read_moment, show_moment
from console.pages import org_url
from console.texts import credits_are, when_text
from ledger.accounts import GrantReceipt
from ledger.clock import parse_time
from ledger.errors import IdempotencyConflict, InvalidRequest
from ledger.refusal_text import only_text

SOURCES: Final = (
    ("provision", "Provisioned"), ("gift", "Gift"), ("refund", "Given back"), ("purchase", "Bought"),
)  # fmt: skip
_PURPOSE_MAX: Final = 1000
_EMPTY: Final = {
    "credits": "", "reason": "", "source": "provision", "purpose": "", "effective_at": "", "expires_at": "",
    "presets": "", "clusters": "", "key": "",
}  # fmt: skip


class GrantPage:
    """One form."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """The empty form. Raises: UnknownOrg, LedgerUnavailable."""
        return await self._page(request, {**_EMPTY, "key": new_key()}, {})

    async def grant(self, request: web.Request) -> web.Response:
        """Raises: web.HTTPForbidden, UnknownOrg, LedgerUnavailable (sending it again is safe)."""
        org, zone = request.match_info["org"], self._desk.pages.zone(request)
        values, micro, errors = await read_form(self._desk, request, _EMPTY)
        effective, expires = (_moment(name, values, zone, errors) for name in ("effective_at", "expires_at"))
        if effective is not None and expires is not None and expires <= effective:
            errors["expires_at"] = "Is not after “In force from”: the grant would never count."
        if not errors:
            try:
                receipt = await self._desk.ledger.accounts.grant(
                    org, micro, key=values["key"], **self._desk.signed(request), source=values["source"],
                    reason=values["reason"], effective_us=effective, expires_us=expires,
                    purpose=values["purpose"][:_PURPOSE_MAX], presets=_names(values["presets"]),
                    clusters=_names(values["clusters"]),
                )  # fmt: skip
                return self._desk.pages.redirect(request, org_url(org, "grants"), _said(org, receipt, zone))
            except (IdempotencyConflict, InvalidRequest) as error:
                note(error, values, errors, "grant")
        return await self._page(request, values, errors)

    async def _page(self, request: web.Request, values: Mapping[str, str], errors: Mapping[str, str]) -> web.Response:
        balance = await self._desk.ledger.accounts.balance(request.match_info["org"])
        return self._desk.pages.render(
            request, "grant.html", status=422 if errors else 200, values=values, errors=errors, balance=balance,
            sources=SOURCES, now=show_moment(balance.at_us, self._desk.pages.zone(request)),
        )  # fmt: skip


def _said(org: str, receipt: GrantReceipt, zone: str) -> str:
    record = receipt.record
    said = f"{credits_are(record.credits)} granted to org {org:.100}"
    if record.presets or record.clusters:
        said += f", only for {only_text(record.presets, record.clusters):.200}"
    if parse_time(record.effective_at) > parse_time(record.granted_at):
        said += f", in force from {when_text(record.effective_at, zone)}"
    said += f", until {when_text(record.expires_at, zone)}." if record.expires_at else ", without expiry."
    return f"{said} They were granted when this form was first sent, and not again." if receipt.replayed else said


def _moment(name: str, values: Mapping[str, str], zone: str, errors: dict[str, str]) -> int | None:
    try:
        return read_moment(values[name], zone)
    except ValueError as error:
        errors[name] = str(error)
        return None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
