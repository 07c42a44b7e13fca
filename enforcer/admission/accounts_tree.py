"""Slurm's account tree, kept at hand for the submit hook: read beside the decisions, never while one waits."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from config.slurm_rules import ASSOCIATIONS_COMMAND, needs_tree, parse_parents
from config.sources import SlurmSource

_EVERY_SECONDS: Final = 60.0
_AGAIN_SECONDS: Final = 5.0
_OUTPUT_MAX: Final = 64 * 1024 * 1024
log = logging.getLogger(__name__)


class AccountTree:
    """Who is whose parent on one Slurm cluster. None until it was read once; then the last good answer."""

    def __init__(self, source: SlurmSource) -> None:
        self._source = source
        self._text: str | None = None if needs_tree(source.rules) else ""
        self._told = ""
        self._task: asyncio.Task[None] | None = None

    def parents(self, slurm_cluster: str) -> Mapping[str, str] | None:
        """account -> parent, {} where no rule asks for it, None where it could not be read yet."""
        return None if self._text is None else parse_parents(self._text, slurm_cluster)

    def start(self) -> None:
        if needs_tree(self._source.rules):
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _follow(self) -> None:
        while True:
            try:
                self._text = await self._read()
            except (OSError, TimeoutError, ValueError) as error:
                self._tell(str(error) or f"no answer within {self._source.timeout_seconds:g} s")
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                self._tell("")
                await asyncio.sleep(_EVERY_SECONDS)

    def _tell(self, trouble: str) -> None:
        """Once, and again when it is another trouble, or over."""
        if trouble == self._told:
            return
        self._told = trouble
        if trouble:
            log.warning("the account tree of Slurm cluster %s cannot be read: %s", self._source.cluster, trouble)
        else:
            log.info("the account tree of Slurm cluster %s can be read again", self._source.cluster)

    async def _read(self) -> str:
        source = self._source
        program, *arguments = ASSOCIATIONS_COMMAND
        path = program if source.bin_dir is None else str(source.bin_dir / program)
        conf = [] if source.slurm_conf is None else [f"SLURM_CONF={source.slurm_conf}"]
        process = await asyncio.create_subprocess_exec(
            *source.run_with, "env", *conf, path, *arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=True, limit=_OUTPUT_MAX,
        )  # fmt: skip
        try:
            async with asyncio.timeout(source.timeout_seconds):
                output, errors = await process.communicate()
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, 9)
        if process.returncode != 0:
            raise ValueError(
                f"{program} ended with {process.returncode}: {errors[-300:].decode(errors='replace').strip()}"
            )
        return output.decode(errors="replace")
