"""User: what one person spent, in which projects and on what."""

from __future__ import annotations

from dashboards import page as p
from dashboards.figures import apps, budgets, resources, shares, spenders, spent, spent_bars
from dashboards.layout import Grid, PanelJson
from dashboards.panels import stat
from dashboards.promql import Scope, gauge, total
from dashboards.recorded import BUDGET_USED
from dashboards.units import COUNT, CREDITS, SHARE, USED
from exporter.metric_names import BUDGET_REMAINING, SPENT


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    variables = [
        p.Variable("cluster", several=True),
        p.Variable("org"),
        p.Variable("project", several=True),
        p.Variable("user"),
    ]
    scope = p.scope(variables)
    # Everybody in the same projects, for comparison.
    all_users = Scope({label: matcher for label, matcher in scope.matchers.items() if label != "user"})
    mine, ours = total(SPENT, scope), total(SPENT, all_users)
    grid = Grid()
    grid.line(
        4,
        spent(scope, "this user"),
        stat(
            "Share of the projects",
            "This user's part of all that the chosen projects spent over the time range.",
            f"{mine} / ({ours} > 0)",
            SHARE,
            none="nothing spent",
        ),
        stat(
            "Budget used",
            "Share of the user's budget that is used up in its current period; the tightest where there are several.",
            gauge(BUDGET_USED, scope, how="max"),
            SHARE,
            USED,
            none="no budget",
        ),
        stat(
            "Budget left",
            "Credits the user's budget still allows in its current period; the tightest where there are several.",
            gauge(BUDGET_REMAINING, scope, how="min"),
            CREDITS,
            none="no budget",
        ),
        stat(
            "Projects",
            "In how many of the chosen projects the user spent anything over the time range.",
            f"count({total(SPENT, scope, ['project'])} > 0)",
            COUNT,
            none="none",
        ),
        stat(
            "On storage",
            "Credits this user's storage cost over the time range.",
            total(SPENT, scope, (), 'kind="storage"'),
            CREDITS,
        ),
    )
    grid.line(9, (spent_bars(scope, "project", "this user"), 14), (shares(scope, "resource"), 10))
    grid.line(9, spent_bars(scope, "resource", "this user"))
    grid.line(9, spenders(scope, "project", p.PROJECT, ["cluster", "org"], burn=False), budgets(scope))
    grid.line(9, resources(scope, running=False), apps(scope))
    title = "What one person spent, in which projects and on what."
    return p.page(p.USER, "Credits / User", title, variables, grid)
