"""Draws every dashboard from real query results into docs/img: `python -m tests.grafana.pictures docs/img`.

Needs Prometheus, Chromium and Grafana's library (`npm ci --prefix tests/grafana`). Values, tables and colours of
values come from that library; charts are drawn by `draw`.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from dashboards.alerts import alerts
from dashboards.build import all_dashboards
from tests.grafana import demo, draw
from tests.prometheus_lab import (
    DAY,
    HOUR,
    Labels,
    Prometheus,
    Sample,
    as_grafana,
    backfill,
    openmetrics,
    prometheus,
    recorded,
)

HERE = Path(__file__).parent
LAST = demo.END - demo.STEP
SPAN = (demo.START + DAY, demo.START + 8 * DAY + 20 * HOUR)
CHOICES = {
    "cluster": ".*",
    "org": "acme",
    "project": "vision",
    "user": "ann",
    "__rate_interval": f"{4 * demo.STEP}s",
}
COLUMN, ROW, HEAD = 1280 / 24, 38, 44


def display(panels: list[dict[str, Any]], series: list[str], mode: str) -> dict[str, Any]:
    """What Grafana's library makes of panels' frames, and its colours, of a mode: `dark` or `light`."""
    asked = json.dumps({"mode": mode, "panels": panels, "series": series})
    done = subprocess.run(["node", str(HERE / "display.cjs")], input=asked, capture_output=True, text=True, check=True)
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def choices(panel: dict[str, Any], uid: str) -> dict[str, str]:
    """The user's dashboard looks at all projects, the others at one."""
    return {**CHOICES, "project": ".*"} if uid == "credits-user" else CHOICES


def answers(server: Prometheus, panel: dict[str, Any], uid: str) -> list[tuple[dict[str, Any], dict[Labels, Any]]]:
    """Each query with its answer at the range's end, or over the range."""
    found: list[tuple[dict[str, Any], dict[Labels, Any]]] = []
    for query in panel.get("targets", ()):
        if query["instant"]:
            expr = as_grafana(query["expr"], choices(panel, uid), int(SPAN[1] - SPAN[0]))
            found.append((query, server.instant(expr, SPAN[1])))
        else:
            step = HOUR * 2 if panel.get("interval") == "1h" else HOUR // 4
            start = SPAN[0] - SPAN[0] % step
            rows = server.range(as_grafana(query["expr"], choices(panel, uid), step), start, SPAN[1], step)
            found.append((query, {k: [(at, float(v)) for at, v in row if v != "NaN"] for k, row in rows.items()}))
    return found


def frames(panel: dict[str, Any], found: list[tuple[dict[str, Any], dict[Labels, float]]]) -> list[dict[str, Any]]:
    """Instant answers as Grafana's data source gives them."""
    made = []
    for query, rows in found:
        labels = sorted({name for row in rows for name, _ in row})
        value = f"Value #{query['refId']}" if len(found) > 1 else "Value"
        fields: list[dict[str, Any]] = [
            {"name": n, "type": "string", "values": [dict(r).get(n, "") for r in rows]} for n in labels
        ]
        fields.insert(0, {"name": "Time", "type": "time", "values": [0] * len(rows)})
        made.append(
            {
                "refId": query["refId"],
                "fields": [*fields, {"name": value, "type": "number", "values": list(rows.values())}],
            }
        )
    return made


def inside(
    panel: dict[str, Any], found: list[Any], shown: dict[str, Any], size: tuple[int, int], colours: draw.Colours
) -> str:
    """A panel's content as HTML."""
    kind = panel["type"]
    if kind == "text":
        lines = re.sub(r"[*`\\]", "", html.escape(panel["options"]["content"]))
        return f"<div style='padding:0 8px;font-size:11px'>{lines}</div>"
    if kind in ("timeseries", "state-timeline"):
        series = [(draw.legend_text(q["legendFormat"], k), row) for q, rows in found for k, row in rows.items()]
        series.sort(key=lambda one: one[0])
        return (
            draw.chart(panel, series, SPAN, size, colours)
            if kind == "timeseries"
            else draw.states(panel, series, SPAN, size)
        )
    if kind == "table":
        order = sorted(range(len(shown["rows"])), key=lambda i: -_number(shown["rows"][i], shown["columns"], panel))
        sorted_ = {key: [shown[key][i] for i in order] for key in ("rows", "colors")}
        return draw.table({**shown, **sorted_}, panel)
    if kind == "stat":
        if not shown["rows"]:
            return draw.big(panel["fieldConfig"]["defaults"]["noValue"], "var(--faint)")
        return draw.big(shown["rows"][0][-1], shown["colors"][0][-1])
    query, rows = found[0]
    texts = [row[-1] for row in shown["rows"]]
    parts = [(draw.legend_text(query["legendFormat"], k), v, t) for (k, v), t in zip(rows.items(), texts, strict=True)]
    return draw.ring(parts, size, colours) if kind == "piechart" else draw.bars(parts)


def _number(row: list[str], columns: list[str], panel: dict[str, Any]) -> float:
    text = row[columns.index(panel["options"]["sortBy"][0]["displayName"])]
    found = re.match(r"-?[\d.]+", text)
    return float(found[0]) if found else 0.0


def page(server: Prometheus, made: dict[str, Any], mode: str) -> tuple[str, int]:
    """A dashboard as an HTML page in a mode, `dark` or `light`, and its height."""
    found = [answers(server, panel, made["uid"]) for panel in made["panels"]]
    panels = [_fields(panel, rows) for panel, rows in zip(made["panels"], found, strict=True)]
    names = {draw.legend_text(query["legendFormat"], key) for one in found for query, rows in one for key in rows}
    shown = display(panels, sorted(names), mode)
    colours = "".join(f"--{part}:{colour};" for part, colour in shown["theme"].items())
    title = html.escape(made["title"])
    out = [f"<meta charset=utf-8><style>:root{{{colours}}}{draw.STYLE}</style><h1>{title}</h1>"]
    low = 0
    for panel, rows, texts in zip(made["panels"], found, shown["panels"], strict=True):
        place = panel["gridPos"]
        size = (int(place["w"] * COLUMN) - 6, place["h"] * ROW - 6)
        left, top = int(place["x"] * COLUMN) + 3, place["y"] * ROW + HEAD
        low = max(low, top + size[1] + 8)
        content = inside(panel, rows, texts, size, shown["series"])
        out.append(
            f'<div class=panel style="left:{left}px;top:{top}px;width:{size[0]}px;height:{size[1]}px">'
            f"<div class=title>{html.escape(panel['title'])}</div>{content}</div>"
        )
    return "".join(out), low


def _fields(panel: dict[str, Any], found: list[Any]) -> dict[str, Any]:
    """What Grafana's library needs of a panel; of one with a time axis, nothing."""
    instant = [one for one in found if one[0]["instant"]]
    setting = panel["fieldConfig"]
    if panel["type"] not in ("table", "stat"):
        setting = {**setting, "overrides": []}
    return {"frames": frames(panel, instant), "transformations": panel["transformations"], "fieldConfig": setting}


def _seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60, "h": HOUR, "d": DAY}[text[-1]]


def firing(server: Prometheus) -> demo.Families:
    """The series that Prometheus keeps of alerts, by its own evaluation of their expressions."""
    series: dict[Labels, list[Sample]] = {}
    for alert in alerts():
        rows = server.range(alert.expr, SPAN[1] - DAY, LAST, demo.STEP)
        for labels, row in rows.items():
            marks = {"alertname": alert.name, "alertstate": "firing", "severity": alert.severity}
            since, before = row[0][0], row[0][0]
            for at, _ in row:
                since = at if at - before > demo.STEP else since
                before = at
                if at - since >= _seconds(alert.hold):
                    kept = {**{k: v for k, v in labels if k != "__name__"}, **marks}
                    series.setdefault(tuple(sorted(kept.items())), []).append((int(at), "1"))
    return {"ALERTS": ("gauge", series)}


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        scratch, week = Path(name), demo.week()
        with recorded(scratch, week, span=(demo.START, LAST), fine=(demo.START, demo.STEP)) as server:
            rang = firing(server)
        backfill(openmetrics(rang), scratch, scratch / "data")
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        with prometheus(scratch / "prometheus.yml", scratch / "data") as server:
            for made in all_dashboards():
                for mode, suffix in (("dark", ""), ("light", "-light")):
                    content, height = page(server, made, mode)
                    sheet = browser.new_page(viewport={"width": 1280, "height": height})
                    sheet.set_content(content)
                    sheet.screenshot(path=out / f"{made['uid']}{suffix}.png")
                    sheet.close()
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
