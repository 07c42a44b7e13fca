"""Every dashboard as Grafana reads it: its schema, and what makes it readable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dashboards import recorded
from dashboards.build import all_dashboards, build
from dashboards.panels import TREND_STEP
from dashboards.rules import recording_rules
from exporter import metric_names
from exporter.metric_names import Metric

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests/payloads/grafana/schema.json").read_text())
DASHBOARDS = {made["uid"]: made for made in all_dashboards()}
PANELS = [
    pytest.param(made, panel, id=f"{uid}-{panel['id']}-{panel['title']}")
    for uid, made in DASHBOARDS.items()
    for panel in made["panels"]
]
SHOWS_VALUES = {"stat", "timeseries", "piechart", "bargauge", "state-timeline"}
each_dashboard = pytest.mark.parametrize("made", DASHBOARDS.values(), ids=DASHBOARDS)
each_panel = pytest.mark.parametrize(("made", "panel"), PANELS)


def _values(thing: Any, key: str) -> Iterator[Any]:
    """Everything under a key, at any depth."""
    if isinstance(thing, dict):
        for name, value in thing.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(thing, list):
        for value in thing:
            yield from _values(value, key)


@each_dashboard
def test_a_dashboard_passes_grafanas_schema(made: dict[str, Any]) -> None:
    # What a data source reads of an annotation is its own; Prometheus' plugin reads these.
    own = {"expr", "step", "target", "titleFormat", "textFormat"}
    marks = [{k: v for k, v in mark.items() if k not in own} for mark in made["annotations"]["list"]]
    jsonschema.validate({**made, "annotations": {"list": marks}}, SCHEMA["dashboard"])


@each_panel
def test_a_panels_options_pass_grafanas_schema(made: dict[str, Any], panel: dict[str, Any]) -> None:
    kind = panel["type"]
    # Options that a file leaves out get Grafana's defaults; so only what is there is checked.
    options = SCHEMA["options"][kind]
    jsonschema.validate(panel["options"], _optional(options))
    custom = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
    if custom and kind in SCHEMA["custom"]:
        jsonschema.validate(custom, _optional(SCHEMA["custom"][kind]))


def _optional(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _optional(value) for key, value in schema.items() if key != "required"}
    return [_optional(value) for value in schema] if isinstance(schema, list) else schema


def test_the_schema_refuses_what_grafana_does_not_know() -> None:
    made = {**DASHBOARDS["credits-home"], "rows": []}
    with pytest.raises(jsonschema.ValidationError, match="rows"):
        jsonschema.validate(made, SCHEMA["dashboard"])


@each_panel
def test_a_panel_says_in_words_what_it_shows(made: dict[str, Any], panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 12
    assert panel["description"].endswith(".")


@each_panel
def test_a_panel_with_values_has_unit_decimals_and_steps(made: dict[str, Any], panel: dict[str, Any]) -> None:
    if panel["type"] in SHOWS_VALUES:
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"]
        assert defaults["decimals"] >= 0
        assert defaults["thresholds"]["steps"][0]["value"] is None
    if panel["type"] == "table":
        columns = set(panel["transformations"][1]["options"]["renameByName"].values())
        shown = {}
        for override in panel["fieldConfig"]["overrides"]:
            assert override["matcher"]["options"] in columns
            shown[override["matcher"]["options"]] = {prop["id"] for prop in override["properties"]}
        headings = [
            name
            for key, name in panel["transformations"][1]["options"]["renameByName"].items()
            if key.startswith("Value")
        ]
        assert headings
        assert len(set(headings)) == len(panel["targets"])
        for heading in headings:
            assert {"unit", "decimals"} <= shown[heading]


@each_panel
def test_a_series_has_its_colour_by_its_name(made: dict[str, Any], panel: dict[str, Any]) -> None:
    if panel["type"] in ("timeseries", "piechart"):
        assert panel["fieldConfig"]["defaults"]["color"] == {"mode": "palette-classic-by-name"}


@each_dashboard
def test_two_panels_of_a_kind_have_not_one_title(made: dict[str, Any]) -> None:
    titles = [(panel["type"], panel["title"]) for panel in made["panels"]]
    assert len(set(titles)) == len(titles)


@each_dashboard
def test_panels_do_not_overlap_and_leave_no_hole(made: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    height = max(y for _, y in taken) + 1
    assert taken == {(x, y) for x in range(24) for y in range(height)}
    numbers = [panel["id"] for panel in made["panels"]]
    assert len(set(numbers)) == len(numbers)


@each_panel
def test_a_panel_is_wide_enough_at_1280_pixels(made: dict[str, Any], panel: dict[str, Any]) -> None:
    least = {"stat": 4, "text": 4, "table": 6}.get(panel["type"], 8)
    assert panel["gridPos"]["w"] >= least


@each_dashboard
def test_every_query_goes_to_the_chosen_data_source(made: dict[str, Any]) -> None:
    assert made["templating"]["list"][0]["type"] == "datasource"
    assert {source["uid"] for source in _values(made, "datasource")} == {"${datasource}"}
    for panel in made["panels"]:
        assert all("datasource" in target for target in panel.get("targets", ()))


@each_dashboard
def test_choices_narrow_down_the_ones_after_them(made: dict[str, Any]) -> None:
    before: list[str] = []
    for variable in made["templating"]["list"][1:]:
        assert [name for name in before if f"${name}" in variable["query"]["query"]] == before
        before.append(variable["name"])


@each_dashboard
def test_queries_use_every_choice_and_no_other(made: dict[str, Any]) -> None:
    offered = {variable["name"] for variable in made["templating"]["list"]} - {"datasource"}
    used = set()
    for expr in _values(made["panels"], "expr"):
        used |= set(re.findall(r"\$([a-z]+)", expr))
    assert used == offered


@each_dashboard
def test_links_lead_to_dashboards_that_exist_and_keep_the_range(made: dict[str, Any]) -> None:
    urls = [url for url in _values(made, "url") if url]
    for url in urls:
        uid, query = url.removeprefix("/d/").split("?")
        target = DASHBOARDS[uid]
        assert "${__url_time_range}" in query
        assert "${datasource:queryparam}" in query
        names = {variable["name"] for variable in target["templating"]["list"]}
        assert set(re.findall(r"var-([a-z]+)=", query)) <= names
        kept = set(re.findall(r"\$\{([a-z]+):queryparam\}", query))
        assert kept <= names & {variable["name"] for variable in made["templating"]["list"]}
    menu = made["links"][0]
    assert menu["keepTime"]
    assert menu["includeVars"]


def test_home_leads_everywhere() -> None:
    home = DASHBOARDS["credits-home"]
    assert all(set(home["links"][0]["tags"]) & set(made["tags"]) for made in DASHBOARDS.values())


@each_dashboard
def test_rates_are_taken_over_what_grafana_advises_and_totals_never_are_rates(made: dict[str, Any]) -> None:
    for expr in _values(made, "expr"):
        assert "increase(" not in expr
        for window in re.findall(r"rate\([^\[\]]*\[([^\]]*)\]", expr):
            assert window == "$__rate_interval"


@each_panel
def test_a_total_is_asked_once_and_a_trend_in_whole_hours(made: dict[str, Any], panel: dict[str, Any]) -> None:
    for target in panel.get("targets", ()):
        assert target["instant"] is not target["range"]
        if "$__range" in target["expr"]:
            assert target["instant"]
        if "$__interval" in target["expr"]:
            assert target["range"]
            assert panel["interval"] == TREND_STEP


def test_every_metric_in_a_query_is_exported_or_recorded() -> None:
    exported = {value.name: value for value in vars(metric_names).values() if isinstance(value, Metric)}
    written = {rule["record"] for group in recording_rules()["groups"] for rule in group["rules"]}
    described = {value.name for value in vars(recorded).values() if isinstance(value, Metric)}
    assert described <= written
    known = set(exported) | written | {f"{metric_names.ADMISSION_DURATION.name}_bucket"}
    used: set[str] = set()
    for expr in _values(list(DASHBOARDS.values()), "expr"):
        used |= set(re.findall(r"\bcredits[_:][a-z_:]+", expr))
    assert used <= known
    # What the contract has and nobody looks at is a report that is missing.
    alerted = {
        metric_names.AVAILABLE.name,
        metric_names.GRANTED_IN_USE.name,
        metric_names.BUDGET_LIMIT.name,
        metric_names.PAYMENTS_REFUSED.name,
    }
    unseen = set(exported) - used - alerted - {metric_names.ADMISSION_DURATION.name, metric_names.EXHAUSTION.name}
    assert unseen <= set()


def test_what_is_published_is_what_is_built(tmp_path: Path) -> None:
    for path in build(tmp_path):
        published = ROOT / "deploy" / path.relative_to(tmp_path)
        assert published.read_bytes() == path.read_bytes(), f"{published}: run `credits dashboards build deploy`"


def test_nothing_is_published_that_is_not_built(tmp_path: Path) -> None:
    built = {path.relative_to(tmp_path) for path in build(tmp_path)}
    for folder in ("grafana", "prometheus"):
        found = {path.relative_to(ROOT / "deploy") for path in (ROOT / "deploy" / folder).rglob("*") if path.is_file()}
        assert found <= built


def test_no_key_is_without_a_value() -> None:
    def empty(thing: Any, inside: str = "") -> Iterator[str]:
        if isinstance(thing, dict):
            for key, value in thing.items():
                yield from empty(value, key)
        elif isinstance(thing, list):
            for value in thing:
                yield from empty(value, inside)
        elif thing is None:
            yield inside

    assert set(empty(list(DASHBOARDS.values()))) <= {"value"}
