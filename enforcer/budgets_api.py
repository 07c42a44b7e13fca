"""Budgets over HTTP."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from api import shapes
from api.conditions import GIVES_ETAG, IfMatch, etag, if_match
from api.routes import Operation, Route
from api.types import AskedLimit, Page, Period, Weekday, Zone
from enforcer.access import ADMIN, OWNER, SEE
from enforcer.bodies import amount, answer, read_json, required_name
from enforcer.headers import caller
from enforcer.problems import Problem
from ledger.admission_shapes import WEEKDAYS, budget_shape
from ledger.periods import PERIODS
from ledger.store import Ledger

_EDIT: Final = (ADMIN, OWNER)


class BudgetBody(msgspec.Struct, forbid_unknown_fields=True):
    """A budget; there is one of each period."""

    credits: AskedLimit
    period: Period = "month"
    timezone: Zone = "UTC"
    week_start: Weekday = "monday"


class PeriodQuery(msgspec.Struct):
    """Which budget; none: all of them."""

    period: Period | None = None


class BudgetsApi:
    """Caps on projects, and on users in them. An ETag is of all budgets of the project (or user), not of their use."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[Route]:
        budgets = "/v1/orgs/{org}/budgets"
        listed = Operation("budgets", Page[shapes.Budget])
        get = Operation("budgets", Page[shapes.Budget], query=PeriodQuery, gives=GIVES_ETAG)
        put = Operation(
            "budgets", shapes.Budget, BudgetBody, headers=IfMatch, problems=(412,), gives=GIVES_ETAG,
            example={"credits": "250", "period": "month", "timezone": "UTC"},
        )  # fmt: skip
        delete = Operation("budgets", query=PeriodQuery, headers=IfMatch, statuses=(204,), problems=(412,))
        routes = [Route("GET", budgets, self.list_budgets, SEE, about=listed)]
        for path in (f"{budgets}/{{project}}", f"{budgets}/{{project}}/{{user}}"):
            routes += [
                Route("GET", path, self.get_budget, SEE, about=get),
                Route("PUT", path, self.put_budget, _EDIT, about=put),
                Route("DELETE", path, self.delete_budget, _EDIT, about=delete),
            ]
        return routes

    async def list_budgets(self, request: web.Request) -> web.Response:
        """All budgets of an org, and what is left of them."""
        org = request.match_info["org"]
        await self._ledger.accounts.balance(org)  # says it when there is no such org
        states = await self._ledger.budgets.states(org)
        return answer({"items": [budget_shape(org, state) for state in states], "next": None})

    async def get_budget(self, request: web.Request) -> web.Response:
        """The budgets of a project, or of a user in it: one for each period that has one."""
        org, project, user = _place(request)
        period = _period(request)
        states = [
            state
            for state in await self._ledger.budgets.states(org)
            if (state.budget.project, state.budget.user) == (project, user)
        ]
        found = [state for state in states if period in (None, state.budget.period)]
        if not found:
            raise Problem(404, "unknown_budget", "There is no such budget.")
        shape = {"items": [budget_shape(org, state) for state in found], "next": None}
        return answer(shape, headers=etag(found[0].tag))

    async def put_budget(self, request: web.Request) -> web.Response:
        """Sets the budget of a project, or of a user in it. There is one of each period."""
        org, project, user = _place(request)
        required_name("org", org)
        body = await read_json(request, BudgetBody)
        if body.week_start.lower() not in WEEKDAYS:
            raise Problem(422, "invalid", f"week_start: {body.week_start!r:.40} is none of {', '.join(WEEKDAYS)}")
        await self._ledger.accounts.balance(org)  # says it when there is no such org: a budget makes none
        state = await self._ledger.budgets.put(
            org, project, user, amount("credits", body.credits), **caller(request), if_tag=if_match(request),
            period=body.period, timezone=body.timezone, week_start=WEEKDAYS.index(body.week_start.lower()),
        )  # fmt: skip
        return answer(budget_shape(org, state), headers=etag(state.tag))

    async def delete_budget(self, request: web.Request) -> web.Response:
        """Removes all budgets of a project, or of a user in it, or only that of one period."""
        org, project, user = _place(request)
        removed = await self._ledger.budgets.remove(
            org, project, user, **caller(request), if_tag=if_match(request), period=_period(request)
        )
        if not removed:
            raise Problem(404, "unknown_budget", "There is no such budget.")
        return web.Response(status=204)


def _place(request: web.Request) -> tuple[str, str, str | None]:
    parts = request.match_info
    return parts["org"], parts["project"], parts.get("user")


def _period(request: web.Request) -> str | None:
    """Raises: Problem 422."""
    period = request.query.get("period") or None
    if period is not None and period not in PERIODS:
        raise Problem(422, "invalid", f"period: {period!r:.40} is none of {', '.join(PERIODS)}")
    return period
