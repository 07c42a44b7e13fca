"""Panels that several dashboards show, each for its own scope."""

from __future__ import annotations

from collections.abc import Sequence

from dashboards.layout import PanelJson
from dashboards.page import drill
from dashboards.panels import bars, lines, share, stat
from dashboards.promql import Scope, gauge, named, total, trend
from dashboards.recorded import BUDGET_USED
from dashboards.tables import Column, counted, table
from dashboards.units import BURN, CREDITS, SHARE, USED
from exporter.metric_names import BUDGET_LIMIT, BUDGET_REMAINING, BURN_RATE, SPENT, WORKLOADS

EXACT = (
    "The difference of the ledger's own counters between the end and the start of the time range: exact, not "
    "extrapolated. A charge counts when it was booked, which is seconds after the work unless a source was away."
)


def spent(scope: Scope, whose: str) -> PanelJson:
    """Credits spent over the range."""
    return stat("Spent", f"Credits that {whose} spent over the time range. {EXACT}", total(SPENT, scope), CREDITS)


def burning(scope: Scope, whose: str) -> PanelJson:
    """Credits an hour now."""
    about = f"What all that runs now for {whose} costs, in credits per hour."
    return stat("Burning", about, gauge(BURN_RATE, scope), BURN, none="nothing runs")


def burn_lines(scope: Scope, label: str, whose: str) -> PanelJson:
    """Credits an hour over time."""
    about = f"What {whose} cost per hour at each moment, by {label}. Gaps are times without an exporter."
    return lines(
        f"Burn rate by {label}", about, [(gauge(BURN_RATE, scope, [label]), f"{{{{{label}}}}}")], BURN, stacked=True
    )


def spent_bars(scope: Scope, label: str, whose: str) -> PanelJson:
    """Credits spent per interval."""
    about = f"Credits that {whose} spent in each interval, by {label}."
    return bars(f"Spent by {label}", about, [(named(trend(SPENT, scope, [label]), label), f"{{{{{label}}}}}")], CREDITS)


def shares(scope: Scope, label: str) -> PanelJson:
    """How what was spent is shared out."""
    about = f"How the credits spent over the time range are shared out by {label}."
    expr = named(total(SPENT, scope, [label]), label)
    return share(f"Share by {label}", about, expr, f"{{{{{label}}}}}", CREDITS)


def spent_column(scope: Scope, keys: Sequence[str], *extra: str) -> Column:
    """Credits spent over the range, for each row."""
    return Column("Spent", total(SPENT, scope, keys, *extra), CREDITS)


def spenders(scope: Scope, label: str, uid: str, kept: Sequence[str], burn: bool = True) -> PanelJson:
    """Who spent how much, each a link to its dashboard."""
    columns = [spent_column(scope, [label])]
    if burn:
        columns.append(Column("Burning", gauge(BURN_RATE, scope, [label]), BURN))
        columns.append(counted("Running", gauge(WORKLOADS, scope, [label])))
    about = f"Each {label} with what it spent over the time range{' and what it runs now' if burn else ''}. {EXACT}"
    link = drill(f"Open this {label}", uid, label, kept)
    return table(f"{label.capitalize()}s", about + " Click a name to open it.", [label], columns, links={label: link})


def resources(scope: Scope, running: bool = True) -> PanelJson:
    """What the credits went to; what runs now is not known by user."""
    about = f"Presets, apps and storage classes with what was spent on each over the time range. {EXACT}"
    keys = ["cluster", "kind", "resource"]
    columns = [spent_column(scope, keys)]
    if running:
        columns.append(counted("Running", gauge(WORKLOADS, scope, keys)))
    return table("Presets and storage", about, keys, columns)


def apps(scope: Scope) -> PanelJson:
    """What apps cost, presets included."""
    about = f"Apps with what was spent on each over the time range, the presets they run on included. {EXACT}"
    return table("Apps", about, ["app"], [spent_column(scope, ["app"], 'app!=""')])


def budgets(scope: Scope, *extra: str) -> PanelJson:
    """Budgets in their current periods."""
    keys = ["project", "user", "period"]
    columns = [
        Column("Used", gauge(BUDGET_USED, scope, keys, *extra, how="max"), SHARE, USED, gauge=True),
        Column("Left", gauge(BUDGET_REMAINING, scope, keys, *extra, how="max"), CREDITS),
        Column("Limit", gauge(BUDGET_LIMIT, scope, keys, *extra, how="max"), CREDITS),
    ]
    about = (
        "Budgets of projects, and of users in them, in the period they are in at the end of the time range. "
        "A row with user (none) caps the whole project. The colours change where the alerts fire."
    )
    return table("Budgets", about, keys, columns)
