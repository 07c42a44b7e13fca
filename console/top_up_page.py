"""The page of an org's auto top-up: its terms, how it stands, and ending it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any, Final

from aiohttp import web

from api.routes import Route
from console.desk import CHANGE, CHANGED_MEANWHILE, Desk
from console.pages import org_url
from console.payments import Till
from console.refused import beside
from console.top_up_api import COOL_DOWN_MINUTES, end_top_up, make_terms
from console.typed import typed_credits
from ledger.errors import Changed, InvalidRequest
from ledger.money import AmountError
from ledger.notice_text import reason_text
from ledger.top_ups import TopUp, top_up_shape

_PATH: Final = "/console/orgs/{org}/topup"
_MINUTES: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_STATES: Final = {
    "off": "off",
    "ready": "on",
    "in_flight": "a payment is on its way",
    "cooling": "on; it waits after the last order",
    "capped": "the monthly cap is reached",
    "no_card": "on, but no card is saved",
    "paused": "paused",
}


class TopUpPage:
    """Its forms are for owners and admins only. Without a till it says that nothing is sold, and has none."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def calls(self) -> list[Route]:
        """Who may use it."""
        if self._desk.till is None:
            return [Route("GET", _PATH, self.not_sold, CHANGE, "session")]
        return [
            Route("GET", _PATH, self.page, CHANGE, "session"),
            Route("POST", _PATH, self.save, CHANGE, "session"),
            Route("POST", f"{_PATH}/end", self.end, CHANGE, "session"),
        ]

    @property
    def _till(self) -> Till:
        assert self._desk.till is not None, "the forms are only there with a till"
        return self._desk.till

    async def not_sold(self, request: web.Request) -> web.Response:
        """What to do about it. Raises: UnknownOrg, LedgerUnavailable."""
        await self._desk.ledger.accounts.balance(request.match_info["org"])
        return self._desk.pages.render(request, "not_sold.html", title="Auto top-up")

    async def page(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        found = await self._till.top_ups.read(request.match_info["org"])
        return await self._page(request, found, _values(found, self._desk.ledger.clock()), {})

    async def save(self, request: web.Request) -> web.Response:
        """Sets the terms; where it was paused, it goes on. Raises: web.HTTPForbidden, UnknownOrg, LedgerUnavailable."""
        form = await self._desk.pages.sessions.check_csrf(request)
        org = request.match_info["org"]
        values = {
            name: str(form.get(name, "")).strip()
            for name in ("threshold", "credits", "monthly_cap", "cool_down_minutes", "revision")
        }
        values["enabled"] = "yes" if form.get("enabled") == "yes" else ""
        try:
            terms = make_terms(
                self._till.settings, _credits(values, "threshold"), _credits(values, "credits"),
                _credits(values, "monthly_cap"), _minutes(values["cool_down_minutes"]), bool(values["enabled"]),
                self._desk.caller(request).who,
            )  # fmt: skip
            await self._desk.ledger.accounts.balance(org)  # says it where there is no such org
            address = self._desk.address_of(request)
            await self._till.top_ups.put(org, terms, address, if_revision=values["revision"])
        except InvalidRequest as error:
            errors = dict([beside(error, {name: name for name in values})])
            return await self._page(request, await self._till.top_ups.read(org), values, errors)
        except Changed:
            return await self._changed(request)
        said = "Auto top-up is on." if terms.enabled else "Auto top-up is off; its terms are kept."
        return self._desk.pages.redirect(request, org_url(org, "topup"), said)

    async def end(self, request: web.Request) -> web.Response:
        """Ends it and forgets the card. Raises: web.HTTPForbidden, LedgerUnavailable."""
        form = await self._desk.pages.sessions.check_csrf(request)
        org = request.match_info["org"]
        await self._desk.ledger.accounts.balance(org)  # says it where there is no such org
        try:
            await end_top_up(self._till, org, **self._desk.signed(request), if_revision=str(form.get("revision", "")))
        except Changed:
            return await self._changed(request)
        said = "Auto top-up is ended, and the card is forgotten."
        return self._desk.pages.redirect(request, org_url(org, "topup"), said)

    async def _changed(self, request: web.Request) -> web.Response:
        found = await self._till.top_ups.read(request.match_info["org"])
        values = _values(found, self._desk.ledger.clock())
        return await self._page(request, found, values, {"": CHANGED_MEANWHILE}, status=409)

    async def _page(
        self, request: web.Request, found: TopUp, values: Mapping[str, str], errors: Mapping[str, str], *,
        status: int = 422,
    ) -> web.Response:  # fmt: skip
        balance = await self._desk.ledger.accounts.balance(found.org)
        now = self._desk.ledger.clock()
        shape: dict[str, Any] = top_up_shape(found, now)
        return self._desk.pages.render(
            request,
            "top_up.html",
            status=status if errors else 200,
            values=values,
            errors=errors,
            shape=shape,
            state=_STATES[shape["state"]],
            why=reason_text(found.paused) if found.paused else "",
            cools_until_us=found.cool_until_us if found.cool_until_us > now else None,
            month=f"{date.fromisoformat(f'{found.month}-01'):%b %Y}",
            balance=balance,
        )


def _values(found: TopUp, now: int) -> dict[str, str]:
    shape = top_up_shape(found, now)
    if found.terms is None:
        return {
            "threshold": "", "credits": "", "monthly_cap": "", "cool_down_minutes": f"{COOL_DOWN_MINUTES:g}",
            "enabled": "yes", "revision": found.revision,
        }  # fmt: skip
    return {
        **{name: shape[name] for name in ("threshold", "credits", "monthly_cap")},
        "cool_down_minutes": f"{shape['cool_down_minutes']:g}",
        "enabled": "yes" if found.terms.enabled else "",
        "revision": found.revision,
    }


def _credits(values: Mapping[str, str], name: str) -> int:
    try:
        return typed_credits(values[name])
    except AmountError as error:
        raise InvalidRequest(f"{name}: {error}") from None


def _minutes(text: str) -> float:
    if _MINUTES.fullmatch(text) is None:
        raise InvalidRequest(f"cool_down_minutes: {text!r:.40} is not a number of minutes like 30")
    return float(text)
