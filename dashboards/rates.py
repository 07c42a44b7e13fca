"""Rates: what is in force, when it changed, and what has none."""

from __future__ import annotations

from dashboards import page as p
from dashboards.figures import resources
from dashboards.layout import Grid, PanelJson
from dashboards.panels import lines, stat
from dashboards.promql import changed, each, gauge
from dashboards.tables import Column, counted, table
from dashboards.units import ANY_IS_ODD, COUNT, MOMENT, RATE, STORAGE_RATE, UP, named_values
from exporter.metric_names import RATE as IN_FORCE
from exporter.metric_names import RELOAD_OK, RELOAD_TIME, UNPRICED

HOURLY, STORED = 'kind!="storage"', 'kind="storage"'


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    variables = [p.Variable("cluster", several=True)]
    scope = p.scope(variables)
    grid = Grid()
    grid.line(
        4,
        stat(
            "Configuration",
            "Whether the rates and settings on disk are the ones in force. A refused file changes nothing; the "
            "log of the exporter says what is wrong and where.",
            f"min({RELOAD_OK.name})",
            COUNT,
            UP,
            none="no exporter",
            mappings=named_values(["refused", "in force"]),
        ),
        stat(
            "Read at",
            "When the configuration in force was read.",
            f"1000 * min({RELOAD_TIME.name})",
            MOMENT,
            none="no exporter",
        ),
        stat(
            "Rates",
            "How many presets, apps and storage classes have a rate.",
            f"count({each(IN_FORCE, scope)})",
            COUNT,
            none="none",
        ),
        stat(
            "Without a rate",
            "Workloads that run now on something that has no rate. They cost nothing.",
            gauge(UNPRICED, scope),
            COUNT,
            ANY_IS_ODD,
            none="none",
        ),
    )
    grid.line(
        9,
        lines(
            "Rates of presets and apps",
            "Credits per hour at each moment. A step is a change of the rate; it never touches time before it.",
            [(each(IN_FORCE, scope, HOURLY), "{{cluster}} {{kind}} {{resource}}")],
            RATE,
            stepped=True,
        ),
        lines(
            "Rates of storage",
            "Credits per GB-hour at each moment; 1 GB is 10^9 bytes.",
            [(each(IN_FORCE, scope, STORED), "{{cluster}} {{resource}}")],
            STORAGE_RATE,
            stepped=True,
        ),
    )
    keys = ["cluster", "kind", "resource"]
    grid.line(
        10,
        table(
            "Presets and apps",
            "Rates in force, in credits per hour.",
            keys,
            [Column("Rate", each(IN_FORCE, scope, HOURLY), RATE)],
        ),
        table(
            "Storage",
            "Rates in force, in credits per GB-hour; 1 GB is 10^9 bytes.",
            keys,
            [Column("Rate", each(IN_FORCE, scope, STORED), STORAGE_RATE)],
        ),
        table(
            "Without a rate",
            "Presets, apps and storage classes in use that have no rate, and the workloads on them now.",
            keys,
            [counted("Running", f"{gauge(UNPRICED, scope, keys)} > 0")],
        ),
    )
    grid.line(9, resources(scope))
    marks = p.changes(
        "Rate changes", "Rate changed", changed(IN_FORCE, scope), "purple", "{{cluster}}: {{kind}} {{resource}}"
    )
    return p.page(p.RATES, "Credits / Rates", "What is in force, and when it changed.", variables, grid, [marks])
