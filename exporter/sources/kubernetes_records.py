"""What the Kubernetes API says of pods, volume claims and namespaces, as observations. No I/O, no state.

A pod is billed from the first start of one of its main containers (so pulling images and init containers are
free) to the last end of one; restarts in between count. Its run is told apart by the pod's creation, which
never changes, while the API forgets the first start at the second restart: what comes before the first start
is a suspension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from config.preset_sizes import Size, pod_size
from config.quantity import parse_bytes
from config.sources import Labels
from exporter.sources import names
from exporter.sources.kubernetes_objects import Claim, Pod
from exporter.sources.names import Unbillable, optional_name, required_id, required_name
from exporter.sources.preset_sizes import OVERSIZED, PresetSizes
from ledger.clock import to_us
from ledger.model import Kind, Observation

APP_LABEL: Final = "app.kubernetes.io/name"
"""What an app is, of which there can be several instances; rates and reports go by it."""
FALSE_JOB: Final = "false_job"
"""Counted, though charged: a pod labelled as the platform's job that is none, beside the source that meters those."""
DISK_LABELS: Final = ("platform.apolo.us/disk", "platform.neuromation.io/disk-api-disk")
_SECOND_US: Final = 1_000_000
_BYTES_MAX: Final = 2**63 - 1
_SECONDS_MAX: Final = 2**32
BROKEN: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Tracked(msgspec.Struct, gc=False):
    """What is kept of a pod or a claim. The observation's org and project are those of its labels.

    `deletion_us`: when its grace period ends. `reason`: why it is not charged, or is counted, if it is of an
    org; `ours`: its labels say that it should be. `waits`: it has not started. `job`: the job of the platform that
    it has the label and the name of, where another source meters those.
    """

    observation: Observation
    namespace: str
    instance: str = ""
    deletion_us: int | None = None
    reason: str | None = None
    ours: bool = False
    waits: bool = False
    job: str | None = None
    created_us: int = 0


def labelled(labels: Mapping[str, str], keys: Iterable[str]) -> str | None:
    """The first label there is, None where there is none, or an empty one."""
    for key in keys:
        if found := labels.get(key):
            return found
    return None


def first_start(observation: Observation) -> int | None:
    """When the first main container of an observed pod started, None: it has not."""
    started = observation.started_us
    if started is not None and observation.suspended:
        return observation.suspended[0][1]
    return started


class PodReader:
    """Reads pods and claims by the configured labels and preset sizes.

    Without `disks` it passes over the platform's disks, and without `jobs` it says of which job of the platform a pod
    may be: another source meters them. The platform names a job's pod as the job, so one that has another name is none.
    """

    def __init__(self, labels: Labels, sizes: PresetSizes, *, jobs: bool = True, disks: bool = True) -> None:
        self._labels = labels
        self._sizes = sizes
        self._jobs = jobs
        self._disks = disks
        self._pod = msgspec.json.Decoder(Pod)
        self._claim = msgspec.json.Decoder(Claim)

    def decode_pod(self, raw: bytes | msgspec.Raw) -> Pod:
        """Raises: Unbillable(MALFORMED)."""
        try:
            return self._pod.decode(raw)
        except BROKEN as error:
            raise Unbillable(names.MALFORMED) from error

    def job_of(self, pod: Pod) -> str | None:
        """The job whose pod it may be, where another source meters those."""
        job = labelled(pod.metadata.labels or {}, self._labels.job)
        return job if not self._jobs and job == pod.metadata.name else None

    def read_pod(self, pod: Pod, before: Observation | None, now_us: int, *, deleted: bool = False) -> Tracked:
        """What a pod is, and since when it has run.

        `before` is what was known of it, `now_us` when it is seen, `deleted`: for the last time.
        Raises: Unbillable where it says nothing that could be used, such as a time without a zone.
        """
        meta, labels = pod.metadata, pod.metadata.labels or {}
        job, instance = labelled(labels, self._labels.job), labelled(labels, self._labels.app)
        try:
            started_us, ended_us = _billed(pod, before, now_us, deleted)
            created_us = to_us(pod.metadata.creation_timestamp)
            deletion = pod.metadata.deletion_timestamp
            deletion_us = None if deletion is None else to_us(deletion)
        except ValueError as error:
            raise Unbillable(names.MALFORMED) from error
        app = "" if job or not instance else optional_name(labels.get(APP_LABEL) or instance)
        hold = None if meta.annotations is None else meta.annotations.hold
        deadline = pod.spec.active_deadline_seconds
        preset, reason = self._preset(pod, labelled(labels, self._labels.preset), app)
        observation = Observation(
            required_id(meta.uid),
            (Kind.APP if app else Kind.JOB).value,
            optional_name(labelled(labels, self._labels.org)),
            optional_name(labelled(labels, self._labels.project)),
            optional_name((labelled(labels, self._labels.user) or "").replace("--", "/")),
            optional_name(preset),
            app,
            None if started_us is None else min(created_us, started_us),
            ended_us,
            ((created_us, started_us),) if started_us is not None and created_us < started_us else (),
            hold_id=optional_name(hold) or None,
            limit_us=deadline * _SECOND_US if deadline is not None and 0 < deadline < _SECONDS_MAX else None,
            bills_app=False,
            was=None if before is None else before.was,
        )
        return Tracked(
            observation,
            required_name(meta.namespace, names.MALFORMED),
            optional_name(instance) if app else "",
            deletion_us,
            reason or (FALSE_JOB if job and not self._jobs else None),
            ours=bool(job or labelled(labels, self._labels.preset)),
            waits=pod.status.phase == "Pending",
            job=self.job_of(pod),
            created_us=created_us,
        )

    def _preset(self, pod: Pod, label: str | None, app: str) -> tuple[str | None, str | None]:
        """(preset, reason to count). The app's name, where an app has no preset."""
        takes: Size | None = None
        if self._sizes:
            try:
                takes = pod_size(pod.spec.containers, pod.spec.init_containers or ())
            except ValueError:
                return label or app or None, names.MALFORMED
        try:
            preset, oversized = self._sizes.choose(label, takes)
        except Unbillable as verdict:
            return app or None, None if app else verdict.reason
        return preset, OVERSIZED if oversized else None

    def read_claim(self, raw: bytes | msgspec.Raw) -> Tracked | None:
        """A volume claim, None while it is not bound, or if another source meters it. Raises: Unbillable."""
        try:
            claim = self._claim.decode(raw)
            if claim.status.phase == "Pending":
                return None
            size = parse_bytes((claim.status.capacity or {}).get("storage", ""))
            if not 0 <= size <= _BYTES_MAX:
                raise ValueError(f"{size} bytes")
        except (*BROKEN, ValueError) as error:
            raise Unbillable(names.MALFORMED) from error
        labels = claim.metadata.labels or {}
        if not self._disks and labelled(labels, DISK_LABELS):
            return None
        storage_class = labelled(labels, self._labels.storage_class) or claim.spec.storage_class_name
        observation = Observation(
            required_id(claim.metadata.uid),
            Kind.STORAGE.value,
            optional_name(labelled(labels, self._labels.org)),
            optional_name(labelled(labels, self._labels.project)),
            optional_name((labelled(labels, self._labels.user) or "").replace("--", "/")),
            required_name(storage_class or "default", names.BAD_NAME),
            bytes=size,
        )
        return Tracked(observation, required_name(claim.metadata.namespace, names.MALFORMED))


def _billed(pod: Pod, before: Observation | None, now_us: int, deleted: bool) -> tuple[int | None, int | None]:
    """(first start, end) of what is billed, no start where it never came to that; ValueError: a time without a zone."""
    statuses = pod.status.container_statuses or []
    starts = [to_us(start) for status in statuses for start in status.starts()]
    # From the second restart on the first start is forgotten; the end of the init containers is not.
    if starts and any(status.restart_count > 1 for status in statuses):
        starts += [us for kind, us in _conditions(pod) if kind == "Initialized"]
    known = None if before is None else first_start(before)
    if known is not None:
        starts.append(known)
    over = pod.status.phase in ("Succeeded", "Failed")
    started_us = min(starts, default=None)
    if before is not None and before.ended_us is not None:
        return started_us, before.ended_us
    if started_us is None:
        return None, now_us if over or deleted else None
    if not over and not deleted:
        return started_us, None
    ends = [
        to_us(status.state.terminated.finished_at)
        for status in statuses
        if status.state is not None
        and status.state.terminated is not None
        and status.state.terminated.finished_at is not None
    ]
    if ends and (over or len(ends) == len(statuses)):
        return started_us, max(*ends, started_us)
    ended_us = now_us
    if over and not statuses:
        # Evicted: container statuses may be gone, but not when the pod stopped being ready.
        stops = [us for kind, us in _conditions(pod) if kind in ("Ready", "DisruptionTarget")]
        ended_us = min([us for us in stops if us > started_us], default=now_us)
    if pod.metadata.deletion_timestamp is not None:
        ended_us = min(ended_us, to_us(pod.metadata.deletion_timestamp))
    return started_us, max(ended_us, started_us)


def _conditions(pod: Pod) -> Iterable[tuple[str, int]]:
    for condition in pod.status.conditions or ():
        if condition.last_transition_time is not None:
            yield condition.type, to_us(condition.last_transition_time)
