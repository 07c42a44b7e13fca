"""Home: how the whole installation stands, and the way to everything else."""

from __future__ import annotations

from dashboards import page as p
from dashboards.alerts import firing
from dashboards.figures import EXACT, burning, spent, spent_bars, spent_column
from dashboards.layout import Grid, PanelJson
from dashboards.limits import RUNWAY_CRITICAL_HOURS, RUNWAY_WARNING_HOURS
from dashboards.panels import lines, stat, text
from dashboards.promql import Scope, gauge
from dashboards.recorded import BURN_BY_ORG, RUNWAY
from dashboards.tables import Column, counted, table
from dashboards.units import (
    ALL_BAD,
    ALL_ODD,
    ANY_IS_NOTED,
    ANY_IS_ODD,
    BURN,
    COUNT,
    CREDITS,
    SECONDS,
    named_values,
)
from dashboards.units import RUNWAY as RUNWAY_STEPS
from dashboards.units import STAGE as STAGE_STEPS
from exporter.metric_names import AVAILABLE, BURN_RATE, HELD, STAGE, STAGES, WORKLOADS

ABOUT = """\
Click an org or a cluster, then a project, then a user; the time range comes along. The menu *Credits* leads anywhere. \
`credits usage` gives the same exact totals down to the single job."""


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    everything = Scope()
    short, critical = (
        f"count({RUNWAY.name} < {hours * 3600})" for hours in (RUNWAY_WARNING_HOURS, RUNWAY_CRITICAL_HOURS)
    )
    ring, loud, louder = (f"count({firing(*of)})" for of in ((), ("warning", "critical"), ("critical",)))
    grid = Grid()
    grid.line(
        4,
        spent(everything, "everybody"),
        burning(everything, "everybody"),
        stat(
            "Available",
            "Credits of all orgs together: granted less taken back, expired, spent and held.",
            gauge(AVAILABLE, everything),
            CREDITS,
            none="no orgs",
        ),
        stat(
            "Orgs running out",
            f"Orgs whose credits last less than {RUNWAY_WARNING_HOURS} hours at their present burn rate; red if those "
            f"of one last less than {RUNWAY_CRITICAL_HOURS}.",
            f"({short} or vector(0)) unless on () {critical}",
            COUNT,
            ANY_IS_ODD,
            instead=[(f"{short} and on () {critical}", ALL_BAD)],
        ),
        stat(
            "Alerts firing",
            "Alerts of Apolo Credits that fire at the end of the time range; the table below names them. Orange: one "
            "of them is a warning; red: one is critical.",
            f"({ring} or vector(0)) unless on () {loud}",
            COUNT,
            ANY_IS_NOTED,
            instead=[
                (f"{ring} and on () {loud} unless on () {louder}", ALL_ODD),
                (f"{ring} and on () {louder}", ALL_BAD),
            ],
            link=p.to_dashboard("Exporter health", p.EXPORTER),
        ),
        text("About", "How to find your way.", ABOUT),
    )
    burn = gauge(BURN_BY_ORG, everything, ["org"])
    stages = gauge(STAGE, everything, ["org"], how="max")
    orgs = [
        spent_column(everything, ["org"]),
        Column("Available", gauge(AVAILABLE, everything, ["org"]), CREDITS),
        Column("Held", gauge(HELD, everything, ["org"]), CREDITS),
        Column("Burning", burn, BURN),
        Column("Runway", gauge(RUNWAY, everything, ["org"], how="min"), SECONDS, RUNWAY_STEPS),
        Column("Stage", stages, COUNT, STAGE_STEPS, mappings=named_values(STAGES)),
    ]
    about = "What each org's work costs per hour at each moment."
    grid.line(
        9,
        spent_bars(everything, "org", "everybody"),
        lines("Burn rate by org", about, [(burn, "{{org}}")], BURN, stacked=True),
    )
    grid.line(
        10,
        table(
            "Orgs",
            f"Every org: spent over the time range, and its balance now. {EXACT} Click a name to open it.",
            ["org"],
            orgs,
            links={"org": p.drill("Open this org", p.ORGANIZATION, "org", [])},
        ),
    )
    clusters = [
        spent_column(everything, ["cluster"]),
        Column("Burning", gauge(BURN_RATE, everything, ["cluster"]), BURN),
        counted("Running", gauge(WORKLOADS, everything, ["cluster"])),
    ]
    grid.line(
        8,
        table(
            "Clusters",
            f"Every cluster: spent over the time range, and what runs now. {EXACT} Click a name to open it.",
            ["cluster"],
            clusters,
            links={"cluster": p.drill("Open this cluster", p.CLUSTER, "cluster", [])},
        ),
        table(
            "Alerts",
            "What fires now. The runbook says for each what it means and what to do.",
            ["alertname", "severity", "org", "source"],
            [counted("Firing", f"sum by (alertname, severity, org, source) ({firing()})")],
        ),
    )
    return p.page(p.HOME, "Credits / Home", "How all orgs and clusters stand.", [], grid)
