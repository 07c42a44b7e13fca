"""Tables: one row per label set, one column per query, sorted by the first, with links that drill down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from grafanalib.core import Table, TableSortByField

from dashboards.layout import PanelJson
from dashboards.panels import defaults, panel, targets
from dashboards.promql import NOBODY
from dashboards.units import COUNT, NEUTRAL, TEXT, Steps, Unit

_HEADINGS = {"alertname": "Alert"}
"""Of labels that do not read well as they are."""


_EMPTY = [
    {"type": "special", "options": {"match": match, "result": {"text": NOBODY, "index": index}}}
    for index, match in enumerate(("empty", "null"))
]
"""A word where a label is empty."""


@dataclass(frozen=True)
class Column:
    """A column of values: its heading, the query it comes from, and how values are shown."""

    title: str
    expr: str
    unit: Unit
    steps: Steps | None = None
    gauge: bool = False
    """Draw a bar from 0 to 1 behind the value."""
    mappings: Sequence[PanelJson] = ()


def table(
    title: str,
    description: str,
    keys: Sequence[str],
    columns: Sequence[Column],
    *,
    links: dict[str, PanelJson] | None = None,
    hidden: Sequence[str] = (),
) -> PanelJson:
    """Rows are joined by `keys`, the labels shown; `hidden` labels of the queries are left out."""
    renamed = {key: _HEADINGS.get(key, key.replace("_", " ").capitalize()) for key in keys}
    order = {key: i for i, key in enumerate(keys)}
    for ref, column in zip(ascii_uppercase, columns, strict=False):
        renamed[f"Value #{ref}"] = column.title
        order[f"Value #{ref}"] = len(order)
    if len(columns) == 1:
        # Grafana names the values of an only query without its letter.
        renamed["Value"] = columns[0].title
        order["Value"] = len(order)
    excluded = {"Time": True, "__name__": True, **dict.fromkeys(hidden, True)}
    organize = {"excludeByName": excluded, "renameByName": renamed, "indexByName": order}
    transformations = [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    overrides = _overrides(keys, renamed, columns, links or {})
    extra = {
        "fieldConfig": {"defaults": defaults(TEXT, NEUTRAL, color={"mode": "thresholds"}), "overrides": overrides},
        "options": {"cellHeight": "sm"},
    }
    made = panel(
        Table,
        title,
        description,
        targets([(c.expr, "") for c in columns], instant=True, table=True),
        extra,
        sortBy=[TableSortByField(displayName=columns[0].title, desc=True)],
        transformations=transformations,
        maxDataPoints=None,
    )
    # grafanalib adds keys of older tables beside the ones that count today.
    for key in ("color", "columns", "fontSize", "mappings"):
        made.pop(key, None)
    made["fieldConfig"]["defaults"]["custom"] = {"align": "auto", "filterable": False, "inspect": False}
    made["fieldConfig"]["defaults"]["unit"] = TEXT.id
    return made


def _overrides(
    keys: Sequence[str], renamed: dict[str, str], columns: Sequence[Column], links: dict[str, PanelJson]
) -> list[PanelJson]:
    found = []
    for key in keys:
        shown: list[dict[str, Any]] = [{"id": "mappings", "value": _EMPTY}]
        if key in links:
            shown.append({"id": "links", "value": [links[key]]})
        found.append({"matcher": {"id": "byName", "options": renamed[key]}, "properties": shown})
    for column in columns:
        properties: list[dict[str, Any]] = [
            {"id": "unit", "value": column.unit.id},
            {"id": "decimals", "value": column.unit.decimals},
            {"id": "custom.align", "value": "right"},
        ]
        if column.steps is not None:
            kind = {"type": "gauge", "mode": "basic"} if column.gauge else {"type": "color-text"}
            properties += [
                {"id": "thresholds", "value": {"mode": "absolute", "steps": column.steps}},
                {"id": "custom.cellOptions", "value": kind},
            ]
        if column.gauge:
            properties += [{"id": "min", "value": 0}, {"id": "max", "value": 1}]
        if column.mappings:
            properties.append({"id": "mappings", "value": list(column.mappings)})
        found.append({"matcher": {"id": "byName", "options": column.title}, "properties": properties})
    return found


def counted(title: str, expr: str) -> Column:
    """A column of whole numbers."""
    return Column(title, expr, COUNT)
