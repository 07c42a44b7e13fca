"""Orgs, grants, budgets and journals over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from api import shapes
from api.routes import Operation, Route
from api.types import (
    AskedCredits,
    AskedLimit,
    AskedTime,
    IdempotencyKey,
    Name,
    Page,
    Paging,
    Period,
    Weekday,
    Zone,
    said,
)
from enforcer.access import ADMIN, OWNER, SEE, token_of
from enforcer.bodies import amount, answer, paging, read_json, required_name, time
from enforcer.problems import Problem
from ledger.accounts import GRANT_SOURCES, KEY_MAX
from ledger.admission_shapes import WEEKDAYS, budget_shape
from ledger.errors import UnknownOrg
from ledger.journal import journal_page
from ledger.periods import PERIODS
from ledger.scopes import NAMES_MAX
from ledger.shapes import balance_shape, grant_shape
from ledger.store import Ledger

_CONTACT_MAX = 500
MODES = ("enforce", "shadow", "off")


class OrgBody(msgspec.Struct, forbid_unknown_fields=True):
    """What may be said of an org; what is left out stays as it is."""

    unlimited: bool | None = None
    contact: Annotated[str, said(maxLength=500)] | None = None
    policy: dict[str, Any] | None = None
    credit_line: AskedLimit | None = None
    """How far below zero it may go; 0: not at all."""


class OnlyBody(msgspec.Struct, forbid_unknown_fields=True):
    """For which work a grant pays: on one of these presets, in one of these clusters; an empty list: any."""

    presets: Annotated[list[Name], said(maxItems=NAMES_MAX)] = []
    clusters: Annotated[list[Name], said(maxItems=NAMES_MAX)] = []


class GrantBody(msgspec.Struct, forbid_unknown_fields=True):
    """Amounts are decimals: as text, or as JSON numbers, which are read as decimals too."""

    credits: AskedCredits
    reason: str = ""
    source: Annotated[str, said(enum=list(GRANT_SOURCES))] = "provision"
    effective_at: AskedTime | None = None
    expires_at: AskedTime | None = None
    purpose: str = ""
    only: OnlyBody | None = None


class BudgetBody(msgspec.Struct, forbid_unknown_fields=True):
    """A budget; there is one of each period."""

    credits: AskedLimit
    period: Period = "month"
    timezone: Zone = "UTC"
    week_start: Weekday = "monday"


class PeriodQuery(msgspec.Struct):
    """Which budget; none: all of them."""

    period: Period | None = None


class OrgsApi:
    """What admins and owners do."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[Route]:
        org, edit = "/v1/orgs/{org}", (ADMIN, OWNER)
        budgets = f"{org}/budgets"
        listed = Operation("orgs", Page[shapes.Balance], query=Paging)
        put = Operation("orgs", shapes.Org, OrgBody, statuses=(200, 201), example={"contact": "ops@acme.example"})
        grant = Operation(
            "orgs", shapes.Grant, GrantBody, headers=IdempotencyKey, statuses=(201,), problems=(409,),
            gives={"Idempotent-Replayed": "`true` where this is the answer to an earlier call with the same key."},
            example={"credits": "1000", "reason": "Invoice 2026-11", "expires_at": "2027-12-31T00:00:00Z"},
        )  # fmt: skip
        set_budget = Operation(
            "budgets", shapes.Budget, BudgetBody, example={"credits": "250", "period": "month", "timezone": "UTC"}
        )
        remove = Operation("budgets", query=PeriodQuery, statuses=(204,))
        journal = Operation("orgs", Page[shapes.JournalEntry], query=Paging)
        return [
            Route("GET", "/v1/orgs", self.list_orgs, SEE, about=listed),
            Route("PUT", org, self.put_org, (ADMIN,), about=put),
            Route("GET", f"{org}/balance", self.balance, SEE, about=Operation("orgs", shapes.Balance)),
            Route("POST", f"{org}/grants", self.grant, (ADMIN,), about=grant),
            Route("GET", budgets, self.list_budgets, SEE, about=Operation("budgets", Page[shapes.Budget])),
            Route("PUT", f"{budgets}/{{project}}", self.put_budget, edit, about=set_budget),
            Route("PUT", f"{budgets}/{{project}}/{{user}}", self.put_budget, edit, about=set_budget),
            Route("DELETE", f"{budgets}/{{project}}", self.delete_budget, edit, about=remove),
            Route("DELETE", f"{budgets}/{{project}}/{{user}}", self.delete_budget, edit, about=remove),
            Route("GET", f"{org}/journal", self.journal, SEE, about=journal),
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
        """Creates an org, or edits what is set for it."""
        org = required_name("org", request.match_info["org"])
        body = await read_json(request, OrgBody)
        if body.contact is not None and (len(body.contact) > _CONTACT_MAX or not body.contact.isprintable()):
            raise Problem(422, "invalid", f"contact: expected at most {_CONTACT_MAX} printable characters")
        mode = None if body.policy is None else body.policy.get("mode")
        if mode is not None and mode not in MODES:
            raise Problem(422, "invalid", f"policy.mode: {mode!r:.40} is none of {', '.join(MODES)}")
        done = await self._ledger.accounts.upsert(
            org,
            who=token_of(request).who,
            unlimited=body.unlimited,
            contact=body.contact,
            policy=body.policy,
            credit_line_micro=None if body.credit_line is None else amount("credit_line", body.credit_line),
        )
        after = await self._ledger.accounts.balance(org)
        shape = {**balance_shape(after), "contact": after.contact or None, "policy": dict(after.policy)}
        return answer(shape, 201 if done == "created" else 200)

    async def balance(self, request: web.Request) -> web.Response:
        """What an org has, all of one instant."""
        return answer(balance_shape(await self._ledger.accounts.balance(request.match_info["org"])))

    async def grant(self, request: web.Request) -> web.Response:
        """Gives credits to an org. The same key answers the same again, for ever."""
        org = required_name("org", request.match_info["org"])
        key = request.headers.get("Idempotency-Key", "")
        if not 0 < len(key) <= KEY_MAX or not key.isprintable():
            raise Problem(
                400, "no_idempotency_key", f"An Idempotency-Key header of 1 to {KEY_MAX} characters is needed."
            )
        body = await read_json(request, GrantBody)
        only = body.only or OnlyBody()
        if body.only is not None and not (only.presets or only.clusters):
            raise Problem(
                422, "invalid", "only: name a preset or a cluster, or leave it out: then it pays for any work."
            )
        receipt = await self._ledger.accounts.grant(
            org, amount("credits", body.credits), key=key, who=token_of(request).who, source=body.source,
            reason=body.reason[:1000], effective_us=time("effective_at", body.effective_at),
            expires_us=time("expires_at", body.expires_at), purpose=body.purpose[:1000], presets=only.presets,
            clusters=only.clusters,
        )  # fmt: skip
        shape = grant_shape(org, receipt)
        replayed = "true" if shape.pop("replayed") else "false"
        return answer(shape, 201, {"Idempotent-Replayed": replayed})

    async def list_budgets(self, request: web.Request) -> web.Response:
        """All budgets of an org, and what is left of them."""
        org = request.match_info["org"]
        states = await self._ledger.budgets.states(org)
        return answer({"items": [budget_shape(org, state) for state in states], "next": None})

    async def put_budget(self, request: web.Request) -> web.Response:
        """Sets the budget of a project, or of a user in it. There is one of each period."""
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
        """Removes all budgets of a project, or of a user in it, or only that of one period."""
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
