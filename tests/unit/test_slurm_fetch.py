"""One round of the Slurm source, with Slurm's programs made up by the test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.slurm_rules import AccountRule
from config.sources import SlurmSource as Settings
from exporter.sources.base import SourceError
from exporter.sources.names import MALFORMED, NO_PRESET
from exporter.sources.slurm import NO_ACCOUNTING, SlurmSource
from exporter.sources.slurm_parse import SACCT_DELIMITER

SECOND = 1_000_000
NOW = 1795366730 * SECOND + 700_000


class Slurm:
    """Programs that print what files say, fail where there is no such file, and note how they were called."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("squeue", "sacct", "sacctmgr", "scontrol"):
            program = directory / name
            program.write_text(
                f'#!/bin/sh\necho "$SLURM_CONF $*" >> {directory}/{name}.calls\n'
                f"cat {directory}/{name}.out || {{ echo {name} is down >&2; exit 1; }}\n"
            )
            program.chmod(0o755)
        self.says(
            "scontrol", "ClusterName = lab\nMinJobAge = 300 sec\nAccountingStorageType = accounting_storage/slurmdbd\n"
        )
        self.says("sacctmgr", "lab|acme||root\nlab|vision||acme\n")
        self.says("sacct", "")
        self.jobs()

    def says(self, program: str, text: str | None) -> None:
        path = self.directory / f"{program}.out"
        if text is None:
            path.unlink()
        else:
            path.write_text(text)

    def jobs(self, *jobs: dict[str, Any]) -> None:
        self.says("squeue", json.dumps({"jobs": jobs, "errors": []}))

    def calls(self, program: str) -> list[str]:
        path = self.directory / f"{program}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def source(self, **changed: Any) -> SlurmSource:
        usual = Settings(name="slurm-hpc", cluster="hpc", bin_dir=self.directory, slurm_conf=Path("/etc/s.conf"))
        return SlurmSource(replace(usual, **changed), lambda: NOW)


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path)


def job(**changed: Any) -> dict[str, Any]:
    usual = {"job_id": 7, "job_state": "RUNNING", "start_time": 1795366000, "end_time": 1795369600, "time_limit": 60}
    return usual | {"account": "vision", "user_name": "ann", "partition": "gpu", "tres_alloc_str": "cpu=1"} | changed


async def test_a_round(slurm: Slurm) -> None:
    slurm.jobs(job(), job(job_id=8, job_state="PENDING", admin_comment="credits:hold=h1"))
    snapshot = await slurm.source().fetch(None)
    assert (snapshot.source, snapshot.cluster, snapshot.complete) == ("slurm-hpc", "hpc", True)
    assert [(one.id, one.org, one.project) for one in snapshot.workloads] == [("7", "acme", "vision")]
    assert snapshot.pending_holds == {"h1"}
    assert slurm.calls("squeue")[0].startswith("/etc/s.conf --json")


async def test_a_waiting_job_whose_hold_its_comment_does_not_name_is_listed_by_its_id(slurm: Slurm) -> None:
    """It was let in unchecked, moved here from another org or is a task of an array that was changed alone, and was
    asked about by its id when it was changed."""
    comments = {8: "credits:hold=acme.1", 9: "credits:unchecked", 10: "credits:hold=globex.1", 11: ""}
    slurm.jobs(
        job(),
        *(job(job_id=number, job_state="PENDING", admin_comment=said) for number, said in comments.items()),
        job(job_id=12, job_state="PENDING", account="nobodys"),
        job(job_id=13, job_state="PENDING", admin_comment="credits:hold=acme.1", array_task_id=0),
        job(job_id=14, job_state="PENDING", admin_comment="credits:hold=acme.1", array_task_id=None),
    )
    snapshot = await slurm.source().fetch(None)
    assert snapshot.pending_holds == {"acme.1", "globex.1"}
    assert snapshot.pending == {("acme", "9"), ("acme", "10"), ("acme", "11"), ("acme", "13")}


async def test_it_is_taken_at_a_whole_second_that_is_over(slurm: Slurm) -> None:
    assert (await slurm.source().fetch(None)).taken_us == NOW // SECOND * SECOND


async def test_squeue_knows_better_than_accounting_what_both_know(slurm: Slurm) -> None:
    row = ["7", "COMPLETED", "1795366000", "1795366500", "500", "ann", "vision", "gpu", "normal", "cpu=1", ""]
    older = ["7", "REQUEUED", "1795365000", "1795365100", "100", "ann", "vision", "gpu", "normal", "cpu=1", ""]
    slurm.says("sacct", "".join(SACCT_DELIMITER.join(one) + "\n" for one in (older, row)))
    slurm.jobs(job())
    workloads = (await slurm.source().fetch(None)).workloads
    assert [(one.started_us, one.ended_us) for one in workloads] == [
        (1795366000 * SECOND, None),
        (1795365000 * SECOND, 1795365100 * SECOND),
    ]


async def test_a_record_left_out_that_may_be_running_makes_the_list_incomplete(slurm: Slurm) -> None:
    slurm.jobs(job(), job(job_id=8, job_state="DREAMING"))
    snapshot = await slurm.source().fetch(None)
    assert (len(snapshot.workloads), snapshot.complete, snapshot.unbillable) == (1, False, {MALFORMED: 1})
    slurm.jobs(job(partition=""))
    snapshot = await slurm.source().fetch(None)
    assert (snapshot.complete, snapshot.unbillable) == (False, {NO_PRESET: 1})


async def test_a_finished_record_left_out_hides_nothing_that_runs(slurm: Slurm) -> None:
    slurm.jobs(job(partition="", job_state="COMPLETED", end_time=1795366100))
    snapshot = await slurm.source().fetch(None)
    assert (snapshot.complete, snapshot.unbillable) == (True, {NO_PRESET: 1})


async def test_accounting_that_is_away_does_not_stop_the_round(slurm: Slurm) -> None:
    slurm.jobs(job())
    slurm.says("sacct", None)
    snapshot = await slurm.source().fetch(None)
    assert (len(snapshot.workloads), snapshot.unbillable) == (1, {NO_ACCOUNTING: 1})


async def test_without_an_account_tree_nobody_is_charged_in_its_place(slurm: Slurm) -> None:
    slurm.says("sacctmgr", None)
    with pytest.raises(SourceError, match=r"slurm-hpc: sacctmgr: .*sacctmgr is down"):
        await slurm.source().fetch(None)
    rules = (AccountRule("*", "{account}"),)
    assert (await slurm.source(accounts=rules).fetch(None)).complete


async def test_the_account_tree_is_asked_for_once_in_a_while(slurm: Slurm) -> None:
    slurm.jobs(job(account="unknown"))
    source = slurm.source()
    for _ in range(3):
        assert (await source.fetch(None)).unbillable == {"no_org": 1}
    assert len(slurm.calls("sacctmgr")) == 1


@pytest.mark.parametrize("off", [{"accounting": "off"}, {}])
async def test_where_there_is_no_accounting_none_is_asked(slurm: Slurm, off: dict[str, str]) -> None:
    if not off:
        slurm.says(
            "scontrol", "ClusterName = lab\nMinJobAge = 300 sec\nAccountingStorageType = accounting_storage/none\n"
        )
    slurm.jobs(job())
    workloads = (await slurm.source(**off).fetch(None)).workloads
    assert [(one.org, one.project) for one in workloads] == [("vision", "vision")]
    assert not slurm.calls("sacct")
    assert not slurm.calls("sacctmgr")


async def test_a_program_that_hangs_is_ended(slurm: Slurm) -> None:
    (slurm.directory / "squeue").write_text("#!/bin/sh\nsleep 600\n")
    with pytest.raises(SourceError, match=r"slurm-hpc: squeue: .*not done after 0\.3 s"):
        await slurm.source(timeout_seconds=0.3).fetch(None)


async def test_what_runs_the_programs_elsewhere_gets_their_environment_too(slurm: Slurm) -> None:
    wrapper = slurm.directory / "elsewhere"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {slurm.directory}/elsewhere.calls\nexec "$@"\n')
    wrapper.chmod(0o755)
    await slurm.source(run_with=(str(wrapper),)).fetch(None)
    assert slurm.calls("elsewhere")[0].startswith("env SLURM_TIME_FORMAT=%s SLURM_CONF=/etc/s.conf ")
