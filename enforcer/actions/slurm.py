"""Signals, suspends, resumes and ends the jobs of a Slurm cluster, through Slurm's own programs.

They need the rights of an Administrator or of SlurmUser: an Operator may neither write the reason into the output
and the AdminComment of a job of others, where its user sees it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from config.sources import SlurmSource as SlurmSettings
from enforcer.actions.base import ActionError, Outcome

_GONE: Final = "Invalid job id specified"
_RUNS: Final = frozenset({"RUNNING", "STOPPED"})
_PASSING: Final = frozenset({"CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT"})
_WIDTHS: Final = {"JobID": 20, "JobArrayID": 80, "State": 24}
_COMMENT: Final = re.compile(r"^ +AdminComment=(.*)$", re.MULTILINE)
_NOTE: Final = re.compile(r"\s*<credits: [^<>]*>\s*")
_REASON_MAX: Final = 900


class Ran(NamedTuple):
    """How a program ended."""

    code: int
    output: str
    errors: str


Runner = Callable[[Sequence[str], float], Awaitable[Ran]]
"""(arguments, seconds) -> how it ended. Raises: ActionError where it cannot be started or takes longer."""


class _Job(NamedTuple):
    number: str
    name: str
    """What means just this job: `7_2` of an array, whose number alone could mean all of it; of a heterogeneous job
    its first component, as Slurm suspends no other by itself."""
    state: str


class SlurmActions:
    """Workload ids are Slurm's job ids, each array task's its own."""

    def __init__(self, settings: SlurmSettings, run: Runner | None = None) -> None:
        self._settings = settings
        self._run = run or run_program

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        """The signal of the settings, to the script and all its steps."""
        job = await self._find(workload_id)
        if job is None or job.state not in _RUNS:
            return _not_running(job)
        await self._tell(job, reason)
        if self._settings.grace_signal == "none":
            return Outcome.DONE
        return await self._act("scancel", "--full", f"--signal={self._settings.grace_signal}", job.name)

    async def suspend(self, workload_id: str, reason: str) -> Outcome:
        """Frees its processors for others, and costs nothing from then on; its memory stays taken."""
        job = await self._find(workload_id)
        if job is not None and job.state == "SUSPENDED":
            return Outcome.DONE
        if job is None or job.state not in _RUNS:
            return _not_running(job)
        await self._tell(job, reason)
        return await self._act("scontrol", "suspend", job.name)

    async def resume(self, workload_id: str) -> Outcome:
        """Lets a suspended job go on, without the reason it was given."""
        job = await self._find(workload_id)
        if job is not None and job.state in _RUNS:
            return Outcome.DONE
        if job is None or job.state != "SUSPENDED":
            return _not_running(job)
        with suppress(ActionError):
            await self._comment(job, "")
        return await self._act("scontrol", "resume", job.name)

    async def stop(self, workload_id: str, reason: str) -> Outcome:
        """Cancels it: SIGTERM, then SIGKILL after KillWait."""
        job = await self._find(workload_id)
        if job is None or job.state not in _RUNS | {"SUSPENDED"}:
            return _not_running(job)
        await self._tell(job, reason)
        return await self._act("scancel", job.name)

    async def close(self) -> None:
        """Nothing is kept open between two actions."""

    async def _find(self, workload_id: str) -> _Job | None:
        if not workload_id.isascii() or not workload_id.isdigit():
            raise ActionError(f"job {workload_id!r:.80}: is not a job id of Slurm")
        fields = ",".join(f"{name}:{width}" for name, width in _WIDTHS.items())
        ran = await self._slurm("squeue", "--noheader", "--states=all", f"--jobs={workload_id}", f"--Format={fields}")
        if ran.code != 0:
            if _GONE in ran.errors:
                return None
            raise _failed("squeue", ran)
        for line in ran.output.splitlines():
            values, at = [], 0
            for width in _WIDTHS.values():
                values.append(line[at : at + width].strip())
                at += width
            number, name, state = values
            if number == workload_id and "[" not in name:  # not the tasks of its array that still wait
                return _Job(number, name.partition("+")[0], state)
        return None

    async def _act(self, program: str, *arguments: str) -> Outcome:
        ran = await self._slurm(program, *arguments)
        if ran.code == 0:
            return Outcome.DONE
        if _GONE in ran.errors or "already completing or completed" in ran.errors:
            return Outcome.OVER
        raise _failed(f"{program} {arguments[0]}" if program == "scontrol" else program, ran)

    async def _tell(self, job: _Job, reason: str) -> None:
        """Into the job's output and its comment, as far as we may: the action goes on without."""
        said = re.sub(r"[\x00-\x1f\x7f<>]", " ", reason)[:_REASON_MAX]
        with suppress(ActionError):
            if await self._comment(job, f"<credits: {said}>"):
                await self._slurm("scontrol", "notify", job.number, said)

    async def _comment(self, job: _Job, note: str) -> bool:
        """Put our note before what else stands in the AdminComment; False where it is there already."""
        ran = await self._slurm("scontrol", "show", "job", job.name)
        found = _COMMENT.search(ran.output)
        present = found[1] if found else ""
        kept = _NOTE.sub(" ", present).strip()
        comment = " ".join(part for part in (note, kept) if part)
        if ran.code != 0 or comment == present.strip():
            return False
        await self._slurm("scontrol", "update", f"JobId={job.name}", f"AdminComment={comment}")
        return True

    async def _slurm(self, program: str, *arguments: str) -> Ran:
        settings = self._settings
        path = program if settings.bin_dir is None else str(settings.bin_dir / program)
        conf = [] if settings.slurm_conf is None else [f"SLURM_CONF={settings.slurm_conf}"]
        command: Sequence[str] = ("env", *conf, path, *arguments)
        if settings.run_with and Path(settings.run_with[0]).name == "ssh":
            # A shell reads it on the other side, and a reason holds whatever an org's contact is.
            command = [shlex.quote(word) for word in command]
        return await self._run((*settings.run_with, *command), settings.timeout_seconds)


def _not_running(job: _Job | None) -> Outcome:
    """A job that waits again was requeued: the run that was meant is over."""
    return Outcome.LATER if job is not None and job.state in _PASSING | {"SUSPENDED"} else Outcome.OVER


def _failed(what: str, ran: Ran) -> ActionError:
    return ActionError(f"{what} ended with {ran.code}: {' '.join(ran.errors.split())[-300:]}")


async def run_program(argv: Sequence[str], seconds: float) -> Ran:
    """Runs a program in a process group of its own, of which nothing is left behind."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise ActionError(f"{argv[0]} cannot be started: {error}") from error
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate()
    except TimeoutError:
        raise ActionError(f"{' '.join(argv[:6])}: not done after {seconds:g} s") from None
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)
    return Ran(process.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace"))
