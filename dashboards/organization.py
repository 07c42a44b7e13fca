"""Organization: what an org has, how long it lasts, and where it goes."""

from __future__ import annotations

from dashboards import page as p
from dashboards.figures import EXACT, apps, budgets, burn_lines, burning, resources, spenders, spent, spent_bars
from dashboards.layout import Grid, PanelJson
from dashboards.panels import lines, ranking, stat
from dashboards.promql import changed, gauge, named, total
from dashboards.recorded import BALANCE_USED, RUNWAY
from dashboards.tables import Column, table
from dashboards.units import (
    ANY_IS_BAD,
    BALANCE,
    COUNT,
    CREDITS,
    MOMENT,
    SECONDS,
    SHARE,
    USED,
    named_values,
)
from dashboards.units import RUNWAY as RUNWAY_STEPS
from dashboards.units import (
    STAGE as STAGE_STEPS,
)
from exporter.metric_names import (
    AVAILABLE,
    CREDIT_LINE,
    EXHAUSTION,
    EXPIRED,
    GRANTED,
    HELD,
    HOLDS,
    OVERDRAFT,
    RESTORED,
    SPENT,
    STAGE,
    STAGES,
    WITHDRAWN,
)

KEPT = ("cluster", "org")


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    variables = [p.Variable("cluster", several=True), p.Variable("org")]
    scope = p.scope(variables)
    grid = Grid()
    grid.line(
        4,
        stat(
            "Available",
            "Credits the org can still spend on new work: granted less taken back, expired, spent and held. Of all "
            "clusters.",
            gauge(AVAILABLE, scope),
            CREDITS,
            BALANCE,
            none="unlimited",
        ),
        stat(
            "Runway",
            "How long the credits last at the present burn rate. It turns orange and red where the alerts fire.",
            gauge(RUNWAY, scope, how="min"),
            SECONDS,
            RUNWAY_STEPS,
            none="nothing runs",
        ),
        burning(scope, "this org"),
        spent(scope, "this org"),
        stat(
            "Used up",
            "Share of the most the org had available in the last 30 days that is gone now, also by refunds and "
            "transfers.",
            gauge(BALANCE_USED, scope, how="max"),
            SHARE,
            USED,
            none="unlimited",
        ),
        stat(
            "Stage",
            "How far exhaustion went: warn, block new work, grace, suspend or stop. A top-up ends it.",
            gauge(STAGE, scope, how="max"),
            COUNT,
            STAGE_STEPS,
            none="none",
            mappings=named_values(STAGES),
        ),
    )
    grid.line(
        3,
        stat(
            "Granted",
            f"Credits granted over the time range, before anything was taken back. {EXACT}",
            total(GRANTED, scope),
            CREDITS,
        ),
        stat(
            "Taken back",
            "Credits that refunds of payments, corrections and transfers to other orgs took over the time range, less "
            f"what of them was given again. {EXACT}",
            f"{total(WITHDRAWN, scope)} - {total(RESTORED, scope)}",
            CREDITS,
        ),
        stat("Expired", f"Credits of grants that expired unspent in it. {EXACT}", total(EXPIRED, scope), CREDITS),
        stat("Held", "Credits set aside for admitted and running work.", gauge(HELD, scope), CREDITS, none="none"),
    )
    grid.line(
        3,
        stat("Open holds", "Admitted work not yet charged.", gauge(HOLDS, scope), COUNT, none="none"),
        stat(
            "Overdraft",
            "Credits spent beyond what was granted. The alert fires once that is more than the org's credit line.",
            gauge(OVERDRAFT, scope),
            CREDITS,
            ANY_IS_BAD,
            none="none",
        ),
        stat(
            "Credit line",
            "Credits by which what is available may be below zero before new work is refused.",
            gauge(CREDIT_LINE, scope),
            CREDITS,
            none="none",
        ),
        stat(
            "Runs out at",
            "When the credits are gone at the present burn rate.",
            f"1000 * {gauge(EXHAUSTION, scope, how='min')}",
            MOMENT,
            none="nothing runs",
        ),
    )
    grid.line(
        9,
        lines(
            "Balance",
            "Credits available and set aside at each moment.",
            [(gauge(AVAILABLE, scope), "available"), (gauge(HELD, scope), "held")],
            CREDITS,
        ),
        spent_bars(scope, "project", "this org"),
        burn_lines(scope, "project", "this org"),
    )
    grid.line(10, spenders(scope, "project", p.PROJECT, KEPT), spenders(scope, "user", p.USER, KEPT, burn=False))
    grid.line(9, budgets(scope), resources(scope))
    granted = Column("Granted", total(GRANTED, scope, ["source"]), CREDITS)
    top = named(f"topk(10, {total(SPENT, scope, ['project', 'user'])})", "user")
    grid.line(
        8,
        apps(scope),
        table("Grants", f"Credits granted over the time range, by source. {EXACT}", ["source"], [granted]),
        ranking(
            "Top spenders",
            "The ten users in projects that spent most over the time range.",
            top,
            "{{project}} / {{user}}",
            CREDITS,
        ),
    )
    grants = p.changes("Grants", "Credits granted", changed(GRANTED, scope), "green", "{{source}}")
    about = "What an org has, how long it lasts, and where it goes."
    return p.page(p.ORGANIZATION, "Credits / Organization", about, variables, grid, [grants])
