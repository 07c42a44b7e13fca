"""Making an org, and editing what administrators set for it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from config.problems import near_miss
from console.desk import CHANGED_MEANWHILE, Desk
from console.pages import org_url
from console.typed import typed_credits
from ledger.balances import Balance
from ledger.errors import Changed, UnknownOrg
from ledger.money import AmountError, format_micro
from ledger.names import NAME_MAX, is_name

_CONTACT_MAX: Final = 500
_NUMBER = re.compile(r"[0-9]{1,5}(\.[0-9]{1,3})?")
_AS_SET: Final = ("", "As the settings say")
MODES: Final = (
    _AS_SET, ("enforce", "Enforce: refuse work without credits"), ("shadow", "Shadow: decide, but let everything pass"),
    ("off", "Off: let pass, and count nothing"),
)  # fmt: skip
THENS: Final = (
    _AS_SET, ("block", "Block: only refuse new work"), ("suspend", "Suspend what runs, after the grace"),
    ("stop", "Stop what runs, after the grace"),
)  # fmt: skip
_EMPTY: Final = {
    "org": "", "contact": "", "unlimited": "", "credit_line": "0", "mode": "", "then": "", "warn_hours_left": "",
    "grace_minutes": "", "revision": "",
}  # fmt: skip
_NUMBERS: Final = ("warn_hours_left", "grace_minutes")


class OrgSettings:
    """Two pages with one form."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def new(self, request: web.Request) -> web.Response:
        """The empty form."""
        return self._page(request, {**_EMPTY, "org": request.query.get("org", "")[:NAME_MAX]}, {}, is_new=True)

    async def create(self, request: web.Request) -> web.Response:
        """Makes an org. Raises: web.HTTPForbidden, LedgerUnavailable."""
        form = await self._desk.pages.sessions.check_csrf(request)
        values, errors = _read(form)
        if not is_name(values["org"]):
            errors["org"] = f"Expected a name of 1 to {NAME_MAX} characters without control characters."
        elif await self._find(values["org"]) is not None:
            errors["org"] = "This org is there already: edit it on its own page."
        if errors:
            return self._page(request, values, errors, is_new=True)
        others = await self._desk.ledger.accounts.orgs()
        await self._save(request, values["org"], values, {}, None)
        near = await asyncio.to_thread(near_miss, values["org"], [name for name in others if name != values["org"]])
        beside = f" beside {near:.100}, which is very like it" if near is not None else ""
        said = f"Org {values['org']:.100} is made{beside}. Grant it credits, so that its work may start."
        return self._desk.pages.redirect(request, org_url(values["org"], "grant"), said)

    async def edit(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        balance = await self._desk.ledger.accounts.balance(request.match_info["org"])
        return self._page(request, _values(balance), {})

    async def save(self, request: web.Request) -> web.Response:
        """Raises: web.HTTPForbidden, UnknownOrg, LedgerUnavailable."""
        form = await self._desk.pages.sessions.check_csrf(request)
        org = request.match_info["org"]
        balance = await self._desk.ledger.accounts.balance(org)
        values, errors = _read(form)
        values["org"] = org
        if not errors:
            try:
                await self._save(request, org, values, balance.policy, values["revision"])
            except Changed:
                errors[""] = CHANGED_MEANWHILE
                return self._page(request, _values(await self._desk.ledger.accounts.balance(org)), errors, status=409)
        if errors:
            return self._page(request, values, errors)
        return self._desk.pages.redirect(request, org_url(org, "settings"), "The settings are saved.")

    async def _save(
        self, request: web.Request, org: str, values: Mapping[str, str], before: Mapping[str, Any], revision: str | None
    ) -> None:
        policy = {name: value for name, value in before.items() if name not in ("mode", "then", *_NUMBERS)}
        policy |= {name: values[name] for name in ("mode", "then") if values[name]}
        policy |= {name: float(values[name]) for name in _NUMBERS if values[name]}
        line = typed_credits(values["credit_line"])
        await self._desk.ledger.accounts.upsert(
            org, **self._desk.signed(request), if_revision=revision, unlimited=values["unlimited"] == "1",
            contact=values["contact"], policy=policy, credit_line_micro=line,
        )  # fmt: skip

    async def _find(self, org: str) -> Balance | None:
        try:
            return await self._desk.ledger.accounts.balance(org)
        except UnknownOrg:
            return None

    def _page(
        self, request: web.Request, values: Mapping[str, str], errors: Mapping[str, str], *, is_new: bool = False,
        status: int = 422,
    ) -> web.Response:  # fmt: skip
        return self._desk.pages.render(
            request, "org_settings.html", status=status if errors else 200, values=values, errors=errors,
            is_new=is_new, modes=MODES, thens=THENS,
        )  # fmt: skip


def _values(balance: Balance) -> dict[str, str]:
    policy = balance.policy
    return {
        "org": balance.org, "contact": balance.contact or "", "unlimited": "1" if balance.unlimited else "",
        "credit_line": format_micro(balance.credit_line_micro), "revision": balance.revision,
        **{name: str(policy.get(name) or "") for name in ("mode", "then")},
        **{name: f"{policy[name]:g}" if isinstance(policy.get(name), int | float) else "" for name in _NUMBERS},
    }  # fmt: skip


def _read(form: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(values, what is wrong with which)."""
    values = {name: form.get(name, "").strip() for name in _EMPTY}
    errors = {}
    if len(values["contact"]) > _CONTACT_MAX or not values["contact"].isprintable():
        errors["contact"] = f"Expected at most {_CONTACT_MAX} printable characters."
    for name, options in (("mode", MODES), ("then", THENS)):
        if values[name] not in dict(options):
            errors[name] = "Choose one of these."
    for name in _NUMBERS:
        if values[name] and _NUMBER.fullmatch(values[name]) is None:
            errors[name] = "Expected a number like 24 or 1.5, or nothing."
    values["credit_line"] = values["credit_line"] or "0"
    try:
        typed_credits(values["credit_line"])
    except AmountError as error:
        errors["credit_line"] = str(error)
    return values, errors
