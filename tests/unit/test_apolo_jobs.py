"""Jobs as the Apolo platform lists them, and what is billed of them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.preset_sizes import Size
from exporter.sources.apolo_records import Job, Verdict, read_job, run_of
from exporter.sources.base import SourceError
from exporter.sources.preset_sizes import PresetSizes
from ledger.model import Observation
from tests.standins.apolo_api import ApoloApi

T0 = 1_764_000_000_000_000
MINUTE = 60_000_000
TRUSTED = PresetSizes()
SIZED = PresetSizes([("small", Size(1000, 2**30)), ("large", Size(8000, 2**34)), ("gpu", Size(8000, 2**34, 1))])


def job(*statuses: tuple[str, int], **more: Any) -> dict[str, Any]:
    """A job as served; times in minutes after T0."""
    stored = ApoloApi().add_job(*((status, T0 + at * MINUTE) for status, at in statuses), **more)
    return stored.body()


def read(body: dict[str, Any], sizes: PresetSizes = TRUSTED) -> Verdict:
    return read_job(json.dumps(body).encode(), "default", sizes)


def observed(body: dict[str, Any], sizes: PresetSizes = TRUSTED) -> Observation:
    observation = read(body, sizes).observation
    assert observation is not None
    return observation


def billed(observation: Observation) -> int:
    """Minutes billed of a job that has ended."""
    assert observation.started_us is not None
    assert observation.ended_us is not None
    paused = sum((until or 0) - since for since, until in observation.suspended)
    return (observation.ended_us - observation.started_us - paused) // MINUTE


def test_pending_time_is_free_and_running_time_is_billed():
    seen = observed(job(("pending", 0), ("running", 5), ("succeeded", 15)))
    assert (seen.started_us, seen.ended_us, seen.suspended) == (T0 + 5 * MINUTE, T0 + 15 * MINUTE, ())


def test_a_job_in_the_queue_is_told_but_has_not_started():
    seen = observed(job(("pending", 0)))
    assert (seen.started_us, seen.ended_us) == (None, None)


def test_a_running_job_has_no_end():
    verdict = read(job(("pending", 0), ("running", 5)))
    assert verdict.active
    assert verdict.observation is not None
    assert verdict.observation.ended_us is None


def test_a_preempted_job_is_not_billed_until_it_runs_again():
    seen = observed(job(("running", 0), ("suspended", 10), ("pending", 60), ("running", 70), ("succeeded", 100)))
    assert seen.suspended == ((T0 + 10 * MINUTE, T0 + 70 * MINUTE),)
    assert billed(seen) == 40


def test_a_job_that_is_suspended_now_has_an_open_suspension():
    seen = observed(job(("running", 0), ("suspended", 10)))
    assert seen.suspended == ((T0 + 10 * MINUTE, None),)


def test_a_job_cancelled_while_suspended_is_billed_until_the_suspension():
    seen = observed(job(("running", 0), ("suspended", 10), ("cancelled", 50)))
    assert seen.ended_us == T0 + 50 * MINUTE
    assert billed(seen) == 10


def test_restarts_of_a_container_go_on_being_billed():
    seen = observed(job(("running", 0), ("running", 10), ("running", 20), ("failed", 30)))
    assert (billed(seen), seen.suspended) == (30, ())


def test_w03_a_job_cancelled_at_once_is_billed_to_the_microsecond():
    body = job(("pending", 0), ("running", 5))
    body["status"] = "cancelled"
    body["statuses"].append({"status": "cancelled", "transition_time": "2030-01-01T00:00:00.000001+00:00"})
    assert observed(body).ended_us == 1_893_456_000_000_001


def test_a_job_that_never_ran_is_not_told():
    verdict = read(job(("pending", 0), ("cancelled", 5)))
    assert (verdict.observation, verdict.reason, verdict.active) == (None, None, False)


def test_w01_prices_and_totals_of_the_platform_are_not_looked_at():
    body = job(("running", 0), ("succeeded", 10))
    seen = observed(body)
    del body["price_credits_per_hour"], body["total_price_credits"]
    assert observed(body) == seen


def test_f05_service_accounts_keep_their_full_name():
    assert observed(job(("running", 0), owner="alice/service-accounts/ci")).user == "alice/service-accounts/ci"


def test_a_job_is_of_its_org_and_project():
    seen = observed(job(("running", 0), org="acme", project="vision"))
    assert (seen.org, seen.project, seen.kind, seen.resource) == ("acme", "vision", "job", "cpu-small")


def test_a_job_without_an_org_is_counted():
    assert read(job(("running", 0), org=None)).reason == "no_org"


def test_a_job_without_a_preset_is_counted_where_sizes_are_unknown():
    assert read(job(("running", 0), preset=None)).reason == "no_preset"


def test_jobs_of_other_clusters_are_passed_over():
    verdict = read(job(("running", 0), cluster="other"))
    assert (verdict.observation, verdict.reason, verdict.active) == (None, None, False)


def test_the_run_time_limit_is_known():
    assert observed(job(("running", 0), max_run_time_minutes=90)).limit_us == 90 * MINUTE


@pytest.mark.parametrize(
    ("preset", "resources", "charged", "oversized"),
    [
        ("small", {"cpu": 1.0, "memory": 2**30}, "small", False),
        ("small", {"cpu": 0.5, "memory_mb": 512}, "small", False),
        ("small", {"cpu": 64.0, "memory": 2**30}, "gpu", True),
        ("small", {"cpu": 4.0, "memory": 2**30}, "large", True),
        ("small", {"cpu": 1.0, "memory": 2**30, "nvidia_gpu": 1}, "gpu", True),
        ("large", {"cpu": 1.0, "memory": 2**30, "nvidia_migs": {"1g.5gb": 1}}, "gpu", True),
        ("gone", {"cpu": 64.0, "memory": 2**30}, "gone", False),
        (None, {"cpu": 1.0, "memory": 2**30}, "small", False),
        (None, {"cpu": 1.0, "memory": 2**30, "amd_gpu": 1}, "gpu", False),
    ],
)
def test_f09_a_job_is_charged_by_what_it_takes_not_by_what_it_calls_itself(
    preset: str | None, resources: dict[str, Any], charged: str, oversized: bool
):
    verdict = read(job(("running", 0), preset=preset, resources=resources), SIZED)
    assert verdict.observation is not None
    assert (verdict.observation.resource, verdict.oversized) == (charged, oversized)


def test_w09_a_deleted_preset_keeps_its_name_on_the_jobs_that_ran_on_it():
    body = job(("running", 0), ("succeeded", 5), preset="gone", resources={"cpu": 1.0, "memory": 1})
    assert observed(body, SIZED).resource == "gone"


@pytest.mark.parametrize(
    "spoil",
    [
        {"statuses": []},
        {"statuses": [{"status": "running", "transition_time": "yesterday"}]},
        {"statuses": [{"status": "running", "transition_time": "2025-01-01T00:00:00"}]},
        {"owner": 7},
        {"org_name": "a\nb"},
        {"project_name": "x" * 300},
        {"preset_name": "a\x00"},
    ],
)
def test_w11_an_odd_job_is_counted_and_not_believed_to_be_over(spoil: dict[str, Any]):
    verdict = read(job(("running", 0)) | spoil)
    assert verdict.observation is None
    assert verdict.reason in ("malformed", "bad_name")
    assert verdict.active


def test_a_final_status_without_its_transition_is_malformed():
    assert read(job(("running", 0)) | {"status": "failed"}).reason == "malformed"


def test_an_error_at_the_end_of_the_list_is_an_error():
    with pytest.raises(SourceError, match="the database went away"):
        read_job(b'{"error": "the database went away"}', "default", TRUSTED)


def test_half_a_line_is_an_error():
    whole = json.dumps(job(("running", 0))).encode()
    with pytest.raises(SourceError, match="breaks off"):
        read_job(whole[: len(whole) // 2], "default", TRUSTED)


STATUSES = st.lists(
    st.tuples(st.sampled_from(["pending", "running", "suspended"]), st.integers(0, 600)), min_size=1, max_size=12
)


@given(STATUSES, st.sampled_from(["succeeded", "failed", "cancelled"]), st.integers(0, 600))
def test_what_is_billed_is_the_sum_of_all_running_time(steps: list[tuple[str, int]], last: str, more: int):
    at = 0
    moves = []
    for status, gap in steps:
        moves.append((status, T0 + at))
        at += gap
    moves.append((last, T0 + at + more))
    expected = sum(until - since for (status, since), (_, until) in itertools.pairwise(moves) if status == "running")
    body = ApoloApi().add_job(*moves).body()
    started, ended, gaps = run_of(_decode(body))
    if started is None:
        assert expected == 0
        return
    assert ended is not None
    assert ended - started - sum((until or 0) - since for since, until in gaps) == expected
    assert list(gaps) == sorted(gaps)


def _decode(body: dict[str, Any]) -> Job:
    return msgspec.convert(body, Job)
