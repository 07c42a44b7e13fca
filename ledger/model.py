"""Domain types shared by all packages: what a scheduler says, what it costs, what was decided.

Amounts are integers of micro-credits (`*_micro`), rates of nano-credits an hour (`*_nano`), instants and
durations of microseconds (`*_us`, instants since 1970 in UTC); intervals are half-open `[since, until)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

Interval = tuple[int, int | None]
"""`[since, until)` in microseconds; `until` None: not over yet."""


class Kind(StrEnum):
    """What a workload is."""

    JOB = "job"
    APP = "app"
    STORAGE = "storage"


class Observation(msgspec.Struct, frozen=True, gc=False):
    """What one snapshot of a scheduler says of one workload.

    `resource` is the preset of a job or app (an app without a preset: the app's name; storage: the storage
    class). An absent project or user is "". `started_us` None: not started, so not billable yet (storage:
    counts from its first snapshot). `suspended` lists intervals that are not billed. A scheduler that only
    tells how long a workload was suspended up to some instant says so in `suspended_before`
    (instant, microseconds in all up to then). `bytes` is for storage. `hold_id` names the hold the scheduler
    carried from admission to here; `limit_us` is the run time after which the scheduler ends the workload. `was`: an
    id of the same kind under which it may have been charged before, by another source of the cluster.
    """

    id: str
    kind: str
    org: str
    project: str
    user: str
    resource: str
    app: str = ""
    started_us: int | None = None
    ended_us: int | None = None
    suspended: tuple[Interval, ...] = ()
    suspended_before: tuple[int, int] | None = None
    bytes: int = 0
    hold_id: str | None = None
    limit_us: int | None = None
    bills_app: bool = True
    """False where another workload carries the app's own rate (a pod of an app instance)."""
    was: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a source saw at `taken_us`, the clock up to which its workloads are charged.

    `complete`: a running workload that is not listed has ended. `unbillable` counts records that could not
    be used, by reason; `examples` names some of them. `pending_holds` are holds whose jobs wait in the queue;
    `pending` is (org, id) of work that waits there and names no hold. `lists_waiting`: whether these are all that wait;
    None: nobody counts on it that they are.
    """

    source: str
    cluster: str
    taken_us: int
    workloads: tuple[Observation, ...] | list[Observation]
    complete: bool = True
    unbillable: Mapping[str, int] = field(default_factory=dict)
    pending_holds: frozenset[str] = frozenset()
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pending: frozenset[tuple[str, str]] = frozenset()
    lists_waiting: bool | None = None


@dataclass(frozen=True, slots=True)
class RateTable:
    """What a cluster's resources cost: nano-credits an hour, for storage per GB-hour."""

    presets: Mapping[str, int] = field(default_factory=dict)
    apps: Mapping[str, int] = field(default_factory=dict)
    storage: Mapping[str, int] = field(default_factory=dict)
    unpriced: str = "deny"
    """What admission says to a preset without a rate: `deny` or `free`."""


@dataclass(frozen=True, slots=True)
class RatePlan:
    """A cluster's rates over time: `steps` of (from_us, whole table), ascending; the first is from 0, always."""

    cluster: str
    steps: tuple[tuple[int, RateTable], ...]

    def at(self, us: int) -> RateTable:
        """The table in force at an instant."""
        table = self.steps[0][1]
        for since, step in self.steps:
            if since > us:
                break
            table = step
        return table


class Code(StrEnum):
    """Why admission said what it said, for programs."""

    OK = "ok"
    NO_CREDITS = "no_credits"
    BUDGET_EXHAUSTED = "budget_exhausted"
    UNKNOWN_ORG = "unknown_org"
    UNPRICED = "unpriced"
    LEDGER_UNAVAILABLE = "ledger_unavailable"
