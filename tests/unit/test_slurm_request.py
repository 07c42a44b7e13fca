"""What the submit hook asks, in credits' words."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.slurm_request import COUNT_MAX, SlurmRequest, array_size, parse_slurm_request
from config.slurm_rules import PresetRule, SlurmRules


def ask(**said: object) -> SlurmRequest:
    usual = {"scheduler": "slurm", "cluster": "hpc", "account": "vision", "user": "ann", "partition": "cpu"}
    return parse_slurm_request(json.dumps(usual | said).encode())


def test_what_is_asked_for_in_all() -> None:
    asked = ask(
        nodes=2,
        tasks=3,
        tres_per_job="gpu:1",
        tres_per_node="gres:gpu:a100:2",
        tres_per_task="gpu:1",
        tres_per_socket="x",
    )
    assert asked.gres == {"gpu": 1 + 4 + 3, "gpu:a100": 4, "x": 2}


def test_a_plain_job() -> None:
    asked = ask(time_limit_minutes=30)
    assert (asked.count, asked.max_runtime_seconds, asked.gres, asked.partitions) == (1, 1800, {}, ("cpu",))
    assert (asked.job_id, asked.replaces_hold) == (None, None)


def test_a_changed_job_does_not_say_how_many_tasks_it_has() -> None:
    assert ask(job_id=7, replaces_hold="h-1").count is None


def test_a_task_of_an_array_that_is_changed_is_one() -> None:
    task = ask(job_id=8, array_task=0, replaces_hold="h-1")
    assert (task.is_task, task.count) == (True, 1)
    assert not ask(job_id=7, replaces_hold="h-1").is_task
    assert not ask(array_task=0).is_task  # as it is submitted


def test_a_job_for_several_partitions_may_come_to_run_on_several_presets() -> None:
    rules = SlurmRules(presets=(PresetRule("small", partition="cpu*"), PresetRule("large", partition="gpu")))
    assert ask(partition="cpu,gpu,cpu2").presets(rules) == ("small", "large")
    assert ask(partition="cpu,unknown").presets(rules) == ()


@pytest.mark.parametrize(
    ("text", "count"),
    [("0-9", 10), ("1-9:2%3", 5), ("3", 1), ("1,1,0-3", 4), ("0-4000000", COUNT_MAX), ("", 1), (None, 1)],
)
def test_tasks_of_an_array(text: str | None, count: int) -> None:
    assert array_size(text) == count


@pytest.mark.parametrize(
    "text", ["a", "5-1", "0-", "-3", "0-9:0", "1,,2", "0-4000001", "0-9999999999", "0-4000000,0-4000000", "१", "%4"]
)
def test_text_that_is_no_array(text: str) -> None:
    with pytest.raises(ValueError, match="is not a job array"):
        array_size(text)


@given(st.sets(st.integers(0, 2000), min_size=1))
def test_an_array_has_as_many_tasks_as_it_names(tasks: set[int]) -> None:
    assert array_size(",".join(map(str, tasks))) == len(tasks)


@pytest.mark.parametrize(
    "said",
    [
        {"scheduler": "pbs"},
        {"cluster": None},
        {"account": 5},
        {"array": "x"},
        {"tres_per_node": "gpu::1"},
        {"nodes": -1},
        {"time_limit_minutes": 2**31},
    ],
)
def test_a_question_that_makes_no_sense_is_refused(said: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        ask(**said)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_question_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="not a question"):
        parse_slurm_request(payload)
