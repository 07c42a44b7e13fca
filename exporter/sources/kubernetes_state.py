"""What is known of a cluster's pods or volume claims, kept up to date by a list and a watch. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import msgspec

from exporter.sources import names
from exporter.sources.kubernetes_namespaces import Namespaces, place
from exporter.sources.kubernetes_records import BROKEN, PodReader, Tracked
from exporter.sources.names import Unbillable
from exporter.sources.uncharged import Uncharged
from ledger.model import Observation

ORG_MISMATCH: Final = "org_mismatch"
"""Counted, though charged: the labels of a pod and of its namespace name different orgs or projects."""
KEPT_US: Final = 60_000_000
"""What ended stays listed for so long after the ledger was told: a slower exporter may still list it as running."""


class _Identity(msgspec.Struct):
    uid: str = ""
    name: str = ""
    namespace: str = ""


class _Unread(msgspec.Struct):
    metadata: _Identity


_unread = msgspec.json.Decoder(_Unread)


def identity(raw: bytes | msgspec.Raw) -> _Identity:
    """Which object it is. Raises: Unbillable(MALFORMED) where even that cannot be read."""
    try:
        return _unread.decode(raw).metadata
    except BROKEN as error:
        raise Unbillable(names.MALFORMED) from error


class Objects:
    """Pods or claims by UID: what is billed, what has ended and is to be told, and why some are not billed."""

    def __init__(self, namespaces: Namespaces, skip_namespaces: Collection[str]) -> None:
        self._namespaces = namespaces
        self._skip = frozenset(skip_namespaces)
        self.tracked: dict[str, Tracked] = {}
        self.live: dict[str, Observation] = {}
        self.ended: dict[str, tuple[Observation, int]] = {}
        self._contradict: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._unread: dict[str, str] = {}
        self._called: dict[str, str] = {}
        """UID -> NAMESPACE/NAME, of those that are not billed only."""
        self._doubtful: set[str] = set()
        self._seen: set[str] = set()

    def begin(self) -> None:
        """A list begins."""
        self._seen = set()

    def add(self, raw: bytes | msgspec.Raw, now_us: int) -> None:
        """An object as it is now. One that cannot be read keeps being what it was, and is counted."""
        uid, called = "", ""
        try:
            known = identity(raw)
            called = f"{known.namespace}/{known.name}"
            if known.namespace in self._skip:
                return
            uid = known.uid or called
            found = self._read(raw, self.tracked.get(uid), now_us, deleted=False)
        except Unbillable as verdict:
            self._seen.add(uid)
            self._unread[uid] = verdict.reason
            self._called[uid] = called
            if uid not in self.tracked:
                self._doubtful.add(uid)
            return
        self._unread.pop(uid, None)
        self._doubtful.discard(uid)
        if found is not None:
            uid = found.observation.id  # one string for all that is kept
            self._take(uid, found, now_us)
            if uid in self._reasons or uid in self._contradict:
                self._called[uid] = called
            else:
                self._called.pop(uid, None)
        self._seen.add(uid)

    def remove(self, raw: bytes | msgspec.Raw, now_us: int) -> None:
        """A deleted object, as it was last."""
        try:
            uid = identity(raw).uid
        except Unbillable:
            return
        before = self.tracked.get(uid)
        if before is not None:
            try:
                found = self._read(raw, before, now_us, deleted=True) or before
            except Unbillable:
                found = before
            self._take(uid, found, now_us)
            if found.observation.ended_us is None:
                self._end(uid, now_us if found.deletion_us is None else min(now_us, found.deletion_us), now_us)
        self._drop(uid)

    def finish(self, last_us: int | None, now_us: int) -> None:
        """The list is whole: what it left out was deleted. Of when nothing is known but that it was still there
        at `last_us`, when the API server was last heard of.
        """
        for uid in [uid for uid in self.tracked if uid not in self._seen]:
            deletion_us = self.tracked[uid].deletion_us
            end_us = now_us if last_us is None else last_us
            self._end(uid, end_us if deletion_us is None else min(end_us, deletion_us), now_us)
            self._drop(uid)
        for uid in self._unread.keys() - self._seen:
            self._drop(uid)

    def forget_told(self, since_us: int | None) -> None:
        """Forget what ended and was told to the ledger, which is charged up to `since_us`."""
        if since_us is None:
            return
        told = [uid for uid, (_, told_us) in self.ended.items() if told_us + KEPT_US <= since_us]
        for uid in told:
            self._forget(uid)

    def replace_in(self, namespace: str) -> None:
        """Everything in a namespace belongs to somebody else now."""
        for uid, tracked in self.tracked.items():
            if tracked.namespace == namespace and (uid in self.live or tracked.observation.ended_us is None):
                self._place(uid, tracked)

    @property
    def complete(self) -> bool:
        """Whether what is not listed is not there."""
        return not self._doubtful

    def unbillable(self) -> Uncharged:
        """Which are not billed, or are odd, by reason."""
        found = Uncharged()
        for reasons in (self._unread, self._reasons):
            for uid, reason in reasons.items():
                found.add(reason, self._called.get(uid, uid))
        for uid in self._contradict:
            found.add(ORG_MISMATCH, self._called.get(uid, uid))
        return found

    def _read(self, raw: bytes | msgspec.Raw, before: Tracked | None, now_us: int, *, deleted: bool) -> Tracked | None:
        raise NotImplementedError

    def _changed(self, tracked: Tracked, uid: str) -> None:
        """Called when what is billed of an object may have changed."""

    def _forget(self, uid: str) -> None:
        self.ended.pop(uid, None)

    def _take(self, uid: str, found: Tracked, now_us: int) -> None:
        before = self.tracked.get(uid)
        if before is not None and before.observation == found.observation:
            found.observation = before.observation
        self.tracked[uid] = found
        if found.observation.ended_us is None:
            self._place(uid, found)
        elif before is None or before.observation.ended_us != found.observation.ended_us:
            self._place(uid, found)
            self._over(uid, self.live.get(uid), now_us)
        self._changed(found, uid)

    def _place(self, uid: str, tracked: Tracked) -> None:
        """Put the observation with its true org and project among what is billed."""
        seen = tracked.observation
        of_namespace = self._namespaces.place(tracked.namespace)
        org, org_differs = place(seen.org, of_namespace[0])
        project, project_differs = place(seen.project, of_namespace[1])
        if org_differs or project_differs:
            self._contradict.add(uid)
        else:
            self._contradict.discard(uid)
        reason = tracked.reason if org else names.NO_ORG if tracked.ours else None
        if reason is None:
            self._reasons.pop(uid, None)
        else:
            self._reasons[uid] = reason
        if not org or not seen.resource:
            return  # what was billed before its labels went stays billed as it was
        if org != seen.org or project != seen.project:
            seen = msgspec.structs.replace(seen, org=org, project=project)
        if self.live.get(uid) != seen:
            self.live[uid] = seen
        self._changed(tracked, uid)

    def _end(self, uid: str, end_us: int, now_us: int) -> None:
        """It ended without saying so."""
        tracked = self.tracked[uid]
        observation = tracked.observation
        if observation.ended_us is not None:
            return
        start_us = observation.suspended[-1][1] if observation.suspended else observation.started_us
        end_us = end_us if start_us is None else max(end_us, start_us)
        tracked.observation = msgspec.structs.replace(observation, ended_us=end_us)
        billed = self.live.get(uid)
        self._over(uid, billed and msgspec.structs.replace(billed, ended_us=end_us), now_us)
        self._changed(tracked, uid)

    def _over(self, uid: str, billed: Observation | None, now_us: int) -> None:
        self.live.pop(uid, None)
        self._reasons.pop(uid, None)
        self._contradict.discard(uid)
        if billed is not None:
            self.ended[uid] = billed, now_us

    def _drop(self, uid: str) -> None:
        self.tracked.pop(uid, None)
        self.live.pop(uid, None)
        self._contradict.discard(uid)
        self._reasons.pop(uid, None)
        self._unread.pop(uid, None)
        self._called.pop(uid, None)
        self._doubtful.discard(uid)


class Claims(Objects):
    """Volume claims."""

    def __init__(self, reader: PodReader, namespaces: Namespaces, skip_namespaces: Collection[str]) -> None:
        super().__init__(namespaces, skip_namespaces)
        self._reader = reader

    def _read(self, raw: bytes | msgspec.Raw, before: Tracked | None, now_us: int, *, deleted: bool) -> Tracked | None:
        return self._reader.read_claim(raw)
