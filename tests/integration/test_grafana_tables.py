"""Tables as Grafana shows them: its own library runs the transformations and writes the values."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards.build import all_dashboards
from ledger.money import MICRO
from tests import prometheus_month
from tests.prometheus_lab import DAY, Prometheus, as_grafana
from tests.prometheus_month import CHOICES, LAST, Found

GRAFANA = Path(__file__).parents[1] / "grafana"
pytestmark = [
    pytest.mark.prometheus,
    pytest.mark.skipif(
        not (GRAFANA / "node_modules/@grafana/data").exists(),
        reason="Grafana's library is not installed: npm ci --prefix tests/grafana",
    ),
]
TABLES = {
    f"{made['uid']}: {panel['title']}": panel
    for made in all_dashboards()
    for panel in made["panels"]
    if panel["type"] == "table"
}
Shown = dict[str, dict[str, Any]]


def _frames(server: Prometheus, panel: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A table's queries as Grafana's Prometheus data source gives them: time, labels, value."""
    queries = panel["targets"]
    for query in queries:
        found = server.instant(as_grafana(query["expr"], CHOICES, DAY), LAST)
        labels = sorted({name for row in found for name, _ in row})
        value = f"Value #{query['refId']}" if len(queries) > 1 else "Value"
        columns = [[dict(row).get(name, "") for row in found] for name in labels]
        yield {
            "refId": query["refId"],
            "fields": [
                {"name": "Time", "type": "time", "values": [LAST * 1000] * len(found)},
                *({"name": n, "type": "string", "values": c} for n, c in zip(labels, columns, strict=True)),
                {"name": value, "type": "number", "values": list(found.values())},
            ],
        }


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Found, Shown]]:
    with prometheus_month.month(tmp_path_factory.mktemp("grafana")) as found:
        panels = [
            {
                "frames": list(_frames(found[1], panel)),
                "transformations": panel["transformations"],
                "fieldConfig": panel["fieldConfig"],
            }
            for panel in TABLES.values()
        ]
        asked = json.dumps({"mode": "dark", "panels": panels})
        done = subprocess.run(
            ["node", str(GRAFANA / "display.cjs")], input=asked, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        yield found, dict(zip(TABLES, json.loads(done.stdout)["panels"], strict=True))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_its_columns_and_no_others(shown: tuple[Found, Shown], name: str) -> None:
    panel, table = TABLES[name], shown[1][name]
    organize = panel["transformations"][1]["options"]
    renamed = organize["renameByName"]
    wanted = list(
        dict.fromkeys(renamed[key] for key in sorted(organize["indexByName"], key=organize["indexByName"].get))
    )
    # Prometheus leaves out a label that no row has a value for.
    missing = set(wanted) - set(table["columns"])
    assert table["columns"] == [column for column in wanted if column not in missing]
    assert missing <= {"User", "Org", "Source"}
    assert table["rows"]
    assert panel["options"]["sortBy"][0]["displayName"] in table["columns"]


@pytest.mark.parametrize("name", TABLES)
def test_values_are_written_with_their_unit(shown: tuple[Found, Shown], name: str) -> None:
    table = shown[1][name]
    for column, title in enumerate(table["columns"]):
        texts = {row[column] for row in table["rows"]} - {""}
        if title in ("Spent", "Available", "Held", "Left", "Limit", "Granted"):
            assert all(text.endswith(" cr") and text[-6] == "." for text in texts), texts
        if title == "Burning":
            assert all(text.endswith(" cr/h") for text in texts)
        if title == "Used":
            assert all(text.endswith("%") for text in texts)


def test_rows_of_several_queries_are_joined(shown: tuple[Found, Shown]) -> None:
    (history, _), tables = shown
    orgs = tables["credits-home: Orgs"]
    rows = {row[0]: row for row in orgs["rows"]}
    assert set(rows) == {"acme", "globex"}
    for org, row in rows.items():
        of_org = [labels for labels in history.values if dict(labels)["org"] == org]
        spent = sum(history.ledger(labels, LAST) - history.ledger(labels, LAST - DAY) for labels in of_org)
        assert row[orgs["columns"].index("Spent")] == f"{spent / MICRO:.2f} cr"
    assert rows["acme"][orgs["columns"].index("Stage")] == "warn"
    assert rows["globex"][orgs["columns"].index("Available")] == ""


def test_colours_are_those_of_the_alerts(shown: tuple[Found, Shown]) -> None:
    orgs = shown[1]["credits-home: Orgs"]
    at = orgs["columns"].index("Runway")
    colour = {row[0]: colours[at] for row, colours in zip(orgs["rows"], orgs["colors"], strict=True)}
    # 20 hours: within the first alert's limit, not the second's.
    assert orgs["rows"][[row[0] for row in orgs["rows"]].index("acme")][at] == "20.0 hours"
    assert colour["acme"] == "#FF9830"
