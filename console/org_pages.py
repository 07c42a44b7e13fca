"""All pages of an org, with who may see and who may use them."""

from __future__ import annotations

from aiohttp import web

from api.routes import Route
from console.budget_pages import BudgetPages
from console.buy_pages import BuyPages
from console.desk import CHANGE, SEE, Desk
from console.history_pages import HistoryPages
from console.overview import Overview
from console.pages import org_url
from console.usage_pages import UsagePages
from console.zone_page import ZonePage


def org_calls(desk: Desk) -> list[Route]:
    """The calls of these pages."""
    overview, usage, history = Overview(desk), UsagePages(desk), HistoryPages(desk)
    budgets, buy, zone = BudgetPages(desk), BuyPages(desk), ZonePage(desk.pages)
    org = "/console/orgs/{org}"

    async def open_org(request: web.Request) -> web.Response:
        """Leads to the org that was typed in."""
        name = request.query.get("org", "").strip()
        return desk.pages.redirect(request, org_url(name) if name else "/console")

    calls = [
        ("GET", "/console/open", open_org, SEE),
        ("GET", "/console/zone", zone.page, SEE),
        ("POST", "/console/zone", zone.save, SEE),
        ("GET", org, overview.page, SEE),
        ("GET", f"{org}/usage", usage.page, SEE),
        ("GET", f"{org}/grants", history.grants, SEE),
        ("GET", f"{org}/journal", history.journal, SEE),
        ("GET", f"{org}/budgets", budgets.page, SEE),
        ("POST", f"{org}/budgets", budgets.save, CHANGE),
        ("GET", f"{org}/budgets/remove", budgets.ask, CHANGE),
        ("POST", f"{org}/budgets/remove", budgets.remove, CHANGE),
        ("GET", f"{org}/buy", buy.page, CHANGE),
        ("POST", f"{org}/buy", buy.buy, CHANGE),
    ]
    return [Route(method, path, handler, roles, "session") for method, path, handler, roles in calls]
