"""The parts of Kubernetes objects that charges depend on; all else is skipped while it is read."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import msgspec

from config.preset_sizes import Container

HOLD_ANNOTATION: Final = "credits.apolo.us/hold"
"""Where admission leaves the hold of a pod."""


class _Annotations(msgspec.Struct, gc=False):
    hold: str | None = msgspec.field(default=None, name=HOLD_ANNOTATION)


class Metadata(msgspec.Struct, gc=False, rename="camel"):
    name: str
    uid: str
    creation_timestamp: datetime
    namespace: str = ""
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] | None = None
    annotations: _Annotations | None = None


class PodSpec(msgspec.Struct, gc=False, rename="camel"):
    containers: list[Container]
    init_containers: list[Container] | None = None
    active_deadline_seconds: int | None = None


class _Run(msgspec.Struct, gc=False, rename="camel"):
    started_at: datetime | None = None
    finished_at: datetime | None = None


class _State(msgspec.Struct, gc=False):
    running: _Run | None = None
    terminated: _Run | None = None


class _ContainerStatus(msgspec.Struct, gc=False, rename="camel"):
    restart_count: int = 0
    state: _State | None = None
    last_state: _State | None = None

    def starts(self) -> Iterable[datetime]:
        for state in (self.state, self.last_state):
            for run in (state.running, state.terminated) if state is not None else ():
                if run is not None and run.started_at is not None:
                    yield run.started_at


class _Condition(msgspec.Struct, gc=False, rename="camel"):
    type: str
    status: str = ""
    last_transition_time: datetime | None = None


class _Status(msgspec.Struct, gc=False, rename="camel"):
    phase: str = ""
    conditions: list[_Condition] | None = None
    container_statuses: list[_ContainerStatus] | None = None


class Pod(msgspec.Struct, gc=False):
    """The part of a pod that charges depend on."""

    metadata: Metadata
    spec: PodSpec
    status: _Status


class _ClaimSpec(msgspec.Struct, gc=False, rename="camel"):
    storage_class_name: str | None = None


class _ClaimStatus(msgspec.Struct, gc=False):
    phase: str = ""
    capacity: dict[str, str] | None = None


class Claim(msgspec.Struct, gc=False):
    """The part of a persistent volume claim that charges depend on."""

    metadata: Metadata
    spec: _ClaimSpec
    status: _ClaimStatus
