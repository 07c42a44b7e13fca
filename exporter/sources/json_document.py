"""Reads the JSON that any scheduler can be brought with (docs: the contract's `json` source) into a snapshot.

A record that is the same, byte for byte, as in the document before gives the very same `Observation` object:
nothing is decoded twice, and the meter sees by identity what has not changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from exporter.sources import names
from exporter.sources.base import SourceError
from exporter.sources.names import Unbillable, optional_name, required_id, required_name
from exporter.sources.uncharged import Uncharged
from ledger.clock import INSTANT_MAX_US, to_us
from ledger.model import Interval, Kind, Observation, Snapshot

_SECOND_US: Final = 1_000_000
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[int, msgspec.Meta(gt=0, le=INSTANT_MAX_US // _SECOND_US)]


class _Document(msgspec.Struct):
    cluster: str
    taken_at: str
    complete: bool = True
    workloads: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    storage: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET


class _Workload(msgspec.Struct):
    id: str
    kind: str
    org: str | None = None
    project: str | None = None
    user: str | None = None
    preset: str | None = None
    app: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    suspended: list[tuple[str, str | None]] | None = None
    hold_id: str | None = None
    max_runtime_seconds: Seconds | None = None


class _Volume(msgspec.Struct):
    id: str
    bytes: Bytes
    org: str | None = None
    project: str | None = None
    user: str | None = None
    storage_class: str | None = None


class _Identity(msgspec.Struct):
    id: Any


class _Times(msgspec.Struct):
    """The part of a workload that says whether it may be running."""

    started_at: str | None
    ended_at: str | None = None


_document = msgspec.json.Decoder(_Document)
_workload = msgspec.json.Decoder(_Workload)
_volume = msgspec.json.Decoder(_Volume)
_times = msgspec.json.Decoder(_Times)
_identity = msgspec.json.Decoder(_Identity)
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_Seen = dict[bytes, Observation]


class Cache:
    """The records of the last document, as they were written, with what they mean."""

    def __init__(self) -> None:
        self.workloads: _Seen = {}
        self.volumes: _Seen = {}


def parse(data: bytes, source: str, cluster: str, cache: Cache | None = None) -> Snapshot:
    """The snapshot that a document describes.

    A record that cannot be used is left out and counted by its reason; the snapshot is then complete only
    if that record has ended, or has not started. Of records with the same identity the last one counts.
    `cache` carries what the document before said; it is replaced by what this one says.
    Raises: SourceError where the document as a whole says nothing that could be trusted.
    """
    document = _read(data, source, cluster)
    try:
        taken_us = instant_us(document.taken_at)
    except ValueError as error:
        raise SourceError(f"{source}: taken_at: {error}") from error
    cache = cache or Cache()
    unbillable = Uncharged()
    workloads, cache.workloads, sure = _convert(
        document.workloads or [], cache.workloads, _observe_workload, unbillable
    )
    volumes, cache.volumes, sure_of_volumes = _convert(
        document.storage or [], cache.volumes, _observe_volume, unbillable
    )
    waiting = [one for one in workloads if one.started_us is None and one.ended_us is None]
    return Snapshot(
        source=source,
        cluster=cluster,
        taken_us=taken_us,
        workloads=workloads + volumes,
        complete=document.complete and sure and sure_of_volumes,
        unbillable=dict(unbillable),
        pending_holds=frozenset(one.hold_id for one in waiting if one.hold_id is not None),
        pending=frozenset((one.org, one.id) for one in waiting if one.hold_id is None),
        examples=unbillable.examples,
    )


def instant_us(text: str) -> int:
    """RFC 3339 text with any offset, as microseconds since 1970; what is finer is cut off.

    Raises: ValueError with what would be right.
    """
    if _RFC3339.fullmatch(text) is None:
        raise ValueError(f"{text[:60]!r} is not a time with a zone, like 2026-11-22T10:00:00Z")
    try:
        us = to_us(datetime.fromisoformat(text.upper()))
    except ValueError as error:
        raise ValueError(f"{text[:60]!r} is not a time: {error}") from error
    if not 0 <= us < INSTANT_MAX_US:
        raise ValueError(f"{text[:60]!r} is not between the years 1970 and 2255")
    return us


def _read(data: bytes, source: str, cluster: str) -> _Document:
    """The document with its records still unread. Raises: SourceError."""
    try:
        # Some editors and shells begin UTF-8 files with a byte order mark, which JSON forbids.
        document = _document.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except _BROKEN as error:
        raise SourceError(f"{source}: {len(data)} bytes that are not a snapshot in JSON: {error}") from error
    if document.cluster != cluster:
        raise SourceError(
            f"{source}: the snapshot is of cluster {document.cluster[:60]!r}, the settings say {cluster!r}"
        )
    # A document without any list is some other document: taken as a snapshot, it would end all that runs.
    if document.workloads is msgspec.UNSET and document.storage is msgspec.UNSET:
        raise SourceError(f"{source}: the snapshot has neither `workloads` nor `storage`; write [] for none")
    return document


def _convert(
    records: list[msgspec.Raw],
    before: _Seen,
    observe: Callable[[bytes], Observation],
    unbillable: Uncharged,
) -> tuple[list[Observation], _Seen, bool]:
    """What the records say, what was seen, and whether no record that may be running was left out."""
    sure = True
    seen: _Seen = {}
    observed: list[Observation] = []
    for raw in records:
        record = bytes(raw)
        known = before.get(record)
        if known is None:
            try:
                known = observe(record)
            except Unbillable as verdict:
                unbillable.add(verdict.reason, _id_of(record) if unbillable.wants(verdict.reason) else None)
                sure = sure and not _may_run(record)
                continue
        seen[record] = known
        observed.append(known)
    by_identity = {(o.id, o.kind, o.started_us): o for o in observed}
    if len(by_identity) < len(observed):
        unbillable[names.DUPLICATE] += len(observed) - len(by_identity)
        observed = list(by_identity.values())
    return observed, seen, sure


def _id_of(record: bytes) -> str | None:
    """What a record that cannot be used calls itself, if it does."""
    try:
        return str(_identity.decode(record).id)
    except _BROKEN:
        return None


def _may_run(record: bytes) -> bool:
    """Whether a record that cannot be used is of something that runs, as far as one can tell."""
    try:
        times = _times.decode(record)
        if times.ended_at is not None:
            instant_us(times.ended_at)
    except (*_BROKEN, ValueError):
        return True
    return times.started_at is not None and times.ended_at is None


def _observe_workload(record: bytes) -> Observation:
    """A job or an app. Raises: Unbillable."""
    try:
        said = _workload.decode(record)
        started_us = None if said.started_at is None else instant_us(said.started_at)
        ended_us = None if said.ended_at is None else instant_us(said.ended_at)
        suspended = _suspensions(said.suspended, started_us, ended_us) if said.suspended else ()
    except (*_BROKEN, ValueError) as error:
        raise Unbillable(names.MALFORMED) from error
    app = optional_name(said.app)
    if said.kind == Kind.JOB:
        kind, resource = Kind.JOB.value, said.preset
    elif said.kind == Kind.APP:
        kind, resource = Kind.APP.value, said.preset or app
    else:
        raise Unbillable(names.MALFORMED)
    if started_us is not None and ended_us is not None and ended_us < started_us:
        raise Unbillable(names.MALFORMED)
    seconds = said.max_runtime_seconds
    return Observation(
        required_id(said.id),
        kind,
        required_name(said.org, names.NO_ORG),
        optional_name(said.project),
        optional_name(said.user),
        required_name(resource, names.NO_PRESET),
        app,
        started_us,
        ended_us,
        suspended,
        hold_id=optional_name(said.hold_id) or None,
        limit_us=None if seconds is None else seconds * _SECOND_US,
    )


def _observe_volume(record: bytes) -> Observation:
    """A stored volume. Raises: Unbillable."""
    try:
        said = _volume.decode(record)
    except _BROKEN as error:
        raise Unbillable(names.MALFORMED) from error
    return Observation(
        required_id(said.id),
        Kind.STORAGE.value,
        required_name(said.org, names.NO_ORG),
        optional_name(said.project),
        optional_name(said.user),
        optional_name(said.storage_class) or "default",
        bytes=said.bytes,
    )


def _suspensions(
    said: list[tuple[str, str | None]], started_us: int | None, ended_us: int | None
) -> tuple[Interval, ...]:
    """The intervals sorted, joined where they meet, and within the workload's own time.

    Raises: ValueError for an interval that ends before it begins, or has no valid times.
    """
    intervals: list[tuple[int, int]] = []
    for since_text, until_text in said:
        since, until = instant_us(since_text), INSTANT_MAX_US
        if until_text is not None:
            until = instant_us(until_text)
            if until < since:
                raise ValueError(f"suspended from {since_text} until {until_text}")
        intervals.append((since, until))
    if started_us is None:
        return ()
    end_us = INSTANT_MAX_US if ended_us is None else ended_us
    joined: list[tuple[int, int]] = []
    for since, until in sorted(intervals):
        since, until = max(since, started_us), min(until, end_us)
        if since >= until:
            continue
        if joined and since <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(until, joined[-1][1]))
        else:
            joined.append((since, until))
    return tuple((since, None if until == INSTANT_MAX_US else until) for since, until in joined)
