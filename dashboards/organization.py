"""Organization: what an org has, how long it lasts, and where it goes."""

from __future__ import annotations

from dashboards import page as p
from dashboards.alerts import overdrawn
from dashboards.figures import EXACT, apps, budgets, burn_lines, burning, resources, spenders, spent, spent_bars
from dashboards.layout import Grid, PanelJson
from dashboards.limits import PEAK_DAYS
from dashboards.panels import lines, ranking, stat
from dashboards.promql import changed, each, gauge, named, total
from dashboards.recorded import BALANCE_USED, RUNWAY
from dashboards.tables import Column, table
from dashboards.units import (
    ALL_BAD,
    ALL_WELL,
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
    available = each(AVAILABLE, scope)
    used_up = f"{available} + on (org) {each(CREDIT_LINE, scope)} <= 0"
    beyond_line = overdrawn(scope)
    grid = Grid()
    grid.line(
        4,
        stat(
            "Available",
            "Granted less taken back, expired, spent and held, on all clusters. It turns red where new work is "
            "refused: at nothing, or as far below zero as the org's credit line goes.",
            f"{available} unless on (org) ({used_up})",
            CREDITS,
            ALL_WELL,
            none="unlimited",
            instead=[(f"{available} and on (org) ({used_up})", ALL_BAD)],
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
            "Share of what the grants gave that still have something left that is gone now, also by refunds and "
            f"transfers; or of the most that was available in the last {PEAK_DAYS} days, where that was more.",
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
            "Credits spent beyond what was granted. It turns red where the alert fires: once that is more than the "
            "org's credit line.",
            f"{each(OVERDRAFT, scope)} unless on (org) ({beyond_line})",
            CREDITS,
            ALL_WELL,
            none="none",
            instead=[(beyond_line, ALL_BAD)],
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
