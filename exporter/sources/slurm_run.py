"""One run of a Slurm job, and what the meter is told of it.

A run is one job id from one start to its end: a requeue makes another run of the same id. Slurm's times are
whole seconds since 1970; squeue and accounting name the same run by the same id and start.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from config.slurm_rules import SlurmRules, owner_of, preset_of
from exporter.sources.names import MALFORMED, NO_ORG, NO_PRESET, Unbillable, optional_name, required_name
from ledger.model import Interval, Kind, Observation

_SECOND: Final = 1_000_000
_HOLD: Final = re.compile(r"(?:^|\s)credits:hold=([\w.:-]{1,253})(?!\S)")


class Phase(StrEnum):
    """What a run's times mean."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class JobRun:
    """One run of a job: `start`, `end` in seconds since 1970, None where not known (`start`: it never ran).

    `resumed`: the time used, in seconds, up to the instant where the clock went on (or stands, where the
    run is suspended); None for a run never suspended. `limit` is in seconds.
    """

    job_id: int
    phase: Phase
    user: str
    account: str
    partition: str
    qos: str
    gres: dict[str, int] = field(default_factory=dict)
    start: int | None = None
    end: int | None = None
    resumed: tuple[int, int] | None = None
    limit: int | None = None
    hold_id: str | None = None
    restarts: int = 0
    is_task: bool = False
    """One of an array by itself, as squeue tells it: others that wait are one job."""

    @property
    def key(self) -> tuple[int, int]:
        """Names the run: the same in squeue and sacct."""
        return self.job_id, self.start or 0


def observe(run: JobRun, rules: SlurmRules, parents: Mapping[str, str]) -> Observation:
    """A run that started, as the meter wants it. Raises: Unbillable."""
    if run.start is None:
        raise Unbillable(MALFORMED)
    owner = owner_of(run.account, rules, parents)
    if owner is None:
        raise Unbillable(NO_ORG)
    suspended: tuple[Interval, ...] = ()
    before = None
    if run.resumed is not None:
        instant, used = run.resumed
        if not 0 <= used <= instant - run.start:
            raise Unbillable(MALFORMED)
        before = (instant * _SECOND, (instant - run.start - used) * _SECOND)
        if run.phase is Phase.SUSPENDED:
            suspended = ((instant * _SECOND, None),)
    return Observation(
        id=str(run.job_id),
        kind=Kind.JOB,
        org=required_name(owner[0], NO_ORG),
        project=optional_name(owner[1]),
        user=optional_name(run.user),
        resource=required_name(preset_of(run.partition, run.qos, run.gres, rules), NO_PRESET),
        started_us=run.start * _SECOND,
        ended_us=None if run.end is None else run.end * _SECOND,
        suspended=suspended,
        suspended_before=before,
        hold_id=run.hold_id,
        limit_us=None if run.limit is None else run.limit * _SECOND,
    )


def hold_in(admin_comment: str | None) -> str | None:
    """The id of the hold that the submit hook noted in a job's admin comment."""
    match = _HOLD.search(admin_comment or "")
    return match[1] if match else None
