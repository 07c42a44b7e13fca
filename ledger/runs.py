"""A run: one life of one workload, and its exact cumulative cost.

A charge is a difference of a floor: f(t) = floor(cost from the run's start to t), so a round charges
f(now) - f(charged until), sums telescope, and no polling interval can matter. Costs are exact integers
(numerators over `COST_DENOMINATOR`) that outgrow 64 bits; Python's do not overflow.

A run is a chain of legs. A leg has one row (org, project, user, resource, app); where these change, the leg
ends and the next one starts, with the remainder of the floor carried over, so that the sum over the legs is
the floor of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from ledger.model import Interval, Observation
from ledger.money import COST_DENOMINATOR, HOUR_US
from ledger.rates_history import RateLine

NEVER = 1 << 62
"""An instant that does not come."""

POINTS_MAX = 32
"""Size changes a leg keeps before the next one starts, so that a record stays small."""

OPEN, PAUSED, GONE, ENDED = "open", "paused", "gone", "ended"
"""`open`: runs, and follows the mark of its source. `paused`: an incomplete snapshot left it out.
`gone`: a complete snapshot left it out, so it ended when last seen. `ended`: the scheduler gave its end."""


class Point(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """From `at` on a run has `units` (bytes; UNIT for jobs); cost and time before it are in `cost` and `us`."""

    at: int
    cost: str
    us: int
    units: int


class Record(msgspec.Struct, array_like=True, gc=False):
    """A leg as the ledger keeps it."""

    id: str
    kind: str
    cluster: str
    source: str
    row: int
    started_us: int | None
    ended_us: int | None
    suspended: tuple[Interval, ...]
    points: tuple[Point, ...]
    state: str
    until_us: int
    refunded_micro: int = 0
    refunded_us: int = 0
    leg: int = 0
    limit_us: int | None = None
    bills_app: bool = True


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)

RunKey = tuple[str, str, int | None]
"""(kind, id, started): what tells runs of a cluster apart. Storage is one run whatever its start."""


def key_of(observation: Observation) -> RunKey:
    """The run an observation is about."""
    return (
        observation.kind,
        observation.id,
        None if observation.kind == "storage" else observation.started_us,
    )


def field_of(cluster: str, key: RunKey, leg: int | None = None) -> str:
    """Field of `runs` and `ended` for a run: its latest leg, or the earlier leg of a number."""
    kind, name, started = key
    text = f"{cluster}\x1f{kind}\x1f{name}\x1f{'' if started is None else started}"
    return text if leg is None else f"{text}\x1f{leg}"


class Run:
    """The latest leg of a run in memory: its record, and what the next round needs at hand.

    `cost_at`, `cost_from` and `per_us` are the anchor of the fast path: while nothing changes, the numerator
    at t is cost_at + per_us x (t - cost_from), valid up to `steady_until`. `floor` is f(charged until).
    """

    __slots__ = (
        "bills_app", "cluster", "cost_at", "cost_from", "ended_us", "floor", "id", "is_billed", "kind", "leg",
        "limit_us", "line", "observation", "org", "per_us", "points", "refunded_micro", "refunded_us", "row", "source",
        "stamp", "started_us", "state", "steady_until", "suspended", "until_us",
    )  # fmt: skip

    line: RateLine

    def __init__(self, org: str, record: Record) -> None:
        self.org = org
        self.id = record.id
        self.kind = record.kind
        self.cluster = record.cluster
        self.source = record.source
        self.row = record.row
        self.started_us = record.started_us
        self.ended_us = record.ended_us
        self.suspended = record.suspended
        self.points: tuple[tuple[int, int, int, int], ...] = tuple(
            (p.at, int(p.cost), p.us, p.units) for p in record.points
        )
        self.state = record.state
        self.until_us = record.until_us
        self.refunded_micro = record.refunded_micro
        self.refunded_us = record.refunded_us
        self.leg = record.leg
        self.limit_us = record.limit_us
        self.bills_app = record.bills_app
        self.observation: Observation | None = None
        self.stamp = -1
        self.floor = 0
        self.cost_at = 0
        self.cost_from = 0
        self.per_us = 0
        self.is_billed = False
        self.steady_until = 0

    @property
    def key(self) -> RunKey:
        return self.kind, self.id, None if self.kind == "storage" else self.started_us

    @property
    def field(self) -> str:
        return field_of(self.cluster, self.key)

    def record(self) -> Record:
        """What the ledger keeps of this leg."""
        return Record(
            self.id, self.kind, self.cluster, self.source, self.row, self.started_us, self.ended_us, self.suspended,
            tuple(Point(at, str(cost), us, units) for at, cost, us, units in self.points),
            self.state, self.until_us, self.refunded_micro, self.refunded_us, self.leg, self.limit_us, self.bills_app,
        )  # fmt: skip

    def encode(self) -> str:
        """The record as JSON text: the scripts' msgpack reader knows no byte strings."""
        return _encoder.encode(self.record()).decode()

    @classmethod
    def decode(cls, org: str, data: bytes) -> Run:
        """Raises: msgspec.ValidationError, msgspec.DecodeError for what is not a record."""
        return cls(org, _decoder.decode(data))

    def charged_until(self, mark: int | None) -> int:
        """Up to when the run is charged: runs that go on follow the mark of their source."""
        if self.state == OPEN and mark is not None and mark > self.until_us:
            return mark
        return self.until_us

    def cumulative(self, us: int) -> tuple[int, int]:
        """(cost numerator, microseconds billed) of this leg up to an instant."""
        return cumulative(self.points, self.ended_us, self.suspended, self.line, us)

    def settle_anchor(self, us: int) -> None:
        """Put the fast path's anchor at `us`, up to which the run is charged."""
        cost, _ = self.cumulative(us)
        self.floor = cost // COST_DENOMINATOR
        self.cost_at = cost
        self.cost_from = us
        self.steady_until, self.is_billed = steady_from(us, self.ended_us, self.suspended, self.line)
        self.per_us = (self.line.at(us) or 0) * self.points[-1][3] if self.is_billed else 0


def steady_from(us: int, ended_us: int | None, suspended: Sequence[Interval], line: RateLine) -> tuple[int, bool]:
    """(until when nothing changes from an instant on, whether that time is billed)."""
    change = line.next_change(us)
    steady_until = NEVER if change is None else change
    running = ended_us is None or ended_us > us
    if ended_us is not None and us < ended_us < steady_until:
        steady_until = ended_us
    for since, until in suspended:
        if since <= us and (until is None or until > us):
            running = False
            if until is not None and until < steady_until:
                steady_until = until
        elif us < since < steady_until:
            steady_until = since
    return steady_until, running


def billable(since: int, until: int, ended_us: int | None, suspended: Sequence[Interval]) -> Iterator[tuple[int, int]]:
    """The parts of [since, until) that are billed: before the end, outside suspensions (sorted, disjoint)."""
    if ended_us is not None and ended_us < until:
        until = ended_us
    for start, stop in suspended:
        if start >= until:
            break
        if stop is not None and stop <= since:
            continue
        if start > since:
            yield since, start
        if stop is None:
            return
        since = max(since, stop)
    if since < until:
        yield since, until


def cumulative(
    points: Sequence[tuple[int, int, int, int]],
    ended_us: int | None,
    suspended: Sequence[Interval],
    line: RateLine,
    us: int,
) -> tuple[int, int]:
    """(cost numerator, microseconds billed) of a leg from its first point up to `us`."""
    at, cost, billed, units = points[0]
    for point in reversed(points):
        if point[0] <= us:
            at, cost, billed, units = point
            break
    else:
        return cost, billed
    for since, until in billable(at, us, ended_us, suspended):
        for start, stop, nano in line.pieces(since, until):
            cost += nano * units * (stop - start)
        billed += until - since
    return cost, billed


def hour_of(us: int) -> int:
    """The full hour an instant is in."""
    return us - us % HOUR_US


def merge_intervals(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """Sorted and disjoint; empty ones dropped; an open one swallows what comes after its start."""
    merged: list[Interval] = []
    for since, until in sorted(intervals, key=lambda i: i[0]):
        if until is not None and until <= since:
            continue
        if merged and (merged[-1][1] is None or since <= merged[-1][1]):
            last = merged[-1]
            if last[1] is None:
                break
            merged[-1] = (last[0], None if until is None else max(last[1], until))
        else:
            merged.append((since, until))
    return tuple(merged)


def place_suspensions(
    known: Sequence[Interval], started_us: int, before: tuple[int, int], explicit: Sequence[Interval]
) -> tuple[Interval, ...]:
    """Where suspended time is put of which only the total up to an instant is known.

    What was known keeps its place; the rest is put as late as possible before the instant, since the run was
    seen running earlier. If the total is less than what was known, the latest suspension shrinks.
    """
    instant, total = before
    kept: list[tuple[int, int]] = []
    for since, until in known:
        start, stop = max(since, started_us), min(instant if until is None else until, instant)
        if start < stop:
            kept.append((start, stop))
    missing = total - sum(stop - start for start, stop in kept)
    while missing < 0 and kept:
        start, stop = kept.pop()
        if stop - start + missing > 0:
            kept.append((start, stop + missing))
        missing = min(0, missing + stop - start)
    end = instant
    for start, stop in [*reversed(kept), (started_us, started_us)]:
        if missing <= 0:
            break
        room = min(missing, end - stop)
        if room > 0:
            kept.append((end - room, end))
            missing -= room
        end = start
    return merge_intervals([*kept, *explicit])
