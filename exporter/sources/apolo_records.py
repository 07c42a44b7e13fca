"""Jobs as the Apolo platform's API lists them, as observations. No I/O."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec

from config.preset_sizes import Size
from exporter.sources import names
from exporter.sources.base import SourceError
from exporter.sources.names import Unbillable, optional_name, required_id, required_name
from exporter.sources.preset_sizes import PresetSizes
from ledger.clock import to_us
from ledger.model import Interval, Kind, Observation

ACTIVE: Final = ("pending", "suspended", "running")
FINAL: Final = ("succeeded", "failed", "cancelled")
_MINUTE_US: Final = 60_000_000
_MINUTES_MAX: Final = 2**26
BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Transition(msgspec.Struct, gc=False):
    status: str
    transition_time: datetime


class Migs(msgspec.Struct, gc=False):
    count: Count = 0


class _Resources(msgspec.Struct, gc=False):
    cpu: float = 0
    memory: Count | None = None
    memory_mb: Count | None = None
    nvidia_gpu: Count | None = None
    amd_gpu: Count | None = None
    intel_gpu: Count | None = None
    nvidia_migs: dict[str, Count | Migs] | None = None

    def size(self) -> Size:
        memory = self.memory if self.memory is not None else (self.memory_mb or 0) << 20
        migs = (m if isinstance(m, int) else m.count for m in (self.nvidia_migs or {}).values())
        gpus = (self.nvidia_gpu or 0) + (self.amd_gpu or 0) + (self.intel_gpu or 0) + sum(migs)
        return Size(round(self.cpu * 1000), memory, gpus)


class _Container(msgspec.Struct, gc=False):
    resources: _Resources | None = None


class Job(msgspec.Struct, gc=False):
    """The part of a job that charges depend on."""

    id: str
    owner: str
    status: str
    statuses: Annotated[list[_Transition], msgspec.Meta(min_length=1)]
    cluster_name: str = ""
    org_name: str | None = None
    project_name: str | None = None
    preset_name: str | None = None
    max_run_time_minutes: int | None = None
    container: _Container | None = None


class _Line(msgspec.Struct, gc=False):
    """What tells a job's line from the line that reports an error, and says which job a broken line is of."""

    id: str | None = None
    status: str | None = None
    error: str | None = None


_job = msgspec.json.Decoder(Job)
_line = msgspec.json.Decoder(_Line)


class Verdict(msgspec.Struct, frozen=True):
    """A line of the job list: an observation, or the reason why there is none.

    `oversized`: charged by a larger preset than the one the job names.
    """

    id: str | None
    active: bool
    observation: Observation | None = None
    reason: str | None = None
    oversized: bool = False


def read_job(line: bytes, cluster: str, sizes: PresetSizes) -> Verdict:
    """One line of the list. A job of another cluster, or one that never ran and never will, has neither
    observation nor reason.

    Raises: SourceError for a line that reports an error of the server, or is no JSON: the list is not whole.
    """
    try:
        job = _job.decode(line)
    except BROKEN as error:
        return _broken(line, error)
    active = job.status not in FINAL
    if job.cluster_name != cluster:
        return Verdict(job.id, active=False)
    try:
        started_us, ended_us, suspended = run_of(job)
        if started_us is None and not active:
            return Verdict(job.id, active=False)
        observation, oversized = _observe(job, started_us, ended_us, suspended, sizes)
    except Unbillable as verdict:
        return Verdict(job.id, active, reason=verdict.reason)
    return Verdict(job.id, active, observation, oversized=oversized)


def run_of(job: Job) -> tuple[int | None, int | None, tuple[Interval, ...]]:
    """(started, ended, suspended) of a job: it runs from its first `running` on, and all that is not `running`
    until its final status is suspended. Restarts within a living pod stay `running`.

    Raises: Unbillable(MALFORMED) for a time without a zone.
    """
    started: int | None = None
    paused: int | None = None
    gaps: list[Interval] = []
    latest = 0
    for item in job.statuses:
        if item.transition_time.tzinfo is None:
            raise Unbillable(names.MALFORMED)
        # The server stamps its own clock, and clocks are set back: no status began before the one before.
        latest = max(latest, to_us(item.transition_time))
        if item.status == "running":
            if started is None:
                started = latest
            elif paused is not None:
                if paused < latest:
                    gaps.append((paused, latest))
                paused = None
        elif item.status in FINAL:
            if paused is not None and paused < latest:
                gaps.append((paused, latest))
            return started, latest, tuple(gaps)
        elif started is not None and paused is None:
            paused = latest
    if job.status in FINAL:
        raise Unbillable(names.MALFORMED)
    if paused is not None:
        gaps.append((paused, None))
    return started, None, tuple(gaps)


def _observe(
    job: Job,
    started_us: int | None,
    ended_us: int | None,
    suspended: tuple[Interval, ...],
    sizes: PresetSizes,
) -> tuple[Observation, bool]:
    resources = job.container.resources if job.container is not None else None
    preset, oversized = sizes.choose(job.preset_name, None if resources is None else resources.size())
    minutes = job.max_run_time_minutes
    observation = Observation(
        required_id(job.id),
        Kind.JOB.value,
        required_name(job.org_name, names.NO_ORG),
        optional_name(job.project_name),
        optional_name(job.owner),
        required_name(preset, names.NO_PRESET),
        "",
        started_us,
        ended_us,
        suspended,
        limit_us=minutes * _MINUTE_US if minutes is not None and 0 < minutes < _MINUTES_MAX else None,
    )
    return observation, oversized


def _broken(line: bytes, error: Exception) -> Verdict:
    try:
        told = _line.decode(line)
    except BROKEN:
        try:
            msgspec.json.decode(line)
        except BROKEN:
            raise SourceError(f"the list breaks off in a line that is no JSON: {error}") from error
        return Verdict(None, active=True, reason=names.MALFORMED)
    if told.error is not None and told.id is None:
        raise SourceError(f"the server reports an error within the list: {told.error[:300]}")
    return Verdict(told.id, active=told.status not in FINAL, reason=names.MALFORMED)
