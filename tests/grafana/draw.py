"""Draws panels as SVG and HTML from query results, close enough to Grafana to judge them by."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ledger.clock import from_us
from ledger.money import MICRO
from tests.prometheus_lab import DAY, Labels

Colours = Mapping[str, str]
"""Of series, by their names."""
Row = list[tuple[float, float]]
Series = list[tuple[str, Row]]
Span = tuple[float, float]

STYLE = """
body{margin:0;background:var(--canvas);color:var(--words);font:13px 'DejaVu Sans',sans-serif;width:1280px}
.panel{position:absolute;background:var(--panel);border:1px solid var(--border);border-radius:3px;
overflow:hidden;box-sizing:border-box}
.title{font-weight:bold;font-size:12px;padding:6px 8px;height:14px;white-space:nowrap;overflow:hidden}
.big{display:flex;align-items:center;justify-content:center;height:calc(100% - 34px);font-size:25px;font-weight:bold}
table{border-collapse:collapse;width:100%;font-size:12px}
th{color:var(--link);text-align:left;padding:4px 8px;border-bottom:1px solid var(--border);white-space:nowrap}
td{padding:5px 8px;border-bottom:1px solid var(--border);white-space:nowrap}
.right{text-align:right}a{color:var(--words);text-decoration:underline}
.legend{font-size:11px;padding:0 8px;line-height:17px}
.dot{display:inline-block;width:12px;height:4px;margin:0 5px 3px 0}
h1{font-size:17px;margin:0;padding:12px 10px;position:absolute}
"""


def legend_text(pattern: str, labels: Labels) -> str:
    """A legend as Grafana fills it in."""
    for name, value in labels:
        pattern = pattern.replace(f"{{{{{name}}}}}", value)
    return pattern.split("{{")[0] if "{{" in pattern else pattern


def short(value: float, unit: str) -> str:
    """A number on an axis."""
    if unit == "decbytes":
        power = min(int(math.log(max(value, 1), 1000)), 4)
        return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
    if unit == "s":
        if value and value < 1:
            return f"{value * 1000:.3g} ms"
        return f"{value / 60:.3g} min" if value >= 60 else f"{value:.3g} s"
    number = f"{value / 1000:.3g}K" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit.removeprefix('suffix:')}" if unit.startswith("suffix") else number


def _svg(width: int, height: int, shapes: list[str], style: str = "margin-left:8px") -> str:
    return f'<svg width="{width}" height="{height}" style="{style}">{"".join(shapes)}</svg>'


def _line(x1: float, x2: float, y: float, colour: str, dashes: str = "none") -> str:
    where = f'x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line {where} stroke="{colour}" stroke-dasharray="{dashes}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {where} fill="var(--faint)" font-size="10">{html.escape(text)}</text>'


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect {where} fill="{colour}"/>'


def big(text: str, colour: str) -> str:
    """A stat panel's value."""
    size = 25 if len(text) < 14 else 16
    return f'<div class=big style="color:{colour};font-size:{size}px">{html.escape(text)}</div>'


def legend(entries: list[tuple[str, str]]) -> str:
    """Names with their colours, in one line or more."""
    parts = (f'<span class=dot style="background:{c}"></span>{html.escape(n)}&nbsp;&nbsp; ' for n, c in entries)
    return f"<div class=legend>{''.join(parts)}</div>"


def _stacked(series: list[tuple[str, Row]]) -> list[tuple[str, Row, Row]]:
    base: dict[float, float] = {}
    made = []
    for name, row in series:
        low = [(at, base.get(at, 0.0)) for at, _ in row]
        for at, value in row:
            base[at] = base.get(at, 0.0) + value
        made.append((name, row, low))
    return made


@dataclass(frozen=True)
class Frame:
    """Where instants and values lie on a chart."""

    span: Span
    floor: float
    top: float
    width: int
    height: int
    left: int = 74
    foot: int = 18

    def x(self, at: float) -> float:
        """From the left, in pixels."""
        return self.left + (at - self.span[0]) / (self.span[1] - self.span[0]) * (self.width - self.left)

    def y(self, value: float) -> float:
        """From the top, in pixels."""
        return (self.height - self.foot) * (1 - (value - self.floor) / (self.top - self.floor)) + 4

    def axes(self, unit: str) -> list[str]:
        """Lines at round parts of the height, and days."""
        drawn = []
        for part in range(5):
            level = self.floor + (self.top - self.floor) * part / 4
            drawn.append(_line(self.left, self.width, self.y(level), "var(--border)"))
            drawn.append(_text(self.left - 5, self.y(level) + 4, short(level, unit), "end"))
        days = range(math.ceil(self.span[0] / DAY), math.floor(self.span[1] / DAY) + 1)
        drawn += [
            _text(self.x(day * DAY), self.height - 2, f"{from_us(day * DAY * MICRO):%m/%d}", "middle") for day in days
        ]
        return drawn


def chart(
    panel: dict[str, Any], series: list[tuple[str, Row]], span: Span, size: tuple[int, int], colours: Colours
) -> str:
    """A time series panel's lines or bars."""
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    stacked = custom["stacking"]["mode"] == "normal"
    layers = _stacked(series) if stacked else [(name, row, [(at, 0.0) for at, _ in row]) for name, row in series]
    values = [value + base for _, row, low in layers for (_, value), (_, base) in zip(row, low, strict=True)]
    limits = [step for step in defaults["thresholds"]["steps"] if step["value"] is not None]
    limits = limits if custom["thresholdsStyle"]["mode"] == "line" else []
    floor = min([*values, 0.0])
    top = max([*values, *(step["value"] for step in limits), 1e-9]) * 1.08
    floor = floor if floor < -1e-6 else 0.0
    letters = max(len(short(floor + (top - floor) * part / 4, defaults["unit"])) for part in range(5))
    frame = Frame(span, floor, top, size[0] - 16, size[1] - 62, left=max(74, letters * 6 + 10))
    drawn = frame.axes(defaults["unit"])
    for name, row, low in layers:
        shapes = _bars if custom["drawStyle"] == "bars" else _lines
        drawn += shapes(frame, custom, row, low, colours[name])
    for step in limits:
        drawn.append(_line(frame.left, frame.width, frame.y(step["value"]), f"var(--{step['color']})", "6 4"))
    names = [(name, colours[name]) for name, _ in series]
    return _svg(frame.width, frame.height, drawn) + legend(names[:9])


def _bars(frame: Frame, custom: dict[str, Any], row: Row, low: Row, colour: str) -> list[str]:
    step = min((b[0] - a[0] for a, b in pairwise(row)), default=1.0)
    wide = (frame.x(step) - frame.x(0)) * 0.85
    found = []
    for (at, value), (_, base) in zip(row, low, strict=True):
        if frame.x(at) - wide >= frame.left:
            high = frame.y(base + value)
            found.append(_box(frame.x(at) - wide, high, wide, frame.y(base) - high, colour))
    return found


def _lines(frame: Frame, custom: dict[str, Any], row: Row, low: Row, colour: str) -> list[str]:
    found = []
    for part in _unbroken(list(zip(row, low, strict=True))):
        upper = [(frame.x(at), frame.y(value + base)) for (at, value), (_, base) in part]
        if custom["lineInterpolation"] == "stepAfter":
            upper = [p for a, b in zip(upper, [*upper[1:], upper[-1]], strict=True) for p in (a, (b[0], a[1]))]
        lower = [(frame.x(at), frame.y(base)) for _, (at, base) in part][::-1]
        area = " ".join(f"{x:.1f},{y:.1f}" for x, y in upper + lower)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in upper)
        found.append(f'<polygon points="{area}" fill="{colour}" opacity="{custom["fillOpacity"] / 100}"/>')
        found.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
    return found


def _unbroken(points: list[Any]) -> list[list[Any]]:
    """Runs of points without a hole."""
    if len(points) < 2:
        return [points] if points else []
    step = min(b[0][0] - a[0][0] for a, b in pairwise(points))
    runs = [[points[0]]]
    for before, point in pairwise(points):
        if point[0][0] - before[0][0] > step * 1.5:
            runs.append([])
        runs[-1].append(point)
    return runs


def ring(parts: list[tuple[str, float, str]], size: tuple[int, int], colours: Colours) -> str:
    """A pie chart's ring with a table of its parts."""
    whole = sum(value for _, value, _ in parts) or 1
    half = min(size[1] - 50, size[0] // 2 - 20) / 2
    centre, radius = (half + 12, (size[1] - 34) / 2), half * 0.8
    drawn, rows, angle = [], [], -math.pi / 2
    for name, value, text in sorted(parts, key=lambda part: -part[1]):
        turn = min(value / whole, 0.9999) * 2 * math.pi
        colour = colours[name]
        ends = [
            f"{centre[0] + radius * math.cos(at):.1f},{centre[1] + radius * math.sin(at):.1f}"
            for at in (angle, angle + turn)
        ]
        arc = f"M{ends[0]} A{radius:.1f},{radius:.1f} 0 {int(turn > math.pi)} 1 {ends[1]}"
        drawn.append(f'<path d="{arc}" fill="none" stroke="{colour}" stroke-width="{half * 0.35:.1f}"/>')
        angle += turn
        dot = f'<span class=dot style="background:{colour}"></span>'
        rows.append(f"<tr><td>{dot}{html.escape(name)}</td><td>{text}</td><td>{value / whole:.0%}</td></tr>")
    figure = _svg(int(half * 2 + 24), size[1] - 34, drawn, "float:left")
    return f'{figure}<table style="width:auto">{"".join(rows)}</table>'


def bars(parts: list[tuple[str, float, str]]) -> str:
    """A bar gauge."""
    most = max((value for _, value, _ in parts), default=1) or 1
    rows = []
    for name, value, text in sorted(parts, key=lambda part: -part[1]):
        bar = f'<div style="background:var(--blue);height:14px;width:{value / most:.1%}"></div>'
        figure = f'<td class=right style="color:var(--blue)">{text}</td>'
        rows.append(f'<tr><td>{html.escape(name)}</td><td style="width:60%">{bar}</td>{figure}</tr>')
    return f"<table>{''.join(rows)}</table>"


def states(panel: dict[str, Any], series: list[tuple[str, Row]], span: Span, size: tuple[int, int]) -> str:
    """A state timeline."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    frame = Frame(span, 0, 1, size[0] - 16, size[1] - 40, left=100)
    high = max(16, (size[1] - 60) // max(len(series), 1) - 8)
    drawn = []
    for number, (name, row) in enumerate(series):
        y = 8 + number * (high + 8)
        drawn.append(_text(92, y + high / 2 + 4, name, "end"))
        step = row[1][0] - row[0][0] if len(row) > 1 else 60
        for at, value in row:
            colour = [f"var(--{s['color']})" for s in steps if s["value"] is None or value >= s["value"]][-1]
            drawn.append(_box(frame.x(at), y, frame.x(at + step) - frame.x(at) + 0.4, high, colour))
    return _svg(frame.width, frame.height, drawn)


def table(shown: dict[str, Any], panel: dict[str, Any]) -> str:
    """A table as Grafana's library filled it in, sorted by its first value."""
    overrides = {}
    for override in panel["fieldConfig"]["overrides"]:
        overrides[override["matcher"]["options"]] = {p["id"]: p["value"] for p in override["properties"]}
    heads, body = [], []
    settings = [overrides.get(column, {}) for column in shown["columns"]]
    for column, setting in zip(shown["columns"], settings, strict=True):
        heads.append(f'<th class="{setting.get("custom.align", "")}">{html.escape(column)}</th>')
    for row, colours in zip(shown["rows"], shown["colors"], strict=True):
        cells = []
        for text, colour, setting in zip(row, colours, settings, strict=True):
            style = f"color:{colour}" if setting.get("custom.cellOptions") and text else ""
            inner = f"<a>{html.escape(text)}</a>" if "links" in setting else html.escape(text)
            cells.append(f'<td class="{setting.get("custom.align", "")}" style="{style}">{inner}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{''.join(heads)}</tr>{''.join(body)}</table>"
