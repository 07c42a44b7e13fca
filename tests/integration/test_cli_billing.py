"""`statement`, `rates impact` and `export openmetrics` as they are typed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.cli_lab import RATES, Lab, job

pytestmark = pytest.mark.redis


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Two hours of a job, half of it used by another project; 100 credits given."""
    lab = Lab(tmp_path)
    lab.ok("grant", "acme", "100", "--reason", "=pilot", "--effective-at", "2026-11-01")
    lab.once(
        "12:00:00",
        job("a", "09:00:00", "11:00:00"),
        job("b", "09:00:00", "10:00:00", project="nlp", preset="cpu-small"),
    )
    return lab


def test_a_statement_as_a_table_json_csv_and_html(lab: Lab) -> None:
    shape = lab.json("statement", "acme", "2026-11", "--timezone", "Europe/Berlin")
    assert (shape["opening"], shape["granted"], shape["charged"], shape["closing"]) == ("0", "100", "82", "18")
    table = lab.ok("statement", "acme", "2026-11")
    assert "closing balance" in table
    assert "vision" in table
    csv = lab.ok("statement", "acme", "2026-11", "--csv").splitlines()
    assert csv[-1].endswith(",18")
    assert any("'=pilot" in line for line in csv)
    page = lab.directory / "page.html"
    lab.ok("statement", "acme", "2026-11", "--html", str(page))
    assert "<h1>acme</h1>" in page.read_text()
    assert lab.run("statement", "acme", "November").returncode == 2
    assert lab.run("statement", "nobody", "2026-11").returncode == 1


def test_who_would_pay_more_under_other_rates(lab: Lab) -> None:
    rates = copy.deepcopy(RATES)
    rates["clusters"]["default"]["presets"]["gpu-large"]["credits_per_hour"] = "42"
    del rates["clusters"]["default"]["presets"]["cpu-small"]
    (lab.directory / "new.yaml").write_text(yaml.safe_dump(rates))
    period = ("--from", "2026-11-22", "--to", "2026-11-23")
    report = lab.json("rates", "impact", "new.yaml", *period, "--group-by", "project")
    assert [(row["project"], row["difference"]) for row in report["rows"]] == [("nlp", "-1"), ("vision", "3")]
    assert (report["total"], report["new_total"], report["difference"]) == ("82", "84", "2")
    done = lab.run("rates", "impact", "new.yaml", *period)
    assert done.returncode == 0
    assert "no rate" in done.stderr
    assert lab.json("rates", "impact", "config/rates.yaml", *period)["difference"] == "0"
    (lab.directory / "new.yaml").write_text("clusters: [")
    assert lab.run("rates", "impact", "new.yaml", *period).returncode == 2


def test_the_past_is_exported_for_prometheus(lab: Lab) -> None:
    text = lab.ok("export", "openmetrics", "--from", "2026-11-22", "--to", "2026-11-22T12:00:00Z")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    last = {sample.labels["project"]: sample.value for sample in families["credits_spent"].samples}
    assert last == {"nlp": 1.0, "vision": 81.0}


def test_dates_are_days_of_the_zone_that_is_asked_for(lab: Lab) -> None:
    # In Kiribati, 14 hours ahead, the 23rd begins at 10:00 UTC of the 22nd, in the middle of job a.
    zone = ("--timezone", "Pacific/Kiritimati")
    assert lab.json("usage", "--from", "2026-11-23", "--to", "2026-11-24", *zone)["total"] == "40.5"
    assert lab.json("usage", *zone, "--from", "2026-11-22", "--to", "2026-11-23")["total"] == "41.5"
    assert lab.json("usage", "--from", "2026-11-22", "--to", "2026-11-23")["total"] == "82"
    table = lab.ok("usage", "--from", "2026-11-23", "--to", "2026-11-24", "--step", "day", *zone)
    assert "2026-11-23T00:00:00+14:00" in table
    refused = lab.run("usage", "--from", "2026-11-23", "--timezone", "Europe/Berln")
    assert refused.returncode == 2
    assert "did you mean 'Europe/Berlin'?" in refused.stderr
