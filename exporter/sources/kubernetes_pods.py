"""What is known of pods: what runs, what waits, and which may be of jobs that another source meters. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Container

import msgspec

from exporter.sources.kubernetes_apps import AppInstances
from exporter.sources.kubernetes_namespaces import Namespaces
from exporter.sources.kubernetes_records import PodReader, Tracked, first_start
from exporter.sources.kubernetes_state import Objects, identity
from exporter.sources.names import Unbillable
from exporter.sources.platform_jobs import Claimant
from ledger.model import Observation


class Pods(Objects):
    """Pods, and the app instances they make up."""

    def __init__(self, reader: PodReader, namespaces: Namespaces, skip_namespaces: Collection[str]) -> None:
        super().__init__(namespaces, skip_namespaces)
        self._reader = reader
        self._claimants: dict[str, Tracked] = {}
        self._gone: set[str] = set()
        self._of_jobs: dict[str, bool] = {}
        self._terminating: dict[str, int] = {}
        self._waiting: dict[str, str] = {}
        self._unnamed: dict[str, tuple[str, str]] = {}
        self._apps = AppInstances()

    @property
    def complete(self) -> bool:
        """Whether what is not listed is not there: a claimant may have been charged by another process."""
        return super().complete and not self._claimants

    def claimants(self) -> list[Claimant]:
        """Pods that may be of jobs that another source meters; passed over until `decide` says what they are."""
        return [
            Claimant(uid, found.job or "", found.namespace, found.created_us) for uid, found in self._claimants.items()
        ]

    def decide(self, uid: str, is_of_job: bool | None, now_us: int, since_us: int | None = None) -> None:
        """A claimant, if it still is one, is of its job, or is charged as a pod of its own. None: there is no such job.

        There may have been, of one that is older than `since_us`, up to when the ledger is charged (None: it is not).
        """
        found = self._claimants.pop(uid, None)
        if found is None:
            return
        is_gone = uid in self._gone
        self._gone.discard(uid)
        if not is_gone:
            self._of_jobs[uid] = bool(is_of_job)
        if not is_of_job:
            if is_of_job is None and (since_us is None or found.created_us < since_us):
                found.observation = msgspec.structs.replace(found.observation, was=found.job)
            self._called[uid] = f"{found.namespace}/{found.job}"
            self._take(uid, found, now_us)
            if is_gone:
                super()._drop(uid)

    def remove(self, raw: bytes | msgspec.Raw, now_us: int) -> None:
        """A deleted pod, as it was last."""
        super().remove(raw, now_us)
        try:
            uid = identity(raw).uid
        except Unbillable:
            return
        if uid in self._claimants:
            with contextlib.suppress(Unbillable):
                self._read(raw, None, now_us, deleted=True)
            self._left(uid, now_us, now_us)

    def finish(self, last_us: int | None, now_us: int) -> None:
        """The list is whole. See `Objects`."""
        super().finish(last_us, now_us)
        for uid in self._claimants.keys() - self._seen - self._gone:
            self._left(uid, now_us if last_us is None else last_us, now_us)
        for uid in self._of_jobs.keys() - self._seen:
            del self._of_jobs[uid]

    def _left(self, uid: str, end_us: int, now_us: int) -> None:
        """A claimant is no more; whose it was is still to be told."""
        found = self._claimants[uid]
        if found.observation.started_us is None:
            del self._claimants[uid]
            return
        if found.observation.ended_us is None:
            end_us = min(end_us, now_us if found.deletion_us is None else found.deletion_us)
            end_us = max(end_us, first_start(found.observation) or 0)
            found.observation = msgspec.structs.replace(found.observation, ended_us=end_us)
        self._gone.add(uid)

    def settle(self, taken_us: int, now_us: int) -> None:
        """Pods whose grace period is over have ended, also where a dead node keeps them from saying so."""
        for uid, deletion_us in list(self._terminating.items()):
            if deletion_us <= taken_us:
                del self._terminating[uid]
                if uid in self.tracked:
                    self._end(uid, deletion_us, now_us)

    def waiting_holds(self) -> frozenset[str]:
        """Holds of pods that have not started."""
        return frozenset(self._waiting.values())

    def waiting(self) -> frozenset[tuple[str, str]]:
        """(org, id) of pods that have not started and name no hold."""
        return frozenset(self._unnamed.values())

    def app_runs(self, since_us: int | None, priced: Container[str] | None) -> list[Observation]:
        """Runs of app instances, of apps that have a rate of their own (None: of all)."""
        runs = self._apps.runs(self.live, self.ended, since_us or 0)
        return [run for run in runs if priced is None or run.app in priced]

    def _read(self, raw: bytes | msgspec.Raw, before: Tracked | None, now_us: int, *, deleted: bool) -> Tracked | None:
        pod = self._reader.decode_pod(raw)
        uid = pod.metadata.uid or ""
        before = before or self._claimants.get(uid)
        is_of_job = self._of_jobs.get(uid) if self._reader.job_of(pod) is not None else False
        try:
            found = self._reader.read_pod(pod, None if before is None else before.observation, now_us, deleted=deleted)
        except Unbillable:
            if is_of_job is False:
                raise
            return None
        if is_of_job is None:
            self._claimants[uid] = found
        return found if is_of_job is False else None

    def _changed(self, tracked: Tracked, uid: str) -> None:
        if tracked.deletion_us is not None and tracked.observation.ended_us is None:
            self._terminating[uid] = tracked.deletion_us
        waits = tracked.waits and tracked.observation.ended_us is None
        if waits and tracked.observation.hold_id is not None:
            self._waiting[uid] = tracked.observation.hold_id
        else:
            self._waiting.pop(uid, None)
        if waits and tracked.observation.hold_id is None and uid in self.live:
            self._unnamed[uid] = self.live[uid].org, uid
        else:
            self._unnamed.pop(uid, None)
        self._apps.put(uid, (tracked.namespace, tracked.instance) if tracked.instance else None)

    def _drop(self, uid: str) -> None:
        super()._drop(uid)
        self._of_jobs.pop(uid, None)
        self._terminating.pop(uid, None)
        self._waiting.pop(uid, None)
        self._unnamed.pop(uid, None)
        if uid not in self.ended:
            self._apps.leave(uid)

    def _forget(self, uid: str) -> None:
        super()._forget(uid)
        if uid not in self.tracked:
            self._apps.leave(uid)
