"""The panels all dashboards are made of: grafanalib's, with what this project wants everywhere.

grafanalib writes an older model in places; what it lacks goes through `extraJson`. Each function takes a title and
a description in plain words, and gives the panel as JSON without a place (see `layout`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from grafanalib._gen import DashboardEncoder
from grafanalib.core import Panel, PieChartv2, Stat, StateTimeline, Target, Text, TimeSeries

from dashboards.layout import PanelJson
from dashboards.units import FIGURE, NEUTRAL, Steps, Unit

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
NOT_KNOWN = "not known"
"""Shown for a total whose range begins before Prometheus' history of the ledger."""
TREND_STEP = "1h"
"""Trends of counters are differences of hourly checkpoints: no finer step."""
TREND_POINTS = 90
BY_NAME = {"mode": "palette-classic-by-name"}
"""A series has the same colour wherever its name is shown, whatever else is in the panel."""


def plain(thing: Any) -> Any:
    """grafanalib objects as plain JSON values, without what is None."""
    return _stripped(json.loads(json.dumps(thing, cls=DashboardEncoder)))


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        # The first threshold's value is null in Grafana's own files.
        return {k: _stripped(v) for k, v in value.items() if v is not None or (k == "value" and "color" in value)}
    return [_stripped(v) for v in value] if isinstance(value, list) else value


def panel(
    kind: Any, title: str, description: str, queries: Sequence[Any], extra: PanelJson, **fields: Any
) -> PanelJson:
    """A panel of a grafanalib class, without its keys that Grafana no longer knows."""
    made: PanelJson = plain(
        kind(
            title=title,
            description=description,
            dataSource=DATASOURCE if queries else None,
            targets=list(queries),
            editable=False,
            extraJson=extra,
            **fields,
        )
    )
    for key in ("editable", "error", "hideTimeOverride", "span"):
        made.pop(key, None)
    made["fieldConfig"].setdefault("overrides", [])
    return made


def targets(exprs: Sequence[tuple[str, str]], *, instant: bool, table: bool = False) -> list[PanelJson]:
    """Queries from (expression, legend), with ids A, B, C..."""
    made = []
    for ref, (expr, legend) in zip(ascii_uppercase, exprs, strict=False):
        target = Target(
            expr=expr,
            legendFormat=legend,
            refId=ref,
            instant=instant,
            datasource=DATASOURCE,
            format="table" if table else "time_series",
        ).to_json_data()
        kept = {k: target[k] for k in ("datasource", "expr", "format", "instant", "legendFormat", "refId")}
        made.append({**kept, "range": not instant, "editorMode": "code"})
    return made


def defaults(unit: Unit, steps: Steps, **more: Any) -> PanelJson:
    """Field defaults every panel with values has."""
    return {
        "unit": unit.id,
        "decimals": unit.decimals,
        "thresholds": {"mode": "absolute", "steps": steps},
        **more,
    }


def stat(
    title: str,
    description: str,
    expr: str,
    unit: Unit,
    steps: Steps = FIGURE,
    *,
    legend: str = "",
    none: str = NOT_KNOWN,
    mappings: Sequence[PanelJson] = (),
    link: PanelJson | None = None,
    instead: Sequence[tuple[str, Steps]] = (),
) -> PanelJson:
    """A big number, as of the end of the time range.

    `instead`: further expressions with colours of their own, for a colour that hangs on more than the number. At any
    time only one of all expressions has an answer.
    """
    links = {"links": [link]} if link else {}
    overrides = [
        {
            "matcher": {"id": "byFrameRefID", "options": ref},
            "properties": [{"id": "thresholds", "value": {"mode": "absolute", "steps": own}}],
        }
        for ref, (_, own) in zip(ascii_uppercase[1:], instead, strict=False)
    ]
    extra = {
        "fieldConfig": {
            "defaults": defaults(unit, steps, color={"mode": "thresholds"}, **links),
            "overrides": overrides,
        },
        "options": {"wideLayout": True, "showPercentChange": False},
    }
    return panel(
        Stat,
        title,
        description,
        targets([(expr, legend), *((other, legend) for other, _ in instead)], instant=True),
        extra,
        graphMode="none",
        colorMode="value",
        reduceCalc="lastNotNull",
        noValue=none,
        mappings=list(mappings),
        format=unit.id,
        thresholds=steps,
        textMode="value" if not legend else "value_and_name",
        maxDataPoints=None,
    )


def lines(
    title: str,
    description: str,
    exprs: Sequence[tuple[str, str]],
    unit: Unit,
    steps: Steps = NEUTRAL,
    *,
    stacked: bool = False,
    stepped: bool = False,
) -> PanelJson:
    """Gauges or rates over time; the lines of thresholds are drawn where there are any."""
    marks = "line" if len(steps) > 1 else "off"
    custom = {"axisBorderShow": False, "insertNulls": False, "axisCenteredZero": False, "axisColorMode": "text"}
    extra = {
        "fieldConfig": {"defaults": defaults(unit, steps, custom=custom, color=BY_NAME)},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
    }
    return panel(
        TimeSeries,
        title,
        description,
        targets(exprs, instant=False),
        extra,
        fillOpacity=20 if stacked else 8,
        lineWidth=1,
        showPoints="never",
        thresholdsStyleMode=marks,
        stacking={"mode": "normal" if stacked else "none", "group": "A"},
        maxDataPoints=None,
        interval="30s",
        lineInterpolation="stepAfter" if stepped else "linear",
        axisSoftMin=0,
        legendCalcs=["lastNotNull"],
        legendDisplayMode="table",
        unit=unit.id,
        scaleDistributionType="linear",
    )


def bars(title: str, description: str, exprs: Sequence[tuple[str, str]], unit: Unit) -> PanelJson:
    """What counters grew by in each interval, stacked; each bar ends at its time."""
    custom = {"axisBorderShow": False, "insertNulls": False, "axisCenteredZero": False, "axisColorMode": "text"}
    extra = {
        "fieldConfig": {"defaults": defaults(unit, NEUTRAL, custom=custom, color=BY_NAME)},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
    }
    note = " Each bar is what was added up to its time since the bar before, in whole hours, to within a minute."
    return panel(
        TimeSeries,
        title,
        description + note,
        targets(exprs, instant=False),
        extra,
        drawStyle="bars",
        barAlignment=-1,
        fillOpacity=70,
        lineWidth=0,
        showPoints="never",
        axisSoftMin=0,
        stacking={"mode": "normal", "group": "A"},
        maxDataPoints=TREND_POINTS,
        interval=TREND_STEP,
        unit=unit.id,
        legendDisplayMode="list",
        scaleDistributionType="linear",
    )


def share(title: str, description: str, expr: str, legend: str, unit: Unit) -> PanelJson:
    """Parts of a whole as a ring."""
    extra = {
        "fieldConfig": {"defaults": defaults(unit, NEUTRAL, color=BY_NAME)},
        "options": {"displayLabels": [], "legend": {"showLegend": True}, "tooltip": {"sort": "none"}},
    }
    return panel(
        PieChartv2,
        title,
        description,
        targets([(expr, legend)], instant=True),
        extra,
        pieType="donut",
        legendDisplayMode="table",
        legendPlacement="right",
        legendValues=["value", "percent"],
        unit=unit.id,
        maxDataPoints=None,
    )


def ranking(title: str, description: str, expr: str, legend: str, unit: Unit) -> PanelJson:
    """The largest first, as horizontal bars."""
    # grafanalib's BarGauge writes Grafana 6 keys, so only its frame is used.
    extra = {
        "type": "bargauge",
        "fieldConfig": {"defaults": defaults(unit, FIGURE, min=0, color={"mode": "thresholds"}), "overrides": []},
        "options": {
            "displayMode": "basic",
            "orientation": "horizontal",
            "showUnfilled": False,
            "valueMode": "color",
            "namePlacement": "left",
            "sizing": "auto",
            "minVizHeight": 16,
            "minVizWidth": 8,
            "maxVizHeight": 300,
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
        },
    }
    return panel(_Bare, title, description, targets([(expr, legend)], instant=True), extra, maxDataPoints=None)


def timeline(
    title: str, description: str, expr: str, legend: str, unit: Unit, steps: Steps, mappings: Sequence[PanelJson] = ()
) -> PanelJson:
    """States over time, a line each."""
    extra = {
        "fieldConfig": {"defaults": defaults(unit, steps)},
        "options": {"tooltip": {"mode": "single", "sort": "none"}, "legend": {"showLegend": False}},
    }
    return panel(
        StateTimeline,
        title,
        description,
        targets([(expr, legend)], instant=False),
        extra,
        mappings=list(mappings),
        interval="1m",
        maxDataPoints=None,
        showValue="never" if not mappings else "auto",
    )


def text(title: str, description: str, content: str) -> PanelJson:
    """Markdown."""
    return panel(Text, title, description, [], {"options": {"code": {"language": "plaintext"}}}, content=content)


class _Bare(Panel):  # type: ignore[misc]
    """grafanalib's frame of a panel, for types it has no working class of."""

    def to_json_data(self) -> Any:
        return self.panel_json({})
