"""Project: what a project spends, who spends it, and what its budget leaves."""

from __future__ import annotations

from dashboards import page as p
from dashboards.figures import apps, budgets, burn_lines, burning, resources, shares, spenders, spent, spent_bars
from dashboards.layout import Grid, PanelJson
from dashboards.panels import stat
from dashboards.promql import gauge
from dashboards.recorded import BUDGET_USED
from dashboards.units import BYTES, COUNT, CREDITS, SHARE, USED
from exporter.metric_names import BUDGET_REMAINING, STORAGE_BYTES, WORKLOADS

KEPT = ("cluster", "org", "project")
OWN = 'user=""'
"""Budgets of the project itself have no user."""


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    variables = [p.Variable("cluster", several=True), p.Variable("org"), p.Variable("project")]
    scope = p.scope(variables)
    grid = Grid()
    grid.line(
        4,
        spent(scope, "this project"),
        burning(scope, "this project"),
        stat(
            "Budget used",
            "Share of the project's own budget that is used up in its current period; the tightest one where "
            "there are several.",
            gauge(BUDGET_USED, scope, (), OWN, how="max"),
            SHARE,
            USED,
            none="no budget",
        ),
        stat(
            "Budget left",
            "Credits the project's own budget still allows in its current period; the tightest one where there "
            "are several.",
            gauge(BUDGET_REMAINING, scope, (), OWN, how="min"),
            CREDITS,
            none="no budget",
        ),
        stat("Running", "Workloads that are billed now.", gauge(WORKLOADS, scope), COUNT, none="nothing runs"),
        stat("Stored", "Bytes that are billed now.", gauge(STORAGE_BYTES, scope), BYTES, none="nothing stored"),
    )
    grid.line(9, (spent_bars(scope, "user", "this project"), 14), (shares(scope, "user"), 10))
    grid.line(8, burn_lines(scope, "cluster", "this project"), spent_bars(scope, "resource", "this project"))
    grid.line(10, spenders(scope, "user", p.USER, KEPT, burn=False), budgets(scope))
    grid.line(9, resources(scope), apps(scope))
    title = "What a project spends, who spends it, and what its budget leaves."
    return p.page(p.PROJECT, "Credits / Project", title, variables, grid)
