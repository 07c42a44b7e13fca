"""What the enforcer does to jobs of a real Slurm, and what their users see of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.sources import SlurmSource
from enforcer.actions.base import ActionError, Outcome
from enforcer.actions.slurm import SlurmActions
from tests.slurm_lab import SlurmLab, wait_until

pytestmark = pytest.mark.slurm

REASON = "Org acme has no credits left; ask <ops> (ops@acme.example)."
SHOWN = "Org acme has no credits left; ask  ops  (ops@acme.example)."


@pytest.fixture
def actions(slurm_lab: SlurmLab) -> SlurmActions:
    return SlurmActions(SlurmSource(cluster="hpc", slurm_conf=slurm_lab.slurm_conf, grace_signal="TERM"))


@pytest.fixture
def shared(slurm_lab: SlurmLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that jobs may write to."""
    directory = slurm_lab.base / tmp_path_factory.mktemp("shared").name
    directory.mkdir()
    directory.chmod(0o777)
    yield directory
    slurm_lab.run("scancel", "--user=alice")


def submit(lab: SlurmLab, shared: Path, *options: str) -> int:
    """A job that says when it is there, and saves what it has when it is told to."""
    script = f"trap 'echo $SLURM_JOB_ID >> {shared}/saved' TERM; touch {shared}/there-$SLURM_JOB_ID; "
    script += "while :; do sleep 0.1; done"
    return lab.sbatch(script=script, options=[f"--output={shared}/%j.out", *options])


def saved(shared: Path) -> list[str]:
    """Jobs that got a SIGTERM, also from Slurm at their end."""
    return (shared / "saved").read_text().split() if (shared / "saved").exists() else []


def comment(lab: SlurmLab, job: int) -> str:
    lines = lab.run("scontrol", "show", "job", str(job)).splitlines()
    return next((line.strip() for line in lines if "AdminComment=" in line), "").removeprefix("AdminComment=")


def test_a_job_is_told_suspended_resumed_and_ended(slurm_lab: SlurmLab, actions: SlurmActions, shared: Path) -> None:
    lab = slurm_lab
    number = submit(lab, shared)
    job = str(number)
    lab.run("scontrol", "update", f"JobId={job}", "AdminComment=seen by ops credits:hold=acme.x")
    assert asyncio.run(actions.signal("999999", REASON)) is Outcome.OVER
    wait_until("the job runs", (shared / f"there-{job}").exists)

    for _ in range(2):  # it may be told again
        assert asyncio.run(actions.signal(job, REASON)) is Outcome.DONE
    wait_until("the job has saved", lambda: job in saved(shared))
    assert lab.state(number) == "RUNNING"
    assert comment(lab, number) == f"<credits: {SHOWN}> seen by ops credits:hold=acme.x"
    output = shared / f"{job}.out"
    wait_until("the job's output says why", lambda: SHOWN in output.read_text())
    assert output.read_text().count(SHOWN) == 1

    for _ in range(2):
        assert asyncio.run(actions.suspend(job, REASON)) is Outcome.DONE
    assert lab.state(number) == "SUSPENDED"
    assert asyncio.run(actions.signal(job, REASON)) is Outcome.LATER

    for _ in range(2):
        assert asyncio.run(actions.resume(job)) is Outcome.DONE
    assert lab.state(number) == "RUNNING"
    assert comment(lab, number) == "seen by ops credits:hold=acme.x"

    assert asyncio.run(actions.stop(job, REASON)) is Outcome.DONE
    (run,) = lab.wait_recorded(number)
    assert run.state.startswith("CANCELLED")
    for over in (actions.signal(job, REASON), actions.suspend(job, REASON), actions.resume(job)):
        assert asyncio.run(over) is Outcome.OVER


def test_a_task_of_an_array_is_meant_alone(slurm_lab: SlurmLab, actions: SlurmActions, shared: Path) -> None:
    lab = slurm_lab
    array = submit(lab, shared, "--array=0-2%2")
    wait_until("two tasks run", lambda: len(list(shared.glob("there-*"))) == 2)
    running = lab.run("squeue", "-h", "-t", "R", "-j", str(array), "-O", "JobID").split()
    assert str(array) not in running  # the number of the array is that of the task that waits
    assert asyncio.run(actions.stop(str(array), REASON)) is Outcome.OVER
    assert asyncio.run(actions.suspend(running[0], REASON)) is Outcome.DONE
    assert asyncio.run(actions.stop(running[1], REASON)) is Outcome.DONE
    wait_until("the last task runs", lambda: (shared / f"there-{array}").exists())
    assert asyncio.run(actions.signal(str(array), REASON)) is Outcome.DONE
    wait_until("it has saved", lambda: str(array) in saved(shared))
    assert running[0] not in saved(shared)
    states = lab.run("squeue", "-h", "-t", "R,S", "-j", str(array), "-O", "JobID,StateCompact").split()
    assert dict(zip(states[::2], states[1::2], strict=True)) == {running[0]: "S", str(array): "R"}


def test_components_of_a_heterogeneous_job_are_suspended_together(slurm_lab: SlurmLab, actions: SlurmActions) -> None:
    lab = slurm_lab
    parts = ["-n1", ":", "-p", "gpu", "-n2", "--wrap", "sleep 60"]
    common = ["sbatch", "--parsable", "--chdir=/tmp", "-o", "/dev/null", "-A", "proja"]
    first = int(lab.run(*common, *parts, user="alice"))
    for number in (first, first + 1):
        lab.wait_state(number, "RUNNING")
    for number in (first, first + 1):
        assert asyncio.run(actions.suspend(str(number), REASON)) is Outcome.DONE
    assert [lab.state(number) for number in (first, first + 1)] == ["SUSPENDED"] * 2
    assert asyncio.run(actions.stop(str(first + 1), REASON)) is Outcome.DONE
    lab.wait_recorded(first)


def test_a_controller_that_is_away_is_no_end_of_a_job(slurm_base: Path) -> None:
    absent = slurm_base / "absent.conf"
    absent.write_text("ClusterName=absent\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nMessageTimeout=2\n")
    actions = SlurmActions(SlurmSource(cluster="hpc", slurm_conf=absent, timeout_seconds=5))
    with pytest.raises(ActionError, match="squeue"):
        asyncio.run(actions.stop("1", REASON))
