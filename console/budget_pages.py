"""Budgets of an org: bars for everybody, and forms for those who may change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from console import texts
from console.budget_bars import PERIOD_WORDS, budget_bars
from console.desk import Desk
from console.pages import org_url
from console.refused import beside
from console.typed import typed_credits
from console.usage_pages import suggested_names
from ledger.admission_shapes import WEEKDAYS
from ledger.budget_store import BudgetState
from ledger.errors import Changed, InvalidRequest
from ledger.money import AmountError, format_micro
from ledger.names import NAME_MAX, is_name
from ledger.periods import PERIODS

_PERIOD_TITLES: Final = {"day": "Day", "week": "Week", "month": "Month", "total": "In all, for ever"}
_CHANGED: Final = (
    "somebody else changed this budget meanwhile. The list shows it as it is now; save again to set it all the same."
)
_EMPTY: Final = {
    "project": "", "user": "", "credits": "", "period": "month", "timezone": "UTC", "week_start": "monday",
    "was_project": "", "was_user": "", "tag": "",
}  # fmt: skip


class BudgetPages:
    """The list with its form, and the page that asks before a budget is removed."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """`project`, `user` and `period` in the address: the form begins with that budget. Raises: UnknownOrg."""
        wanted = {name: request.query.get(name, "") for name in ("project", "user", "period")}
        values = {**_EMPTY, "timezone": self._desk.pages.zone(request)}
        for state in await self._desk.ledger.budgets.states(request.match_info["org"]):
            if _is(state, wanted):
                values = _values(state)
        return await self._list(request, values, {})

    async def save(self, request: web.Request) -> web.Response:
        """Sets a budget. Raises: web.HTTPForbidden, LedgerUnavailable."""
        form = await self._desk.pages.sessions.check_csrf(request)
        org = request.match_info["org"]
        await self._desk.ledger.accounts.balance(org)  # no budget makes an org
        values = {name: str(form.get(name, default)).strip() for name, default in _EMPTY.items()}
        errors: dict[str, str] = {}
        micro = _credits(values["credits"], errors)
        _check(values, errors)
        if not errors:
            is_same = (values["was_project"], values["was_user"]) == (values["project"], values["user"])
            try:
                await self._desk.ledger.budgets.put(
                    org, values["project"], values["user"] or None, micro, **self._desk.signed(request),
                    if_tag=values["tag"] if is_same else None, period=values["period"], timezone=values["timezone"],
                    week_start=WEEKDAYS.index(values["week_start"]),
                )  # fmt: skip
            except Changed:
                errors[""] = _CHANGED
                values["tag"] = ""
            except InvalidRequest as error:
                field, text = beside(error, {name: name for name in values})
                errors[field] = text
        if errors:
            return await self._list(request, values, errors)
        said = f"The budget of {_whose(values)} is {format_micro(micro)} credits {PERIOD_WORDS[values['period']]}."
        return self._desk.pages.redirect(request, org_url(org, "budgets"), said)

    async def ask(self, request: web.Request) -> web.Response:
        """Asks before a budget is removed. Raises: web.HTTPNotFound where there is none."""
        state = await self._find(request, request.query)
        return self._desk.pages.render(
            request, "budget_remove.html", state=state, values=_values(state), bar=budget_bars([state])[0]
        )

    async def remove(self, request: web.Request) -> web.Response:
        """Removes a budget. Raises: web.HTTPForbidden; web.HTTPNotFound where there is none (any more)."""
        form = await self._desk.pages.sessions.check_csrf(request)
        org = request.match_info["org"]
        budget = (await self._find(request, form)).budget
        try:
            await self._desk.ledger.budgets.remove(
                org, budget.project, budget.user, **self._desk.signed(request), if_tag=str(form.get("tag", "")),
                period=budget.period,
            )  # fmt: skip
        except Changed:
            said = "Nothing was removed: somebody else changed this budget meanwhile. Look at it again."
            return self._desk.pages.redirect(request, org_url(org, "budgets"), said, kind="bad")
        said = f"The budget of {_whose({'project': budget.project, 'user': budget.user or ''})} is removed."
        return self._desk.pages.redirect(request, org_url(org, "budgets"), said)

    async def _find(self, request: web.Request, wanted: Mapping[str, Any]) -> BudgetState:
        for state in await self._desk.ledger.budgets.states(request.match_info["org"]):
            if _is(state, wanted):
                return state
        raise web.HTTPNotFound(text="There is no such budget (any more).")

    async def _list(self, request: web.Request, values: Mapping[str, str], errors: Mapping[str, str]) -> web.Response:
        org = request.match_info["org"]
        await self._desk.ledger.accounts.balance(org)  # says it when there is no such org
        bars = budget_bars(await self._desk.ledger.budgets.states(org))
        places = [urlencode(_key(bar.state)) for bar in bars]
        return self._desk.pages.render(
            request,
            "budgets.html",
            status=422 if errors else 200,
            bars=list(zip(bars, places, strict=True)),
            values=values,
            errors=errors,
            may_change=self._desk.may_change(request),
            periods=[(name, _PERIOD_TITLES[name]) for name in PERIODS],
            weekdays=[(day, day.capitalize()) for day in WEEKDAYS],
            zones=texts.zones(),
            suggested=await suggested_names(self._desk.ledger, org),
        )


def _key(state: BudgetState) -> dict[str, str]:
    budget = state.budget
    return {"project": budget.project, "user": budget.user or "", "period": budget.period}


def _is(state: BudgetState, wanted: Mapping[str, Any]) -> bool:
    return all(wanted.get(name, "") == value for name, value in _key(state).items())


def _values(state: BudgetState) -> dict[str, str]:
    budget = state.budget
    return {
        "was_project": budget.project, "was_user": budget.user or "", "tag": state.tag,
        **_key(state), "credits": format_micro(budget.limit_micro), "timezone": budget.timezone,
        "week_start": WEEKDAYS[budget.week_start],
    }  # fmt: skip


def _credits(text: str, errors: dict[str, str]) -> int:
    try:
        return typed_credits(text)
    except AmountError as error:
        errors["credits"] = str(error) if text else f"{error} 0 means that nothing may be spent."
        return 0


def _check(values: Mapping[str, str], errors: dict[str, str]) -> None:
    expected = f"Expected a name of 1 to {NAME_MAX} characters without control characters."
    if not is_name(values["project"]):
        errors["project"] = expected if values["project"] else "Which project?"
    if values["user"] and not is_name(values["user"]):
        errors["user"] = expected
    if values["period"] not in PERIODS:
        errors["period"] = f"Expected one of {', '.join(PERIODS)}."
    if values["week_start"] not in WEEKDAYS:
        errors["week_start"] = f"Expected one of {', '.join(WEEKDAYS)}."


def _whose(values: Mapping[str, str]) -> str:
    project = f"project {values['project']:.100}"
    return f"user {values['user']:.100} in {project}" if values["user"] else project
