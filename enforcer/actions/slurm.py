"""Signals, suspends and cancels Slurm jobs through Slurm's own commands, with the reason where the user looks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from config.sources import SlurmSource as SlurmSettings
from enforcer.actions.base import ActionError, Outcome

_OVER: Final = ("invalid job id", "already completing or completed", "job/step already", "already finished")
_LATER: Final = ("job is pending execution", "temporarily unavailable", "unable to contact", "socket timed out")
_COMMENT_MAX: Final = 800


class SlurmActions:
    """Workload ids are job ids. Signals go to every step and the batch script of a job.

    The reason is put into the job's output (`scontrol notify`) and its AdminComment, or its Comment where we may not
    write that one; neither failing keeps an action from being done.
    """

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings
        self._environ = dict(os.environ)
        if settings.slurm_conf is not None:
            self._environ["SLURM_CONF"] = str(settings.slurm_conf)

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        """Send `grace_signal`. Raises: ActionError."""
        await self._tell(workload_id, reason)
        return await self._do("scancel", f"--signal={self._settings.grace_signal}", "--full", workload_id)

    async def suspend(self, workload_id: str, reason: str) -> Outcome:
        """Raises: ActionError."""
        await self._tell(workload_id, reason)
        return await self._do("scontrol", "suspend", workload_id)

    async def resume(self, workload_id: str) -> Outcome:
        """Raises: ActionError."""
        return await self._do("scontrol", "resume", workload_id)

    async def stop(self, workload_id: str, reason: str) -> Outcome:
        """Raises: ActionError."""
        await self._tell(workload_id, reason)
        return await self._do("scancel", workload_id)

    async def close(self) -> None:
        """Nothing is open."""

    async def _tell(self, workload_id: str, reason: str) -> None:
        text = " ".join(reason.split())[:_COMMENT_MAX]
        with suppress(ActionError):
            await self._run("scontrol", "notify", workload_id, text)
        for field in ("AdminComment", "Comment"):
            with suppress(ActionError):
                status, _ = await self._run("scontrol", "update", f"JobId={workload_id}", f"{field}={text}")
                if status == 0:
                    return

    async def _do(self, *command: str) -> Outcome:
        status, said = await self._run(*command)
        lowered = said.lower()
        if any(words in lowered for words in _OVER):
            return Outcome.OVER
        if status == 0 and "error" not in lowered:
            return Outcome.DONE
        if "already suspended" in lowered or "not suspended" in lowered:
            return Outcome.DONE
        if any(words in lowered for words in _LATER):
            return Outcome.LATER
        raise ActionError(f"{' '.join(command[:2])}: {said or f'exit code {status}'}; the exporter's and enforcer's user "
                          "needs to be Slurm operator")  # fmt: skip

    async def _run(self, *command: str) -> tuple[int, str]:
        """(exit code, what it said). Raises: ActionError when it cannot be run or does not end in time."""
        argv: Sequence[str] = (*self._settings.run_with, self._path(command[0]), *command[1:])
        try:
            child = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environ,
            )
        except OSError as error:
            raise ActionError(f"{argv[0]} cannot be run: {error}") from error
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                said, _ = await child.communicate()
        except TimeoutError:
            raise ActionError(f"{command[0]} did not end within {self._settings.timeout_seconds:g} s") from None
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        return child.returncode or 0, said.decode(errors="replace").strip()

    def _path(self, name: str) -> str:
        return name if self._settings.bin_dir is None else str(self._settings.bin_dir / name)
