"""Whom an org has told of what: a form for owners and admins, the same as a list for viewers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from aiohttp import web

from api.routes import Route
from config.notices import NoticeSettings
from console.desk import CHANGE, CHANGED_MEANWHILE, SEE, Desk
from console.pages import org_url
from console.refused import beside
from ledger.errors import Changed, InvalidRequest
from ledger.notice_prefs import KINDS, NoticePreferences, Preferences, test_event, wanted_hook, why_nobody

_TITLES: Final = {
    "stage": "Stages: the org, or a budget, runs out, and has credits again",
    "runway": "Runway: credits last no longer than the hours below",
    "budget": "Budgets: 80 % and 100 % used",
    "purchase": "Purchases",
    "refund": "Refunds and disputes",
    "top_up": "Auto top-up: done, failed, paused, or at its cap",
}
_FIELDS: Final = {"email": "email", "runway_hours": "runway_hours", "webhook.url": "url"}
"""Names of the API -> fields of the form."""
_HOURS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_PATH: Final = "/console/orgs/{org}/notices"


class NoticesPage:
    """The page, its form, and the button that sends a test."""

    def __init__(self, desk: Desk, settings: NoticeSettings) -> None:
        self._desk = desk
        self._settings = settings
        ledger = desk.ledger
        self._preferences = NoticePreferences(ledger.client, ledger.scripts, ledger.clock)

    def calls(self) -> list[Route]:
        """Who may see it, and who may change it."""
        return [
            Route("GET", _PATH, self.page, SEE, "session"),
            Route("POST", _PATH, self.save, CHANGE, "session"),
            Route("POST", f"{_PATH}/test", self.test, CHANGE, "session"),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        found = await self._preferences.read(request.match_info["org"])
        return await self._page(request, _values(found), list(found.kinds))

    async def save(self, request: web.Request) -> web.Response:
        """Sets all of them. A secret that is made here is shown once. Raises: web.HTTPForbidden, LedgerUnavailable."""
        form = await self._desk.pages.sessions.check_csrf(request)
        org = request.match_info["org"]
        await self._desk.ledger.accounts.balance(org)  # preferences make no org
        values = {name: str(form.get(name, "")) for name in ("email", "runway_hours", "url", "revision")}
        kinds = [kind for kind in KINDS if form.get(f"kind-{kind}") == "yes"]
        before = await self._preferences.read(org)
        try:
            hook, is_new = None, False
            if url := values["url"].strip():
                hook, is_new = wanted_hook(url, None, before, self._settings.private_webhooks)
            wanted = Preferences(tuple(values["email"].split()), tuple(kinds), _hours(values["runway_hours"]), hook)
            after = await self._preferences.put(
                org, wanted, **self._desk.signed(request), if_revision=values["revision"]
            )  # fmt: skip
        except InvalidRequest as error:
            return await self._page(request, values, kinds, errors=dict([beside(error, _FIELDS)]))
        except Changed:
            found = await self._preferences.read(org)
            errors = {"": CHANGED_MEANWHILE}
            return await self._page(request, _values(found), list(found.kinds), errors=errors, status=409)
        if is_new and hook is not None:
            return await self._page(request, _values(after), kinds, secret=hook.secret)
        return self._desk.pages.redirect(request, org_url(org, "notices"), "The preferences are saved.")

    async def test(self, request: web.Request) -> web.Response:
        """Sends a test to everybody who is told. Raises: web.HTTPForbidden, LedgerUnavailable."""
        await self._desk.pages.sessions.check_csrf(request)
        org = request.match_info["org"]
        found = await self._preferences.read(org)
        here = org_url(org, "notices")
        if nobody := why_nobody(org, found, self._settings.smtp is not None):
            return self._desk.pages.redirect(request, here, nobody, kind="bad")
        ledger = self._desk.ledger
        await ledger.notices.note(test_event(org, self._desk.caller(request).who, ledger.clock()))
        return self._desk.pages.redirect(request, here, "A test is on its way; it takes up to a minute.")

    async def _page(
        self, request: web.Request, values: Mapping[str, Any], kinds: list[str], *,
        errors: Mapping[str, str] = MappingProxyType({}), secret: str = "", status: int = 422,
    ) -> web.Response:  # fmt: skip
        await self._desk.ledger.accounts.balance(request.match_info["org"])  # says it where there is no such org
        return self._desk.pages.render(
            request,
            "notices.html",
            status=status if errors else 200,
            values=values,
            kinds=[(kind, _TITLES[kind], kind in kinds) for kind in KINDS],
            errors=errors,
            secret=secret,
            has_mail=self._settings.smtp is not None,
            may_change=self._desk.may_change(request),
        )


def _values(found: Preferences) -> dict[str, str]:
    return {
        "email": "\n".join(found.email),
        "runway_hours": f"{found.runway_hours:g}",
        "url": "" if found.webhook is None else found.webhook.url,
        "revision": found.revision,
    }


def _hours(text: str) -> float:
    text = text.strip() or "0"
    if _HOURS.fullmatch(text) is None:
        raise InvalidRequest(f"runway_hours: {text!r:.40} is not a number of hours like 24 or 0.5")
    return float(text)
