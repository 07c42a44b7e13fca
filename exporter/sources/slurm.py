"""Slurm, through its own tools: squeue for what runs, sacct for what ended unseen, sacctmgr for the account tree."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from config.slurm_rules import ASSOCIATIONS_COMMAND, needs_tree, owner_of, parse_parents
from config.sources import SlurmSource as Settings
from exporter.sources.base import SourceError
from exporter.sources.command import run_command
from exporter.sources.names import MALFORMED, Unbillable
from exporter.sources.slurm_accounting import AccountingWatch
from exporter.sources.slurm_parse import SACCT_DELIMITER, SACCT_FIELDS, parse_sacct, parse_squeue
from exporter.sources.slurm_run import JobRun, Phase, observe
from exporter.sources.uncharged import Uncharged
from ledger.clock import Clock, now_us
from ledger.hold_ids import org_of_hold
from ledger.model import Snapshot

_log = logging.getLogger(__name__)

_SECOND: Final = 1_000_000
_TREE_US: Final = 300 * _SECOND
_TREE_RETRY_US: Final = 30 * _SECOND
_CLUSTER_US: Final = 600 * _SECOND
NO_ACCOUNTING: Final = "no_accounting"
"""Reason of `unbillable` for a round in which accounting should have answered and did not."""


@dataclass(frozen=True, slots=True)
class _Cluster:
    """What `scontrol show config` says that matters here."""

    name: str
    min_job_age_us: int
    accounting: bool


class SlurmSource:
    """The jobs of one Slurm cluster, each run from one start to its end a workload of its own.

    Keeps in memory what accounting was asked and what squeue showed, only to ask accounting less often: a
    new source asks for all that ended since `lookback_hours` before the instant it is told to start from.
    """

    def __init__(self, settings: Settings, clock: Clock = now_us) -> None:
        self.name = settings.name
        self.cluster = settings.cluster
        self._settings = settings
        self._clock = clock
        self._watch = AccountingWatch(int(settings.lookback_hours * 3600 * _SECOND))
        self._known: tuple[int, _Cluster] | None = None
        self._parents: dict[str, str] = {}
        self._parents_us: int | None = None

    async def fetch(self, since_us: int | None) -> Snapshot:
        # Slurm's times are whole seconds, rounded down: a job seen running now may later be said to have
        # ended at the start of this second. And what is asked after the clock was read is never too old.
        taken_us = self._clock() // _SECOND * _SECOND
        cluster = await self._cluster(taken_us)
        listed = await self._run("squeue", "--json", "--all", "--states=all")
        # A large cluster's list takes a while to read, and other sources wait for nothing here.
        runs, malformed = await asyncio.to_thread(parse_squeue, listed, taken_us // _SECOND)
        found = {run.key: run for run in runs if run.start is not None}
        unbillable = Uncharged()
        unbillable.update({MALFORMED: malformed} if malformed else {})
        complete = malformed == 0
        if cluster.accounting:
            ask_us = self._watch.look(taken_us, since_us, runs, cluster.min_job_age_us)
            if ask_us is not None:
                unbillable.update(await self._add_finished(found, taken_us, ask_us))
            complete = complete and self._watch.whole(taken_us)
            if needs_tree(self._settings.rules):
                await self._read_tree(taken_us, {run.account for run in (*found.values(), *runs)}, cluster.name)
        workloads = []
        for run in found.values():
            try:
                workloads.append(observe(run, self._settings.rules, self._parents))
            except Unbillable as verdict:
                unbillable.add(verdict.reason, f"job {run.job_id} of account {run.account}, partition {run.partition}")
                complete = complete and run.phase is Phase.ENDED
        waiting = [run for run in runs if run.phase is Phase.PENDING]
        holds = frozenset(run.hold_id for run in waiting if run.hold_id)
        return Snapshot(
            self.name, self.cluster, taken_us, workloads, complete, unbillable, holds, unbillable.examples,
            frozenset(self._unnamed(waiting)), lists_waiting=malformed == 0,
        )  # fmt: skip

    async def close(self) -> None:
        """Nothing is kept open between two fetches."""

    def _unnamed(self, waiting: Sequence[JobRun]) -> Iterator[tuple[str, str]]:
        """(org, id) of jobs whose comment does not name the hold that they may have: they were let in unchecked, came
        to another org, or are tasks changed alone, and the hook, asked about a change, cannot write there."""
        for run in waiting:
            owner = owner_of(run.account, self._settings.rules, self._parents)
            if owner is None:
                continue
            if run.is_task or run.hold_id is None or org_of_hold(run.hold_id, owner[:1]) != owner[0]:
                yield owner[0], str(run.job_id)

    async def _add_finished(self, found: dict[tuple[int, int], JobRun], taken_us: int, ask_us: int) -> Counter[str]:
        """Put runs that accounting knows to have ended beside those of squeue, which knows better where both do."""
        since = f"uts{max(ask_us // _SECOND, 0)}"
        fields = f"--format={','.join(SACCT_FIELDS)}"
        shape = ("--noheader", "--parsable2", f"--delimiter={SACCT_DELIMITER}", fields)
        scope = ("--allusers", "--duplicates", "--allocations", f"--starttime={since}", "--endtime=now")
        try:
            finished, malformed = parse_sacct(await self._run("sacct", *scope, *shape))
        except SourceError as error:
            _log.warning("%s: runs that ended unseen are not known before accounting answers: %s", self.name, error)
            return Counter({NO_ACCOUNTING: 1})
        for run in finished:
            found.setdefault(run.key, run)
        self._watch.answered(taken_us, [run.key for run in finished])
        return Counter({MALFORMED: malformed}) if malformed else Counter()

    async def _read_tree(self, taken_us: int, accounts: set[str], cluster: str) -> None:
        """Keep the account tree fresh. An account once seen is kept: its last jobs outlive it.

        Raises: SourceError where there is no tree yet, as jobs would be charged to the wrong org.
        """
        if self._parents_us is not None:
            known = accounts <= self._parents.keys() | {"root"}
            if taken_us - self._parents_us < (_TREE_US if known else _TREE_RETRY_US):
                return
        try:
            text = (await self._run(*ASSOCIATIONS_COMMAND)).decode("utf-8", "replace")
        except SourceError as error:
            if self._parents_us is None:
                raise
            _log.warning("%s: the account tree is that of earlier: %s", self.name, error)
            return
        self._parents |= parse_parents(text, cluster)
        self._parents_us = taken_us

    async def _cluster(self, taken_us: int) -> _Cluster:
        if self._known is None or taken_us - self._known[0] >= _CLUSTER_US:
            text = (await self._run("scontrol", "show", "config")).decode("utf-8", "replace")
            says = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in text.splitlines())}
            age = re.match(r"\d+", says.get("MinJobAge", ""))
            storage = "slurmdbd" in says.get("AccountingStorageType", "")
            wanted = self._settings.accounting
            accounting = storage if wanted == "auto" else wanted == "on"
            known = _Cluster(says.get("ClusterName", ""), int(age[0] if age else 0) * _SECOND, accounting)
            self._known = taken_us, known
        return self._known[1]

    async def _run(self, program: str, *arguments: str) -> bytes:
        """What one of Slurm's programs printed, with times as seconds since 1970. Raises: SourceError."""
        settings = self._settings
        path = program if settings.bin_dir is None else str(settings.bin_dir / program)
        environ = ["SLURM_TIME_FORMAT=%s"]
        if settings.slurm_conf is not None:
            environ.append(f"SLURM_CONF={settings.slurm_conf}")
        # `env` carries the environment to wherever `run_with` runs the program.
        argv: Sequence[str] = (*settings.run_with, "env", *environ, path, *arguments)
        try:
            return await run_command(argv, timeout_seconds=settings.timeout_seconds)
        except SourceError as error:
            raise SourceError(f"{self.name}: {program}: {error}") from error
