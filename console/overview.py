"""The overview of an org: what it has, how long that lasts, where it went, what runs and what was refused."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from console import texts
from console.budget_bars import budget_bars
from console.desk import Desk, page_number
from console.periods import CUSTOM, links, read_period
from console.spending import spending
from ledger.errors import InvalidRequest
from ledger.refusal_text import only_text
from ledger.running import running_page

_RUNNING_AT_ONCE: Final = 10
_REFUSALS: Final = 10
_BUDGETS: Final = 6


class Overview:
    """One page."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """Raises: UnknownOrg, LedgerUnavailable."""
        ledger, pages = self._desk.ledger, self._desk.pages
        org, zone = request.match_info["org"], pages.zone(request)
        balance = await ledger.accounts.balance(org)
        problem = ""
        try:
            period = read_period(request.query, zone, ledger.clock())
            spent = await spending(self._desk, org, period, zone)
        except InvalidRequest as error:
            problem = str(error)
            period = read_period({}, zone, ledger.clock())
            spent = await spending(self._desk, org, period, zone)
        number = page_number(request)
        async with self._desk.turns:
            running = await running_page(ledger, org, (number - 1) * _RUNNING_AT_ONCE, _RUNNING_AT_ONCE)
        budgets = budget_bars(await ledger.budgets.states(org))
        return pages.render(
            request,
            "overview.html",
            status=422 if problem else 200,
            balance=balance,
            stage=texts.STAGES.get(balance.stage, (balance.stage, "")),
            exhausted_us=balance.exhausted_us,
            restricted=[
                (only_text(scope.presets, scope.clusters), micro)
                for scope, micro in sorted(balance.restricted.items())
                if micro > 0
            ],
            problem=problem,
            period=period,
            custom=CUSTOM,
            period_links=links(period),
            asked_from=request.query.get("from", ""),
            asked_to=request.query.get("to", ""),
            spent=spent,
            budgets=budgets[:_BUDGETS],
            budgets_more=max(0, len(budgets) - _BUDGETS),
            running=running,
            running_from=(number - 1) * _RUNNING_AT_ONCE,
            first_page=f"?{urlencode(period.query())}#running" if number > 1 else None,
            next_page=(
                f"?{urlencode({**period.query(), 'page': str(number + 1)})}#running"
                if running.count > number * _RUNNING_AT_ONCE
                else None
            ),
            refusals=await ledger.refusals.latest(org, _REFUSALS),
            may_change=self._desk.may_change(request),
            sells=self._desk.till is not None,
        )
