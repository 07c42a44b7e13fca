"""Home: how the whole installation stands, and the way to everything else."""

from __future__ import annotations

from dashboards import page as p
from dashboards.alerts import alerts
from dashboards.figures import EXACT, burning, spent, spent_bars, spent_column
from dashboards.layout import Grid, PanelJson
from dashboards.limits import RUNWAY_WARNING_HOURS
from dashboards.panels import lines, stat, text
from dashboards.promql import Scope, gauge
from dashboards.recorded import BURN_BY_ORG, RUNWAY
from dashboards.tables import Column, counted, table
from dashboards.units import ANY_IS_BAD, BALANCE, BURN, COUNT, CREDITS, NEUTRAL, SECONDS, named_values
from dashboards.units import RUNWAY as RUNWAY_STEPS
from exporter.metric_names import AVAILABLE, BURN_RATE, HELD, STAGE, STAGES, WORKLOADS

ABOUT = """\
Click an org or a cluster, then a project, then a user; the time range comes along. The menu *Credits* leads anywhere. \
`credits usage` gives the same exact totals down to the single job."""


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    everything = Scope()
    firing = f'ALERTS{{alertname=~"{"|".join(alert.name for alert in alerts())}",alertstate="firing"}}'
    short = f"count({RUNWAY.name} < {RUNWAY_WARNING_HOURS * 3600}) or vector(0)"
    grid = Grid()
    grid.line(
        4,
        spent(everything, "everybody"),
        burning(everything, "everybody"),
        stat(
            "Available",
            "Credits all orgs together can still spend: granted less expired, spent and held.",
            gauge(AVAILABLE, everything),
            CREDITS,
            BALANCE,
            none="no orgs",
        ),
        stat(
            "Orgs running out",
            f"Orgs whose credits last less than {RUNWAY_WARNING_HOURS} hours at their present burn rate.",
            short,
            COUNT,
            ANY_IS_BAD,
        ),
        stat(
            "Alerts firing",
            "Alerts of Apolo Credits that fire at the end of the time range; the table below names them.",
            f"count({firing}) or vector(0)",
            COUNT,
            ANY_IS_BAD,
            link=p.to_dashboard("Exporter health", p.EXPORTER),
        ),
        text("About", "How to find your way.", ABOUT),
    )
    burn = gauge(BURN_BY_ORG, everything, ["org"])
    orgs = [
        spent_column(everything, ["org"]),
        Column("Available", gauge(AVAILABLE, everything, ["org"]), CREDITS, BALANCE),
        Column("Held", gauge(HELD, everything, ["org"]), CREDITS),
        Column("Burning", burn, BURN),
        Column("Runway", gauge(RUNWAY, everything, ["org"], how="min"), SECONDS, RUNWAY_STEPS),
        Column("Stage", gauge(STAGE, everything, ["org"], how="max"), COUNT, NEUTRAL, mappings=named_values(STAGES)),
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
            [counted("Firing", f"sum by (alertname, severity, org, source) ({firing})")],
        ),
    )
    return p.page(p.HOME, "Credits / Home", "How all orgs and clusters stand.", [], grid)
