"""The Slurm source against a real Slurm: what it tells adds up to what Slurm's own accounting says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from config.sources import SlurmSource as Settings
from exporter.sources.base import SourceError
from exporter.sources.slurm import NO_ACCOUNTING, SlurmSource
from ledger.clock import now_us
from ledger.model import Observation, Snapshot
from tests.slurm_lab import Run, SlurmLab, wait_until

pytestmark = pytest.mark.slurm

SECOND = 1_000_000


def source_of(lab: SlurmLab, **settings: object) -> SlurmSource:
    return SlurmSource(Settings(name="slurm-lab", cluster="hpc", slurm_conf=lab.slurm_conf, **settings))  # type: ignore[arg-type]


def billable_us(one: Observation, at_us: int) -> int:
    """Time not suspended from the start up to `at_us`, by what the observation says."""
    assert one.started_us is not None
    end = at_us if one.ended_us is None else min(one.ended_us, at_us)
    before = one.suspended_before[1] if one.suspended_before else 0
    still = sum(max(end - since, 0) for since, until in one.suspended if until is None)
    return max(end - one.started_us - before - still, 0)


@dataclass
class History:
    """What happened to which job, and what a source that looked on all the time was told."""

    lab: SlurmLab
    jobs: dict[str, int] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    recorded: list[Run] = field(default_factory=list)

    def finished(self, what: str) -> list[Run]:
        return [run for run in self.recorded if run.job_id == self.jobs[what] and run.start and run.end]

    def told(self, snapshot: Snapshot) -> dict[tuple[str, int], Observation]:
        return {(one.id, one.started_us or 0): one for one in snapshot.workloads}


def look_on(lab: SlurmLab, snapshots: list[Snapshot], over: threading.Event) -> None:
    async def rounds() -> None:
        source = source_of(lab)
        while not over.is_set():
            snapshots.append(await source.fetch(snapshots[-1].taken_us if snapshots else None))
            await asyncio.sleep(0.3)

    asyncio.run(rounds())


@pytest.fixture(scope="module")
def history(slurm_lab: SlurmLab) -> Iterator[History]:
    lab = slurm_lab
    seen = History(lab)
    over = threading.Event()
    thread = threading.Thread(target=look_on, args=(lab, seen.snapshots, over))
    thread.start()
    try:
        play(lab, seen.jobs)
        seen.recorded = lab.sacct()
        newest = now_us()
        wait_until("a last look", lambda: bool(seen.snapshots) and seen.snapshots[-1].taken_us > newest + SECOND)
    finally:
        over.set()
        thread.join()
    yield seen
    for name in ("running", "suspended"):
        lab.run("scancel", str(seen.jobs[name]))


def play(lab: SlurmLab, jobs: dict[str, int]) -> None:
    """Everything that can happen to a job, in about 25 s."""
    wide = ["--exclusive", "--nodelist=n1"]
    jobs["preempted"] = lab.sbatch("bob", "projb", "sleep 300", ["--qos=low", "--requeue", *wide])
    jobs["running"] = lab.sbatch(options=["-p", "gpu", "--gres=gpu:a100:2", "-n2", "--time=10"])
    jobs["completed"] = lab.sbatch(script="sleep 2")
    jobs["array"] = lab.sbatch(script="sleep 2", options=["--array=0-2"])
    jobs["cancelled while waiting"] = lab.sbatch(options=["--hold"])
    jobs["suspended"] = lab.sbatch()
    jobs["resumed"] = lab.sbatch()
    jobs["cancelled while suspended"] = lab.sbatch()
    jobs["requeued"] = lab.sbatch(script="sleep 4", options=["--requeue"])
    jobs["resized"] = lab.sbatch(options=["--nodes=2"])
    het = ["sbatch", "--parsable", "--chdir=/tmp", "-o", "/dev/null", "-A", "proja", "-n1", ":", "-p", "gpu"]
    jobs["het"] = int(lab.run(*het, "--gres=gpu:1", "-n2", "--wrap", "sleep 2", user="alice"))
    lab.run("scancel", str(jobs["cancelled while waiting"]))
    stopped = [str(jobs[name]) for name in ("suspended", "resumed", "cancelled while suspended")]
    for name in ("requeued", "preempted", "running", "resized"):
        lab.wait_state(jobs[name], "RUNNING")
    for job in stopped:
        lab.wait_state(job, "RUNNING")
    lab.wait_second()
    lab.run("scontrol", "requeue", str(jobs["requeued"]))
    jobs["preemptor"] = lab.sbatch("alice", "proja", "sleep 2", ["--qos=high", *wide])
    for job in stopped:
        lab.run("scontrol", "suspend", job)
    lab.run("scontrol", "update", f"JobId={jobs['resized']}", "NumNodes=1")
    lab.wait_second()
    lab.wait_second()
    lab.run("scontrol", "resume", stopped[1])
    lab.run("scancel", stopped[2])
    lab.wait_second()
    lab.wait_second()
    lab.run("scontrol", "suspend", stopped[1])
    lab.wait_second()
    lab.run("scontrol", "resume", stopped[1])
    lab.wait_second()
    lab.run("scancel", stopped[1], str(jobs["resized"]))
    lab.wait_recorded(jobs["preempted"])
    lab.wait_state(jobs["preempted"], "RUNNING")
    lab.wait_second()
    lab.run("scancel", str(jobs["preempted"]))
    for name, runs in (("requeued", 2), ("preempted", 2), ("resumed", 1), ("resized", 2), ("het", 1), ("array", 1)):
        lab.wait_recorded(jobs[name], runs)


ENDED = (
    *("completed", "array", "het", "resumed", "cancelled while suspended"),
    *("requeued", "preempted", "preemptor", "resized"),
)


def elapsed_us(history: History) -> dict[tuple[str, int], int]:
    """What accounting says of all finished runs. Of a resized job it has a record up to each resize, and one of all."""
    return {
        (str(run.job_id), run.start * SECOND): run.elapsed * SECOND
        for run in history.recorded
        if run.start and run.end and run.state != "RESIZING"
    }


def test_all_of_it_happened(history: History) -> None:
    states = {name: {run.state.split()[0] for run in history.finished(name)} for name in ENDED}
    assert states["requeued"] == {"REQUEUED", "COMPLETED"}
    assert states["preempted"] == {"PREEMPTED", "CANCELLED"}
    assert states["resized"] == {"RESIZING", "CANCELLED"}
    assert states["completed"] == states["array"] == states["preemptor"] == states["het"] == {"COMPLETED"}
    assert all(run.suspended > 0 for run in history.finished("resumed"))


def test_a_source_that_looked_on_tells_what_accounting_says(history: History) -> None:
    last = {key: one for snapshot in history.snapshots for key, one in history.told(snapshot).items()}
    told = {key: billable_us(one, now_us()) for key, one in last.items() if one.ended_us is not None}
    assert told == elapsed_us(history)


def test_a_source_that_was_down_finds_what_squeue_forgot(history: History) -> None:
    for name in ENDED:
        history.lab.wait_state(history.jobs[name], "GONE")
    snapshot = asyncio.run(source_of(history.lab).fetch(None))
    told = {key: billable_us(one, now_us()) for key, one in history.told(snapshot).items() if one.ended_us is not None}
    assert told == elapsed_us(history)
    assert snapshot.complete


def test_no_snapshot_tells_more_than_comes_out_in_the_end(history: History) -> None:
    final = elapsed_us(history)
    for snapshot in history.snapshots:
        for key, one in history.told(snapshot).items():
            if key in final:
                assert billable_us(one, snapshot.taken_us) <= final[key], (snapshot.taken_us, one)


def test_a_running_run_never_vanishes_before_its_end_is_told_from_a_snapshot_that_is_complete(history: History) -> None:
    running: set[tuple[str, int]] = set()
    ended: set[tuple[str, int]] = set()
    for snapshot in history.snapshots:
        told = history.told(snapshot)
        ended |= {key for key, one in told.items() if one.ended_us is not None}
        if snapshot.complete:
            assert running - told.keys() <= ended
        running |= {key for key, one in told.items() if one.ended_us is None}


def test_a_running_job_says_who_runs_it_on_what_and_for_how_long_at_most(history: History) -> None:
    told = {one.id: one for one in history.snapshots[-1].workloads}
    one = told[str(history.jobs["running"])]
    assert (one.org, one.project, one.user, one.resource) == ("acme", "proja", "alice", "gpu")
    assert (one.ended_us, one.limit_us, one.suspended) == (None, 600 * SECOND, ())


def test_a_suspended_job_is_suspended_from_then_on(history: History) -> None:
    one = {one.id: one for one in history.snapshots[-1].workloads}[str(history.jobs["suspended"])]
    assert one.started_us is not None
    assert one.suspended_before == (one.suspended[0][0], 0)
    assert one.suspended[0][1] is None
    run = history.lab.sacct(history.jobs["suspended"])[0]
    assert billable_us(one, now_us()) == run.elapsed * SECOND


def test_a_job_cancelled_while_it_waited_is_no_workload(history: History) -> None:
    waited = str(history.jobs["cancelled while waiting"])
    assert all(one.id != waited for snapshot in history.snapshots for one in snapshot.workloads)


def test_a_hold_is_told_of_a_waiting_and_of_a_running_job(slurm_lab: SlurmLab) -> None:
    job = slurm_lab.sbatch(options=["--hold"])
    slurm_lab.run("scontrol", "update", f"JobId={job}", "AdminComment=checked credits:hold=h-1")
    source = source_of(slurm_lab)
    assert asyncio.run(source.fetch(None)).pending_holds == {"h-1"}
    slurm_lab.run("scontrol", "release", str(job))
    slurm_lab.wait_state(job, "RUNNING")
    snapshot = asyncio.run(source.fetch(None))
    slurm_lab.run("scancel", str(job))
    assert not snapshot.pending_holds
    assert [one.hold_id for one in snapshot.workloads if one.id == str(job)] == ["h-1"]


@pytest.mark.slow
def test_what_ends_while_the_database_is_away_is_told_once_it_is_back(slurm_lab: SlurmLab) -> None:
    source = source_of(slurm_lab)
    asyncio.run(source.fetch(now_us()))
    slurm_lab.end_daemon("slurmdbd")
    try:
        job = slurm_lab.sbatch(script="sleep 1")
        slurm_lab.wait_state(job, "RUNNING")
        running = asyncio.run(source.fetch(now_us()))
        slurm_lab.wait_state(job, "GONE")
        away = asyncio.run(source.fetch(now_us()))
    finally:
        slurm_lab.start_slurmdbd()
    assert [one.ended_us for one in running.workloads if one.id == str(job)] == [None]
    assert (away.complete, away.unbillable) == (False, {NO_ACCOUNTING: 1})
    (run,) = slurm_lab.wait_recorded(job, seconds=60)
    assert run.start is not None
    assert run.end is not None
    back = asyncio.run(source.fetch(now_us()))
    assert back.complete
    assert [one.ended_us for one in back.workloads if one.id == str(job)] == [run.end * SECOND]


@pytest.mark.slow
def test_a_controller_that_is_down_is_a_fault_of_the_source_and_not_the_end_of_all_jobs(slurm_lab: SlurmLab) -> None:
    source = source_of(slurm_lab)
    asyncio.run(source.fetch(None))
    slurm_lab.end_daemon("slurmctld")
    try:
        with pytest.raises(SourceError, match="slurmctld"):
            asyncio.run(source.fetch(None))
    finally:
        slurm_lab.start_slurmctld()
