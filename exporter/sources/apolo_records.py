"""What the Apolo platform's API says of jobs, disks and prices, as observations and rates. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, TypeVar

import msgspec

from exporter.sources import names
from exporter.sources.base import SourceError
from exporter.sources.names import Unbillable, optional_name, required_id, required_name
from exporter.sources.preset_sizes import PresetSizes, Size
from ledger.clock import to_us
from ledger.model import Interval, Kind, Observation, RateTable
from ledger.money import AmountError, parse_rate

_Priced = TypeVar("_Priced")

ACTIVE: Final = ("pending", "suspended", "running")
FINAL: Final = ("succeeded", "failed", "cancelled")
_MINUTE_US: Final = 60_000_000
_MINUTES_MAX: Final = 2**26
_BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Transition(msgspec.Struct, gc=False):
    status: str
    transition_time: datetime


class _Migs(msgspec.Struct, gc=False):
    count: Count = 0


class _Resources(msgspec.Struct, gc=False):
    cpu: float = 0
    memory: Count | None = None
    memory_mb: Count | None = None
    nvidia_gpu: Count | None = None
    amd_gpu: Count | None = None
    intel_gpu: Count | None = None
    nvidia_migs: dict[str, Count | _Migs] | None = None

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
    except _BROKEN as error:
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
    except _BROKEN:
        try:
            msgspec.json.decode(line)
        except _BROKEN:
            raise SourceError(f"the list breaks off in a line that is no JSON: {error}") from error
        return Verdict(None, active=True, reason=names.MALFORMED)
    if told.error is not None and told.id is None:
        raise SourceError(f"the server reports an error within the list: {told.error[:300]}")
    return Verdict(told.id, active=told.status not in FINAL, reason=names.MALFORMED)


class _Named(msgspec.Struct):
    name: str


class _Size(_Named):
    cpu: float = 0
    memory: Count | None = None
    memory_mb: Count | None = None
    nvidia_gpu: _Migs | None = None
    amd_gpu: _Migs | None = None
    intel_gpu: _Migs | None = None
    nvidia_migs: dict[str, _Migs] | None = None

    def size(self) -> Size:
        memory = self.memory if self.memory is not None else (self.memory_mb or 0) << 20
        gpus = [self.nvidia_gpu, self.amd_gpu, self.intel_gpu, *(self.nvidia_migs or {}).values()]
        return Size(round(self.cpu * 1000), memory, sum(g.count for g in gpus if g is not None))


class _PresetPrice(_Named):
    credits_per_hour: Decimal | None = None


class _VolumePrice(_Named):
    credits_per_hour_per_gb: Decimal | None = None


class _Orchestrator(msgspec.Struct):
    """Where the config service puts the presets, which the jobs API serves at the top."""

    resource_presets: list[msgspec.Raw] = []


class _Storage(msgspec.Struct):
    volumes: list[msgspec.Raw] = []


class ClusterConfig(_Named):
    """The part of a cluster's config that charges depend on; presets and volumes are still unread."""

    resource_presets: list[msgspec.Raw] = []
    storage_volumes: list[msgspec.Raw] = []
    disks_url: str | None = None
    orchestrator: _Orchestrator | None = None
    storage: _Storage | None = None

    @property
    def presets(self) -> list[msgspec.Raw]:
        return self.orchestrator.resource_presets if self.orchestrator else self.resource_presets

    @property
    def volumes(self) -> list[msgspec.Raw]:
        return self.storage.volumes if self.storage else self.storage_volumes


class _Config(msgspec.Struct):
    clusters: list[msgspec.Raw] = []
    admin_url: str | None = None


_config = msgspec.json.Decoder(_Config)
_cluster = msgspec.json.Decoder(ClusterConfig)
_named = msgspec.json.Decoder(_Named)
_size = msgspec.json.Decoder(_Size)
_preset_price = msgspec.json.Decoder(_PresetPrice)
_volume_price = msgspec.json.Decoder(_VolumePrice)


def read_config(data: bytes, cluster: str) -> tuple[ClusterConfig, str | None]:
    """(a cluster's part of GET /config, the admin API's URL). Raises: SourceError."""
    try:
        config = _config.decode(data)
        seen = {_named.decode(raw).name: raw for raw in config.clusters}
        if cluster in seen:
            return _cluster.decode(seen[cluster]), config.admin_url
    except _BROKEN as error:
        raise SourceError(f"the platform's config cannot be read: {error}") from error
    raise SourceError(
        f"the platform's config has no cluster {cluster!r} (the token sees: {', '.join(sorted(seen)) or 'none'}); "
        "set platform_cluster, or make the token's user a member of the cluster"
    )


def rates_of(config: ClusterConfig) -> RateTable:
    """Presets' and volumes' prices as a rate table. What has no price is left out, so it is unpriced, not free.

    Raises: SourceError naming the first price that is not an exact rate.
    """
    presets = [_readable(_preset_price, raw, "preset") for raw in config.presets]
    volumes = [_readable(_volume_price, raw, "volume") for raw in config.volumes]
    return RateTable(
        presets=_rates("preset", ((p.name, p.credits_per_hour) for p in presets)),
        storage=_rates("volume", ((v.name, v.credits_per_hour_per_gb) for v in volumes)),
    )


def _readable(decoder: msgspec.json.Decoder[_Priced], raw: msgspec.Raw, what: str) -> _Priced:
    try:
        return decoder.decode(raw)
    except _BROKEN as error:
        raise SourceError(f"a {what} in the platform's config cannot be read: {error}: {bytes(raw)[:200]!r}") from error


def _rates(what: str, prices: Iterable[tuple[str, Decimal | None]]) -> dict[str, int]:
    try:
        return {
            name: parse_rate(str(price), f"the price of {what} {name!r}") for name, price in prices if price is not None
        }
    except AmountError as error:
        raise SourceError(str(error)) from error


def sizes_of(config: ClusterConfig) -> PresetSizes:
    """What the presets allow, cheapest first; those without a price come last, odd ones are left out."""
    known: list[tuple[bool, Decimal, str, Size]] = []
    for raw in config.presets:
        try:
            preset, price = _size.decode(raw), _preset_price.decode(raw).credits_per_hour
        except _BROKEN:
            continue  # jobs are charged all the same, by the preset they name
        priced = price is not None and price.is_finite()
        known.append((not priced, price if price is not None and priced else Decimal(0), preset.name, preset.size()))
    known.sort(key=lambda entry: entry[:2])
    return PresetSizes((name, size) for *_, name, size in known)


class _Disk(msgspec.Struct):
    id: str
    storage: Count
    owner: str | None = None
    org_name: str | None = None
    project_name: str | None = None
    status: str = "Ready"


class Project(msgspec.Struct, frozen=True):
    """A project of an org on the cluster; without an org it has no disks that anybody pays."""

    name: str
    org_name: str | None = None


_disks = msgspec.json.Decoder(list[msgspec.Raw])
_disk = msgspec.json.Decoder(_Disk)
_projects = msgspec.json.Decoder(list[Project])


def read_projects(data: bytes) -> list[Project]:
    """GET clusters/{cluster}/projects. Raises: SourceError."""
    try:
        return _projects.decode(data)
    except _BROKEN as error:
        raise SourceError(f"the list of projects cannot be read: {error}") from error


def read_disks(data: bytes, project: Project, storage_class: str) -> tuple[list[Observation], int]:
    """(a project's disks, how many entries are malformed). A disk that is not bound yet is not charged.

    Raises: SourceError where the answer is no list.
    """
    try:
        entries = _disks.decode(data)
    except _BROKEN as error:
        raise SourceError(f"the disks of project {project.name!r} cannot be read: {error}") from error
    found: list[Observation] = []
    malformed = 0
    for entry in entries:
        try:
            observation = read_disk(bytes(entry), project, storage_class)
        except Unbillable:
            malformed += 1
            continue
        if observation is not None:
            found.append(observation)
    return found, malformed


def read_disk(data: bytes, project: Project, storage_class: str) -> Observation | None:
    """One disk, None where it is not bound yet. Raises: Unbillable."""
    try:
        disk = _disk.decode(data)
    except _BROKEN as error:
        raise Unbillable(names.MALFORMED) from error
    if disk.status == "Pending":
        return None
    return Observation(
        required_id(disk.id),
        Kind.STORAGE.value,
        required_name(disk.org_name or project.org_name, names.NO_ORG),
        optional_name(disk.project_name or project.name),
        optional_name(disk.owner),
        storage_class,
        bytes=disk.storage,
    )
