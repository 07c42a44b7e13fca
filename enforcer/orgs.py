"""Orgs, grants, budgets and journals over HTTP."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web

from enforcer.access import ADMIN, OWNER, VIEWER, Route, token_of
from enforcer.bodies import amount, answer, paging, read_json, required_name, time
from enforcer.problems import Problem
from ledger.accounts import KEY_MAX
from ledger.admission_shapes import WEEKDAYS, budget_shape
from ledger.errors import UnknownOrg
from ledger.journal import journal_page
from ledger.periods import PERIODS
from ledger.shapes import balance_shape, grant_shape
from ledger.store import Ledger

_SEE = (ADMIN, OWNER, VIEWER)
_CONTACT_MAX = 500
MODES = ("enforce", "shadow", "off")


class OrgBody(msgspec.Struct, forbid_unknown_fields=True):
    """What may be said of an org; what is left out stays as it is."""

    unlimited: bool | None = None
    contact: str | None = None
    policy: dict[str, Any] | None = None


class GrantBody(msgspec.Struct, forbid_unknown_fields=True):
    """Amounts are decimals: as text, or as JSON numbers, which are read as decimals too."""

    credits: Decimal
    reason: str = ""
    source: str = "provision"
    effective_at: str | None = None
    expires_at: str | None = None


class BudgetBody(msgspec.Struct, forbid_unknown_fields=True):
    """A budget; there is one of each period."""

    credits: Decimal
    period: str = "month"
    timezone: str = "UTC"
    week_start: str = "monday"


class OrgsApi:
    """What admins and owners do."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[Route]:
        budget = "/v1/orgs/{org}/budgets/{project}"
        return [
            Route("GET", "/v1/orgs", self.list_orgs, _SEE),
            Route("PUT", "/v1/orgs/{org}", self.put_org, (ADMIN,)),
            Route("GET", "/v1/orgs/{org}/balance", self.balance, _SEE),
            Route("POST", "/v1/orgs/{org}/grants", self.grant, (ADMIN,)),
            Route("GET", "/v1/orgs/{org}/budgets", self.list_budgets, _SEE),
            Route("PUT", budget, self.put_budget, (ADMIN, OWNER)),
            Route("PUT", budget + "/{user}", self.put_budget, (ADMIN, OWNER)),
            Route("DELETE", budget, self.delete_budget, (ADMIN, OWNER)),
            Route("DELETE", budget + "/{user}", self.delete_budget, (ADMIN, OWNER)),
            Route("GET", "/v1/orgs/{org}/journal", self.journal, _SEE),
        ]

    async def list_orgs(self, request: web.Request) -> web.Response:
        """Balances of the orgs that the caller may see, by name."""
        limit, cursor = paging(request)
        token = token_of(request)
        names = await self._ledger.accounts.orgs() if token.org is None else [token.org]
        names = [name for name in names if cursor is None or name > cursor]
        items = []
        for name in names[:limit]:
            try:
                items.append(balance_shape(await self._ledger.accounts.balance(name)))
            except UnknownOrg:
                continue
        return answer({"items": items, "next": names[limit - 1] if len(names) > limit else None})

    async def put_org(self, request: web.Request) -> web.Response:
        org = required_name("org", request.match_info["org"])
        body = await read_json(request, OrgBody)
        if body.contact is not None and (len(body.contact) > _CONTACT_MAX or not body.contact.isprintable()):
            raise Problem(422, "invalid", f"contact: expected at most {_CONTACT_MAX} printable characters")
        mode = None if body.policy is None else body.policy.get("mode")
        if mode is not None and mode not in MODES:
            raise Problem(422, "invalid", f"policy.mode: {mode!r:.40} is none of {', '.join(MODES)}")
        done = await self._ledger.accounts.upsert(
            org, who=token_of(request).who, unlimited=body.unlimited, contact=body.contact, policy=body.policy
        )
        after = await self._ledger.accounts.balance(org)
        shape = {**balance_shape(after), "contact": after.contact or None, "policy": dict(after.policy)}
        return answer(shape, 201 if done == "created" else 200)

    async def balance(self, request: web.Request) -> web.Response:
        return answer(balance_shape(await self._ledger.accounts.balance(request.match_info["org"])))

    async def grant(self, request: web.Request) -> web.Response:
        """The same key answers the same again, for ever."""
        org = required_name("org", request.match_info["org"])
        key = request.headers.get("Idempotency-Key", "")
        if not 0 < len(key) <= KEY_MAX or not key.isprintable():
            raise Problem(
                400, "no_idempotency_key", f"An Idempotency-Key header of 1 to {KEY_MAX} characters is needed."
            )
        body = await read_json(request, GrantBody)
        receipt = await self._ledger.accounts.grant(
            org, amount("credits", body.credits), key=key, who=token_of(request).who, source=body.source,
            reason=body.reason[:1000], effective_us=time("effective_at", body.effective_at),
            expires_us=time("expires_at", body.expires_at),
        )  # fmt: skip
        shape = grant_shape(org, receipt)
        replayed = "true" if shape.pop("replayed") else "false"
        return answer(shape, 201, {"Idempotent-Replayed": replayed})

    async def list_budgets(self, request: web.Request) -> web.Response:
        org = request.match_info["org"]
        states = await self._ledger.budgets.states(org)
        return answer({"items": [budget_shape(org, state) for state in states], "next": None})

    async def put_budget(self, request: web.Request) -> web.Response:
        org = required_name("org", request.match_info["org"])
        body = await read_json(request, BudgetBody)
        if body.week_start.lower() not in WEEKDAYS:
            raise Problem(422, "invalid", f"week_start: {body.week_start!r:.40} is none of {', '.join(WEEKDAYS)}")
        state = await self._ledger.budgets.put(
            org, request.match_info["project"], request.match_info.get("user"), amount("credits", body.credits),
            who=token_of(request).who, period=body.period, timezone=body.timezone,
            week_start=WEEKDAYS.index(body.week_start.lower()),
        )  # fmt: skip
        return answer(budget_shape(org, state))

    async def delete_budget(self, request: web.Request) -> web.Response:
        """All budgets of the project (or of the user in it), or that of `?period=`."""
        org, project, user = (request.match_info.get(part) for part in ("org", "project", "user"))
        assert org is not None
        assert project is not None
        period = request.query.get("period")
        if period is not None and period not in PERIODS:
            raise Problem(422, "invalid", f"period: {period!r:.40} is none of {', '.join(PERIODS)}")
        who = token_of(request).who
        if not await self._ledger.budgets.remove(org, project, user, who=who, period=period):
            raise Problem(404, "unknown_budget", "There is no such budget.")
        return web.Response(status=204)

    async def journal(self, request: web.Request) -> web.Response:
        """What moved credits or changed limits, and what was refused, in the order it happened."""
        limit, cursor = paging(request)
        org = request.match_info["org"]
        items, after = await journal_page(self._ledger, org, cursor, limit)
        return answer({"items": items, "next": after})
