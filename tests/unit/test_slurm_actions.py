"""How Slurm's programs are called, and what becomes of their answers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from config.sources import SlurmSource
from enforcer.actions.base import ActionError, Outcome
from enforcer.actions.slurm import Ran, SlurmActions, run_program


class Programs:
    """Answers by the program's name, and what was asked."""

    def __init__(self, state: str = "RUNNING", **answers: Ran) -> None:
        line = "".join(text.ljust(width) for text, width in (("7", 20), ("7", 80), (state, 24)))
        self.answers = {"squeue": Ran(0, f"{line}\n", ""), **answers}
        self.asked: list[tuple[str, ...]] = []

    async def run(self, argv: Sequence[str], seconds: float) -> Ran:
        self.asked.append(tuple(argv))
        names = ("squeue", "scancel", "scontrol")
        name = next(Path(word.strip("'")).name for word in argv if Path(word.strip("'")).name in names)
        return self.answers.get(name, Ran(0, "", ""))


async def test_programs_are_found_where_the_source_finds_them() -> None:
    programs = Programs()
    settings = SlurmSource(slurm_conf=Path("/etc/s/slurm.conf"), bin_dir=Path("/opt/bin"), run_with=("sudo", "-n"))
    assert await SlurmActions(settings, programs.run).stop("7", "why") is Outcome.DONE
    assert programs.asked[-1] == ("sudo", "-n", "env", "SLURM_CONF=/etc/s/slurm.conf", "/opt/bin/scancel", "7")


async def test_a_reason_is_no_command_to_the_shell_behind_ssh() -> None:
    programs = Programs()
    await SlurmActions(SlurmSource(run_with=("ssh", "login1")), programs.run).stop("7", "ask $(reboot); `now`")
    said = [argv for argv in programs.asked if "notify" in argv]
    assert [argv[-1] for argv in said] == ["'ask $(reboot); `now`'"]


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("PENDING", Outcome.OVER),
        ("COMPLETING", Outcome.OVER),
        ("CONFIGURING", Outcome.LATER),
        ("STOPPED", Outcome.DONE),
    ],
)
async def test_only_a_job_that_runs_is_suspended(state: str, outcome: Outcome) -> None:
    programs = Programs(state)
    assert await SlurmActions(SlurmSource(), programs.run).suspend("7", "why") is outcome
    assert any("suspend" in argv for argv in programs.asked) is (outcome is Outcome.DONE)


@pytest.mark.parametrize(("name", "sent"), [("TERM", ["--signal=TERM"]), ("CONT", ["--signal=CONT"]), ("none", [])])
async def test_the_signal_is_that_of_the_settings(name: str, sent: list[str]) -> None:
    programs = Programs()
    assert await SlurmActions(SlurmSource(grace_signal=name), programs.run).signal("7", "why") is Outcome.DONE
    assert [word for argv in programs.asked for word in argv if word.startswith("--signal")] == sent
    assert any("notify" in argv for argv in programs.asked)


async def test_a_job_is_acted_on_though_its_user_cannot_be_told() -> None:
    programs = Programs(scontrol=Ran(1, "", "Access/permission denied"))
    assert await SlurmActions(SlurmSource(), programs.run).stop("7", "why") is Outcome.DONE


async def test_a_job_that_ends_meanwhile_is_over() -> None:
    gone = Ran(1, "", "scancel: error: Kill job error on job id 7: Job/step already completing or completed")
    assert await SlurmActions(SlurmSource(), Programs(scancel=gone).run).stop("7", "why") is Outcome.OVER


async def test_what_slurm_refuses_is_told() -> None:
    refused = Ran(1, "", "slurm_suspend error:\n  Access/permission denied")
    actions = SlurmActions(SlurmSource(), Programs(scontrol=refused).run)
    with pytest.raises(ActionError, match="scontrol suspend ended with 1: slurm_suspend error: Access/permission"):
        await actions.suspend("7", "why")
    with pytest.raises(ActionError, match="not a job id"):
        await actions.stop("--all", "why")


async def test_a_program_is_not_waited_for_longer_than_that() -> None:
    assert await run_program([sys.executable, "-c", "print(1)"], 20) == Ran(0, "1\n", "")
    with pytest.raises(ActionError, match="not done after"):
        await run_program(["sleep", "60"], 0.1)
    with pytest.raises(ActionError, match="cannot be started"):
        await run_program(["/nowhere/scancel"], 1)
