"""The app's own rate, once for an instance however many pods it has.

An app instance is billed while any of its pods is. Its run is that of its oldest living pod, and when that
ends, the next oldest takes over: this follows from what the cluster shows now, so that a restarted exporter, or
a second one, comes to the same runs. The meter begins a run no earlier than the former run of the same id is
charged, so a change of carriers neither charges twice nor leaves a gap.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import msgspec

from exporter.sources.kubernetes_records import first_start
from ledger.model import Kind, Observation

Instance = tuple[str, str]
"""(namespace, name)"""


class AppInstances:
    """Which pods make up which instance, and its runs, worked out anew only where something changed."""

    def __init__(self) -> None:
        self._members: dict[Instance, set[str]] = {}
        self._instance: dict[str, Instance] = {}
        self._runs: dict[Instance, list[Observation]] = {}
        self._dirty: set[Instance] = set()

    def put(self, uid: str, instance: Instance | None) -> None:
        """A pod changed; it is of this instance now, or of none."""
        former = self._instance.get(uid)
        if former is not None and former != instance:
            self.leave(uid)
        if instance is not None:
            self._instance[uid] = instance
            self._members.setdefault(instance, set()).add(uid)
            self._dirty.add(instance)

    def leave(self, uid: str) -> None:
        """A pod is of no instance any more."""
        instance = self._instance.pop(uid, None)
        if instance is not None:
            members = self._members[instance]
            members.discard(uid)
            if not members:
                del self._members[instance]
            self._dirty.add(instance)

    def runs(
        self, live: Mapping[str, Observation], ended: Mapping[str, tuple[Observation, int]], since_us: int
    ) -> Iterator[Observation]:
        """Runs of all instances, out of their pods by UID; up to `since_us` is charged."""
        for instance in list(self._dirty):
            members = self._members.get(instance, set())
            pods = [live[uid] for uid in members if uid in live]
            past = [ended[uid][0] for uid in members if uid in ended]
            found = app_runs(*instance, [*pods, *past], since_us)
            before = {run: run for run in self._runs.pop(instance, [])}
            if found:
                self._runs[instance] = [before.get(run, run) for run in found]
            # Until everything that ended is charged, what carries the rate depends on how far that is.
            if not past:
                self._dirty.discard(instance)
        return chain.from_iterable(self._runs.values())


def app_runs(namespace: str, instance: str, pods: Iterable[Observation], since_us: int) -> list[Observation]:
    """The runs of one instance, out of its pods that live or ended after `since_us`, up to which is charged."""
    living: list[tuple[int, str, Observation]] = []
    ended: list[tuple[int, str, Observation]] = []
    for pod in pods:
        start = first_start(pod)
        if start is not None:
            (living if pod.ended_us is None else ended).append((start, pod.id, pod))
    runs: list[Observation] = []
    handover: int | None = None
    carrier: Observation | None = None
    if living:
        handover, _, pod = min(living)
        carrier = _run(namespace, instance, pod, pod.ended_us, handover)
    if carrier is not None and handover is not None and handover <= since_us:
        return [carrier]  # what carried before ended when it was last charged: there this one goes on
    covered = since_us
    for start, _, pod in sorted(ended):
        end = pod.ended_us if handover is None else min(pod.ended_us or 0, handover)
        if end is not None and end > covered:
            runs.append(_run(namespace, instance, pod, end, max(start, covered) if runs else start))
            covered = end
    # In their order, since the meter lets no run of an id begin before what was charged of an earlier one.
    return runs if carrier is None else [*runs, carrier]


def _run(namespace: str, instance: str, pod: Observation, ended_us: int | None, since_us: int) -> Observation:
    assert pod.started_us is not None, "it has a first start"
    # What tells runs apart is their start. Replicas are created within the same second, which is as fine as
    # Kubernetes tells, so the pod's UID makes up the fraction; what is billed begins at `since_us` all the same.
    started_us = pod.started_us - zlib.crc32(pod.id.encode()) % 1_000_000
    return msgspec.structs.replace(
        pod,
        id=f"{namespace}/{instance}",
        kind=Kind.APP.value,
        resource=pod.app,
        started_us=started_us,
        ended_us=ended_us,
        suspended=((started_us, since_us),) if started_us < since_us else (),
        hold_id=None,
        limit_us=None,
        bills_app=True,
    )
