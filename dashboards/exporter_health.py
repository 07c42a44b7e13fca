"""Exporter health: whether what the other dashboards show is complete and fresh."""

from __future__ import annotations

from dashboards import page as p
from dashboards.figures import EXACT
from dashboards.layout import Grid, PanelJson
from dashboards.limits import ENFORCER_JOB, EXPORTER_JOB
from dashboards.panels import lines, stat, timeline
from dashboards.promql import Scope, each, gauge, total
from dashboards.tables import Column, counted, table
from dashboards.units import (
    ANY_IS_BAD,
    ANY_IS_ODD,
    COUNT,
    CREDITS,
    LAG,
    LATENCY,
    MOMENT,
    SECONDS,
    STALE,
    UP,
    VERIFIED,
    named_values,
)
from exporter.metric_names import (
    CHARGE_BACK_PENDING,
    CHARGE_BACK_REFUNDED,
    ENFORCER_LEDGER_UP,
    LEDGER_DRIFT,
    LEDGER_EPOCH,
    LEDGER_UP,
    LEDGER_VERIFIED,
    METER_LAG,
    RELOAD_OK,
    ROUND_DURATION,
    SOURCE_DURATION,
    SOURCE_FAILURES,
    SOURCE_LAST_SUCCESS,
    SOURCE_UP,
    UNBILLABLE,
    UNPRICED,
)

DOWN_UP = named_values(["down", "up"])


def _process(title: str, job: str, about: str) -> PanelJson:
    return stat(title, about, f'min(up{{job="{job}"}})', COUNT, UP, none="not scraped", mappings=DOWN_UP)


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    scope = Scope()
    grid = Grid()
    grid.line(
        4,
        _process("Exporter", EXPORTER_JOB, "Whether Prometheus reaches the exporter. Without it nothing is charged."),
        _process("Enforcer", ENFORCER_JOB, "Whether Prometheus reaches the enforcer, which answers schedulers."),
        stat(
            "Sources down",
            "Schedulers whose last round failed; they are charged once they are back.",
            f"count({each(SOURCE_UP, scope)} == 0) or vector(0)",
            COUNT,
            ANY_IS_BAD,
        ),
        stat(
            "Lag",
            "How old the instant is up to which the latest source is charged. The totals of all dashboards end there.",
            gauge(METER_LAG, scope, how="max"),
            SECONDS,
            LAG,
            none="no source",
        ),
        stat(
            "Configuration",
            "Whether the configuration on disk is the one in force. A refused file changes nothing.",
            f"min({RELOAD_OK.name})",
            COUNT,
            UP,
            none="no exporter",
            mappings=named_values(["refused", "in force"]),
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
        4,
        stat(
            "Ledger",
            "Whether the ledger's server answered every process that asked it last.",
            f"min({LEDGER_UP.name} or {ENFORCER_LEDGER_UP.name})",
            COUNT,
            UP,
            none="not asked",
            mappings=DOWN_UP,
        ),
        stat(
            "Failed rounds",
            "Rounds that failed in a row, of the source that is worst off.",
            gauge(SOURCE_FAILURES, scope, how="max"),
            COUNT,
            ANY_IS_ODD,
            none="no source",
        ),
        stat(
            "Ledger drift",
            "Credits by which totals and their parts differed at the last check; anything but 0 is a fault.",
            f"abs({gauge(LEDGER_DRIFT, scope, how='max')})",
            CREDITS,
            ANY_IS_BAD,
            none="not checked",
        ),
        stat(
            "Since the last check",
            "How long ago the ledger's totals were checked against their parts.",
            f"time() - {gauge(LEDGER_VERIFIED, scope, how='max')}",
            SECONDS,
            VERIFIED,
            none="not checked",
        ),
        stat(
            "Could not be charged",
            f"Workloads that a source listed and that could not be charged, in the time range. {EXACT}",
            total(UNBILLABLE, scope),
            COUNT,
            ANY_IS_ODD,
        ),
        stat(
            "Ledger since",
            "The instant from which this ledger charges. Ranges that begin before it count from it.",
            f"1000 * {gauge(LEDGER_EPOCH, scope, how='min')}",
            MOMENT,
            none="no exporter",
        ),
    )
    grid.line(
        8,
        timeline(
            "Sources",
            "Whether each source gave a usable snapshot at each moment.",
            each(SOURCE_UP, scope),
            "{{source}}",
            COUNT,
            UP,
            DOWN_UP,
        ),
        lines(
            "Lag by source",
            "How far behind the charges of each source are. The line is where the alert fires.",
            [(each(METER_LAG, scope), "{{source}}")],
            SECONDS,
            LAG,
        ),
    )
    grid.line(
        8,
        lines(
            "Time to fetch",
            "How long each source's last answer took.",
            [(each(SOURCE_DURATION, scope), "{{source}}")],
            LATENCY,
        ),
        lines(
            "Time of a round",
            "How long each source's last round took, from asking the scheduler to the commit in the ledger.",
            [(each(ROUND_DURATION, scope), "{{source}}")],
            LATENCY,
        ),
    )
    sources = [
        Column("Up", each(SOURCE_UP, scope), COUNT, UP, mappings=DOWN_UP),
        Column("Since success", f"time() - {each(SOURCE_LAST_SUCCESS, scope)}", SECONDS, STALE),
        Column("Lag", each(METER_LAG, scope), SECONDS, LAG),
        Column("Failed rounds", each(SOURCE_FAILURES, scope), COUNT, ANY_IS_ODD),
        Column("Fetch", each(SOURCE_DURATION, scope), LATENCY),
        Column("Round", each(ROUND_DURATION, scope), LATENCY),
        Column("Not passed on", gauge(CHARGE_BACK_PENDING, scope, ["source"], how="max"), CREDITS),
        Column("Given back here only", each(CHARGE_BACK_REFUNDED, scope), CREDITS),
    ]
    rows = total(UNBILLABLE, scope, UNBILLABLE.labels)
    keys = UNPRICED.labels
    grid.line(
        7,
        table("Sources now", "Every source now. The colours change where the alerts fire.", ["source"], sources),
    )
    grid.line(
        8,
        (
            table(
                "Could not be charged",
                f"Workloads that could not be charged in the time range, by source and reason. {EXACT}",
                UNBILLABLE.labels,
                [counted("Workloads", rows)],
            ),
            12,
        ),
        (
            table(
                "Without a rate",
                "Presets, apps and storage classes in use without a rate, and the workloads on them now.",
                keys,
                [counted("Running", f"{gauge(UNPRICED, scope, keys)} > 0")],
            ),
            12,
        ),
    )
    about = "Whether what the other dashboards show is complete and fresh."
    return p.page(p.EXPORTER, "Credits / Exporter health", about, [], grid)
