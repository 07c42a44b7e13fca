"""What Slurm's tools print, in the shapes of 22.05 and of 24.11."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.slurm_rules import AccountRule, SlurmRules
from exporter.sources.base import SourceError
from exporter.sources.names import BAD_NAME, MALFORMED, NO_ORG, NO_PRESET, Unbillable
from exporter.sources.slurm_parse import SACCT_DELIMITER, parse_sacct, parse_squeue
from exporter.sources.slurm_run import JobRun, Phase, hold_in, observe
from ledger.model import Observation

PAYLOADS = Path(__file__).parents[1] / "payloads" / "slurm"
TAKEN = 1795366730
SECOND = 1_000_000
VERSIONS = ("22.05", "24.11")


def payload(name: str) -> bytes:
    return (PAYLOADS / f"squeue_{name}.json").read_bytes()


def runs_of(version: str) -> dict[int, JobRun]:
    runs, malformed = parse_squeue(payload(version), TAKEN)
    assert malformed == 0
    return {run.job_id: run for run in runs}


def job(**changed: Any) -> bytes:
    usual = json.loads(payload("22.05"))["jobs"][0]
    return json.dumps({"jobs": [usual | changed], "errors": []}).encode()


def observed(run: JobRun) -> Observation:
    return observe(run, SlurmRules(), {})


@pytest.mark.parametrize("version", VERSIONS)
def test_phases(version: str) -> None:
    phases = {job_id: run.phase.value for job_id, run in runs_of(version).items()}
    assert phases == {
        100: "running",
        101: "suspended",
        102: "ended",
        103: "pending",  # COMPLETING, to be requeued: its times are those of a run to come
        104: "pending",
        105: "running",
        106: "running",
        107: "ended",
        108: "ended",
        120: "pending",
        121: "ended",  # while it waited: it has times, and never ran
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_only_what_ran_has_a_start(version: str) -> None:
    starts = {job_id: run.start for job_id, run in runs_of(version).items()}
    assert {job_id for job_id, start in starts.items() if start is None} == {103, 104, 120, 121}
    assert starts[100] == 1795366715


@pytest.mark.parametrize("version", VERSIONS)
def test_a_resumed_run_was_suspended_for_as_long_as_it_did_not_use(version: str) -> None:
    one = observed(runs_of(version)[100])
    assert (one.started_us, one.ended_us, one.suspended) == (1795366715 * SECOND, None, ())
    assert one.suspended_before == (1795366720 * SECOND, 2 * SECOND)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_suspended_run_is_suspended_from_then_on(version: str) -> None:
    one = observed(runs_of(version)[101])
    assert one.suspended == ((1795366726 * SECOND, None),)
    assert one.suspended_before == (1795366726 * SECOND, 2 * SECOND)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_cancelled_while_suspended_ended_when_it_was_suspended(version: str) -> None:
    one = observed(runs_of(version)[102])
    assert one.ended_us == 1795366726 * SECOND
    assert one.suspended_before == (1795366726 * SECOND, 2 * SECOND)


@pytest.mark.parametrize("version", VERSIONS)
def test_gres_holds_restarts_and_names(version: str) -> None:
    runs = runs_of(version)
    assert runs[100].gres == {"gpu": 2, "gpu:a100": 2}
    assert runs[105].restarts == 1
    assert runs[120].hold_id == "h-9"
    one = observed(runs[108])
    assert (one.id, one.org, one.project, one.user, one.resource) == ("108", "vision", "vision", "ann", "gpu")


def test_a_limit_is_told_and_no_limit_is_none() -> None:
    assert observed(runs_of("22.05")[100]).limit_us == 600 * SECOND
    assert observed(runs_of("24.11")[100]).limit_us is None


def test_a_forecast_of_the_end_is_no_end() -> None:
    assert runs_of("22.05")[100].end is None


def test_gres_without_a_database_are_those_of_each_node() -> None:
    bare = {
        "tres_alloc_str": "cpu=4,node=2",
        "gres_detail": ["gpu:a100:2(IDX:0-1)", "gpu:a100:2(IDX:0,2)"],
        "qos": None,
    }
    runs, _ = parse_squeue(job(**bare), TAKEN)
    assert runs[0].gres == {"gpu": 4, "gpu:a100": 4}
    assert runs[0].qos == ""


def test_a_user_without_a_name_is_a_number() -> None:
    runs, _ = parse_squeue(job(user_name="", user_id=1001), TAKEN)
    assert runs[0].user == "1001"


def test_a_controller_that_is_down_is_no_empty_list() -> None:
    with pytest.raises(SourceError, match="slurm_load_jobs Failed while looking for jobs"):
        parse_squeue(payload("controller_down"), TAKEN)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"jobs": null}', '{"jobs": [', "slurm_load_jobs error", "\xff"]
)
def test_what_is_no_list_of_jobs_is_a_fault(text: str) -> None:
    with pytest.raises(SourceError, match="no list of jobs"):
        parse_squeue(text.encode("latin-1"), TAKEN)


@pytest.mark.parametrize(
    "changed",
    [
        {"job_id": "x"},
        {"job_state": "DREAMING"},
        {"job_state": []},
        {"start_time": 0},
        {"start_time": -5},
        {"start_time": 1e300},
        {"job_state": "COMPLETED", "end_time": 5},
        {"job_state": "SUSPENDED", "suspend_time": 0},
        {"tres_alloc_str": "gres/gpu=two"},
    ],
)
def test_a_record_that_makes_no_sense_is_counted_and_spoils_no_other(changed: dict[str, Any]) -> None:
    good = json.loads(payload("22.05"))["jobs"][0]
    runs, malformed = parse_squeue(json.dumps({"jobs": [good | changed, good], "errors": []}).encode(), TAKEN)
    assert ([run.job_id for run in runs], malformed) == ([100], 1)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_parsed_or_refused(value: object) -> None:
    with contextlib.suppress(SourceError):
        parse_squeue(json.dumps({"jobs": value}).encode(), TAKEN)


def sacct(*rows: tuple[str, ...]) -> bytes:
    return "".join(SACCT_DELIMITER.join(row) + "\n" for row in rows).encode()


PLAIN = ("7", "COMPLETED", "100", "130", "30", "ann", "vision", "gpu", "normal", "cpu=1,gres/gpu=2,node=1", "")


def changed_row(**cells: str) -> tuple[str, ...]:
    names = ("job", "state", "start", "end", "elapsed", "user", "account", "partition", "qos", "tres", "comment")
    return tuple(cells.get(name, text) for name, text in zip(names, PLAIN, strict=True))


def test_a_finished_run_of_accounting() -> None:
    (run,), malformed = parse_sacct(sacct(PLAIN))
    assert malformed == 0
    assert (run.key, run.phase, run.end, run.resumed, run.gres) == ((7, 100), Phase.ENDED, 130, None, {"gpu": 2})


def test_accounting_tells_how_long_a_run_was_suspended_by_what_it_did_not_use() -> None:
    (run,), _ = parse_sacct(sacct(changed_row(elapsed="18", state="CANCELLED by 0")))
    assert observed(run).suspended_before == (130 * SECOND, 12 * SECOND)


def test_a_hold_is_in_the_comment_of_a_finished_run() -> None:
    (run,), _ = parse_sacct(sacct(changed_row(comment="seen credits:hold=a.b-1 by ops | twice")))
    assert run.hold_id == "a.b-1"


@pytest.mark.parametrize(
    "cells",
    [
        {"state": "PENDING", "start": "Unknown", "end": "Unknown"},
        {"state": "PENDING"},
        {"state": "RUNNING", "end": "Unknown"},
        {"state": "CANCELLED by 0", "start": "None"},
        {"state": "CANCELLED by 0", "tres": "", "start": "130"},
        # The last record of a resized job goes from its start to its end.
        {"state": "RESIZING"},
    ],
)
def test_records_of_no_finished_run_are_passed_over(cells: dict[str, str]) -> None:
    assert parse_sacct(sacct(changed_row(**cells))) == ([], 0)


@pytest.mark.parametrize(
    "row", [PLAIN[:-1], changed_row(job="7.batch"), changed_row(elapsed="00:30"), changed_row(tres="gres/gpu=x")]
)
def test_lines_that_make_no_sense_are_counted(row: tuple[str, ...]) -> None:
    runs, malformed = parse_sacct(sacct(row, PLAIN))
    assert ([run.job_id for run in runs], malformed) == ([7], 1)


def run_of(**changed: Any) -> JobRun:
    plain = JobRun(job_id=7, phase=Phase.RUNNING, user="ann", account="vision", partition="gpu", qos="", start=100)
    return replace(plain, **changed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"account": "other"}, NO_ORG),
        ({"account": ""}, NO_ORG),
        ({"partition": ""}, NO_PRESET),
        ({"user": "a\nb"}, BAD_NAME),
        ({"user": "a" * 254}, BAD_NAME),
        ({"start": None}, MALFORMED),
        ({"resumed": (90, 0)}, MALFORMED),
        ({"resumed": (110, 11)}, MALFORMED),
    ],
)
def test_a_run_that_cannot_be_charged_says_why(changed: dict[str, Any], reason: str) -> None:
    rules = SlurmRules((AccountRule("vision", "acme", "vision"),))
    with pytest.raises(Unbillable) as verdict:
        observe(run_of(**changed), rules, {})
    assert verdict.value.reason == reason


@pytest.mark.parametrize(
    ("comment", "hold"),
    [
        ("credits:hold=h1", "h1"),
        ("x credits:hold=h:1.2_3-4 y", "h:1.2_3-4"),
        ("xcredits:hold=h1", None),
        ("credits:hold=", None),
        ("credits:hold=a b", "a"),
        ("credits:hold=ä/b", None),
        ("credits:unchecked", None),
        ("", None),
        (None, None),
    ],
)
def test_the_hold_in_an_admin_comment(comment: str | None, hold: str | None) -> None:
    assert hold_in(comment) == hold
