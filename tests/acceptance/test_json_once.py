"""The front door: `credits exporter --once` with a json source charges what was worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger.embedded import open_embedded
from tests.cli_lab import RATES, Lab, job, volume

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A ledger whose embedded server runs through the test, and that holds together at its end."""
    lab = Lab(tmp_path)
    with open_embedded(tmp_path / "var"):
        yield lab
        result = lab.json("verify")
        assert result["ok"], result["differences"]


def test_an_hour_at_40_5_costs_40_5_credits(lab: Lab) -> None:
    lab.ok("grant", "acme", "100")
    lab.once("10:00:00", job("job-1", "09:00:00"))

    usage = lab.json("usage", "--group-by", "workload")
    assert (usage["from"], usage["group_by"], usage["total"]) == ("2026-11-01T00:00:00Z", ["workload"], "40.5")
    (row,) = usage["rows"]
    assert {name: row[name] for name in ("id", "kind", "started_at", "ended_at", "credits", "hours")} == {
        "id": "job-1",
        "kind": "job",
        "started_at": "2026-11-22T09:00:00Z",
        "ended_at": None,
        "credits": "40.5",
        "hours": "1",
    }
    balance = lab.json("balance", "acme")
    assert {name: balance[name] for name in ("granted", "expired", "spent", "overdraft", "unlimited", "burn_rate")} == {
        "granted": "100",
        "expired": "0",
        "spent": "40.5",
        "overdraft": "0",
        "unlimited": False,
        "burn_rate": "40.5",
    }
    # A running job has its next 15 minutes set aside: 10.125.
    assert (balance["held"], balance["available"]) == ("10.125", "49.375")


def test_suspended_time_is_free(lab: Lab) -> None:
    lab.once("10:00:00", job("job-1", "09:00:00", suspended=[["2026-11-22T09:10:00Z", "2026-11-22T09:20:00Z"]]))
    assert lab.used() == {"job-1": ("33.75", "0.833333")}
    # Suspended again since 10:30 and still so.
    suspended = [["2026-11-22T09:10:00Z", "2026-11-22T09:20:00Z"], ["2026-11-22T10:30:00Z", None]]
    lab.once("11:00:00", job("job-1", "09:00:00", suspended=suspended))
    assert lab.used() == {"job-1": ("54", "1.333333")}
    assert lab.json("balance", "acme")["burn_rate"] == "0"


def test_how_often_is_polled_does_not_matter(lab: Lab) -> None:
    # 0.000001001 credits an hour for 10 hours are 10.01 micro-credits: 10, however the time is cut.
    for minute in range(0, 60, 7):
        lab.once(f"10:{minute:02}:00", job("a", "09:00:00", preset="odd"))
    lab.once("19:00:00", job("a", "09:00:00", preset="odd"), job("b", "09:00:00", "19:00:00", preset="odd"))
    assert lab.used() == {"a": ("0.00001", "10"), "b": ("0.00001", "10")}


def test_a_job_between_two_polls_is_charged_in_full(lab: Lab) -> None:
    lab.once("10:00:00")
    lab.once("11:00:00", job("short", "10:10:00", "10:12:00"))
    assert lab.used() == {"short": ("1.35", "0.033333")}


def test_a_job_that_is_found_late_is_charged_from_its_start(lab: Lab) -> None:
    lab.once("10:00:00", job("job-1", "09:00:00"))
    lab.once("11:00:00", job("job-1", "09:00:00"), job("job-2", "09:30:00"), job("job-3", "09:15:00", "09:45:00"))
    assert lab.used() == {"job-1": ("81", "2"), "job-2": ("60.75", "1.5"), "job-3": ("20.25", "0.5")}
    assert lab.spent() == "162"


def test_a_finished_job_that_is_listed_again_is_not_charged_again(lab: Lab) -> None:
    lab.once("10:00:00", job("job-1", "09:00:00"))
    lab.once("11:00:00", job("job-1", "09:00:00", "10:30:00"))
    assert lab.used() == {"job-1": ("60.75", "1.5")}
    lab.once("12:00:00", job("job-1", "09:00:00", "10:30:00"))
    lab.once("13:00:00")
    lab.once("2026-11-23T13:00:00Z", job("job-1", "09:00:00", "10:30:00"))
    assert lab.used() == {"job-1": ("60.75", "1.5")}
    assert lab.spent() == "60.75"


def test_the_same_snapshot_twice_charges_once(lab: Lab) -> None:
    for _ in range(3):
        lab.once("10:00:00", job("job-1", "09:00:00"), storage=[volume("vol-1", 10**12)])
    assert lab.spent() == "40.5"


def test_storage_is_charged_for_the_bytes_last_reported(lab: Lab) -> None:
    lab.once("09:00:00", storage=[volume("vol-1", 1_000_000_000_000)])
    assert lab.used() == {}
    lab.once("10:00:00", storage=[volume("vol-1", 3_000_000_000_000)])  # an hour of 1000 GB
    assert lab.used() == {"vol-1": ("0.1", "1")}
    lab.once("10:30:00", storage=[volume("vol-1", 500_000_000_000)])  # half an hour of 3000 GB
    assert lab.used() == {"vol-1": ("0.25", "1.5")}
    lab.once("12:30:00", storage=[volume("vol-1", 500_000_000_000)])  # two hours of 500 GB
    assert lab.used() == {"vol-1": ("0.35", "3.5")}
    lab.once("13:30:00")  # gone: it ended when it was last seen
    lab.once("14:30:00")
    assert lab.used() == {"vol-1": ("0.35", "3.5")}
    assert lab.used("kind") == {"storage": ("0.35", "3.5")}


def test_a_job_that_is_no_longer_listed_ended_when_it_was_last_seen(lab: Lab) -> None:
    lab.once("10:00:00", job("job-1", "09:00:00"))
    lab.once("11:00:00")
    lab.once("12:00:00")
    assert lab.used() == {"job-1": ("40.5", "1")}
    (row,) = lab.json("usage", "--group-by", "workload")["rows"]
    assert row["ended_at"] == "2026-11-22T10:00:00Z"
    # It was only unlisted: it ran all the time, and its end comes after all.
    lab.once("13:00:00", job("job-1", "09:00:00", "12:30:00"))
    assert lab.used() == {"job-1": ("141.75", "3.5")}


def test_an_incomplete_list_ends_nothing(lab: Lab) -> None:
    lab.once("10:00:00", job("job-1", "09:00:00"), job("job-2", "09:00:00"))
    lab.once("11:00:00", job("job-2", "09:00:00"), complete=False)
    lab.once("12:00:00", job("job-1", "09:00:00"), job("job-2", "09:00:00"))
    assert lab.used() == {"job-1": ("121.5", "3"), "job-2": ("121.5", "3")}


def test_an_older_snapshot_that_comes_late_changes_nothing_that_a_newer_one_said(lab: Lab) -> None:
    lab.once("11:00:00", job("job-1", "09:00:00", "10:30:00"), job("job-2", "10:00:00"))
    before = lab.used()
    assert before == {"job-1": ("60.75", "1.5"), "job-2": ("40.5", "1")}
    lab.once("10:15:00", job("job-1", "09:00:00"), job("job-2", "10:00:00"))
    assert lab.used() == before
    lab.once("10:45:00")
    assert lab.used() == before
    lab.once("12:00:00", job("job-2", "10:00:00"))
    assert lab.used() == {"job-1": ("60.75", "1.5"), "job-2": ("81", "2")}


def test_nothing_before_the_epoch_is_charged(lab: Lab) -> None:
    lab.settings(
        metering={"epoch": "2026-11-22T09:30:00Z"},
        sources=[{"type": "json", "cluster": "default", "path": "snapshot.json"}],
    )
    lab.once(
        "10:00:00", job("before", "08:00:00", "09:00:00"), job("across", "09:00:00"), job("at", "08:00:00", "09:30:00")
    )
    assert lab.used() == {"across": ("20.25", "0.5")}


def test_a_scheduled_rate_holds_from_its_instant_on(lab: Lab) -> None:
    rates = {"clusters": {"default": {**RATES["clusters"]["default"]}}}
    rates["clusters"]["default"]["scheduled"] = [
        {"effective_from": "2026-11-22T09:40:00Z", "presets": {"gpu-large": {"credits_per_hour": "60"}}}
    ]
    lab.rates(rates)
    lab.once("10:00:00", job("job-1", "09:00:00"), job("job-2", "09:00:00", preset="cpu-small"))
    # 40 minutes at 40.5 are 27, 20 minutes at 60 are 20.
    assert lab.used() == {"job-1": ("47", "1"), "job-2": ("1", "1")}
    lab.once("10:30:00", job("job-1", "09:00:00"), job("job-2", "09:00:00", preset="cpu-small"))
    assert lab.used() == {"job-1": ("77", "1.5"), "job-2": ("1.5", "1.5")}


def test_an_edited_rate_never_changes_what_is_charged_already(lab: Lab) -> None:
    lab.once("10:00:00", job("job-1", "09:00:00"))
    presets = {**RATES["clusters"]["default"]["presets"], "gpu-large": {"credits_per_hour": "100"}}
    lab.rates({"clusters": {"default": {**RATES["clusters"]["default"], "presets": presets}}})
    lab.once("10:00:00", job("job-1", "09:00:00"))
    assert lab.used() == {"job-1": ("40.5", "1")}


def test_a_requeued_job_is_charged_for_both_of_its_runs(lab: Lab) -> None:
    lab.once("10:00:00", job("job-1", "09:00:00"))
    lab.once("12:00:00", job("job-1", "11:00:00"))  # the first run ended when last seen, at 10:00
    assert lab.used() == {
        "job-1": ("40.5", "1"),
        "job-1@2026-11-22T11:00:00Z": ("40.5", "1"),
    }
    assert lab.spent() == "81"


def test_two_sources_that_list_the_same_job_charge_it_once(lab: Lab) -> None:
    source = {"type": "json", "cluster": "default", "path": "snapshot.json"}
    lab.settings(sources=[{**source, "name": "one"}, {**source, "name": "two"}])
    for hour in (10, 11, 12):
        lab.once(f"{hour}:00:00", job("job-1", "09:00:00"), storage=[volume("vol-1", 10**12)])
    assert lab.used() == {"job-1": ("121.5", "3"), "vol-1": ("0.2", "2")}
    assert lab.spent() == "121.7"


def test_an_app_costs_its_own_rate_and_that_of_its_preset(lab: Lab) -> None:
    lab.once("10:00:00", job("app-1", "09:00:00", kind="app", app="vllm"))
    assert lab.used() == {"app-1": ("43", "1")}
    assert lab.used("app") == {"vllm": ("43", "1")}


def test_records_that_cannot_be_used_do_not_spoil_the_others(lab: Lab) -> None:
    no_id = {k: v for k, v in job("x", "09:00:00").items() if k != "id"}
    lab.once(
        "10:00:00",
        job("good", "09:00:00"),
        no_id,
        job("no-preset", "09:00:00", preset=None),
        job("bad-time", "09:00:00", started_at="yesterday"),
        job("no-org", "09:00:00", org=""),
        job("bad-name", "09:00:00", user="a\nb"),
        job("not-started", None),
        job("backwards", "09:00:00", "08:00:00"),
        job("unpriced", "09:00:00", preset="unheard-of"),
        storage=[volume("vol", -1), volume("good-vol", 10**9)],
    )
    used = lab.used()
    assert used.pop("unpriced", ("0", "1")) == ("0", "1")
    assert used == {"good": ("40.5", "1")}


def test_a_broken_document_charges_nothing_and_says_so(lab: Lab) -> None:
    lab.once("10:00:00", job("job-1", "09:00:00"))
    (lab.directory / "snapshot.json").write_text('{"cluster": "default", "taken_at"')
    done = lab.run("exporter", "--once")
    assert done.returncode == 1
    assert "json-default" in done.stderr
    assert "Traceback" not in done.stderr
    assert lab.used() == {"job-1": ("40.5", "1")}


def test_an_end_that_is_corrected_gives_credits_back(lab: Lab) -> None:
    lab.ok("grant", "acme", "100")
    lab.once("10:00:00", job("job-1", "09:00:00"))
    lab.once("10:05:00", job("job-1", "09:00:00", "09:30:00"))
    # What was given back stands apart, so that the sum is what was spent.
    assert lab.used() == {"job-1": ("20.25", "0.5"), "-": ("20.25", "0.5")}
    balance = lab.json("balance", "acme")
    assert (balance["spent"], balance["granted"], balance["available"]) == ("40.5", "120.25", "79.75")
    assert [e["type"] for e in lab.json("journal", "acme")["items"]] == ["grant", "correction"]


def test_sums_by_tier_and_time_agree(lab: Lab) -> None:
    lab.once(
        "12:00:00",
        job("a", "09:30:00", "11:00:00"),
        job("b", "10:00:00", user="bob", project="nlp", preset="cpu-small"),
        job("c", "11:45:00", org="globex", project="", user=""),
    )
    assert lab.used("org") == {"acme": ("62.75", "3.5"), "globex": ("10.125", "0.25")}
    assert lab.used("project", "--org", "acme") == {"vision": ("60.75", "1.5"), "nlp": ("2", "2")}
    report = lab.json("usage", "--step", "hour", "--group-by", "org", "--org", "acme")
    assert [(row["at"], row["credits"]) for row in report["rows"]] == [
        ("2026-11-22T09:00:00Z", "20.25"),
        ("2026-11-22T10:00:00Z", "41.5"),
        ("2026-11-22T11:00:00Z", "1"),
    ]
    csv = lab.ok("usage", "--group-by", "org,project", "--csv").splitlines()
    assert csv == [
        "org,project,credits,hours",
        "acme,nlp,2,2",
        "acme,vision,60.75,1.5",
        "globex,,10.125,0.25",
    ]
    for group in ("resource", "workload", "user,kind"):
        assert lab.json("usage", "--group-by", group)["total"] == "72.875"
    part = lab.json("usage", "--from", "2026-11-22T10:00:00Z", "--to", "2026-11-22T11:00:00Z", "--kind", "job")
    assert part["total"] == "41.5"
