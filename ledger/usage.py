"""What was used in a period: exact sums out of the ledger, grouped as asked.

Sums of full hours come from the buckets; by workload, and for parts of hours, from the records of the runs.
Credits are what was charged; what a correction gave back of them stands beside, in `refunded`. By workload, credits
are what the workload cost in the end; what was given back, and what is older than the records that are kept, is in
rows without a workload, so that every grouping adds up to the same total.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ledger import csv_text
from ledger.clock import INSTANT_MAX_US, format_time
from ledger.errors import InvalidRequest, UnknownOrg
from ledger.money import HOUR_US, format_hours, format_micro, format_rate
from ledger.org_state import Row
from ledger.runs import GONE, Run, billable
from ledger.steps import STEPS, check_zone, cut
from ledger.store import Ledger
from ledger.usage_reader import (
    MICRO,
    REFUNDED_MICRO,
    REFUNDED_US,
    US,
    Horizon,
    OrgReader,
    Sink,
    Sums,
    charged_at,
    read_horizon,
    whole_hours,
)

GROUPS: Final = ("cluster", "org", "project", "user", "kind", "resource", "app", "workload")
_STEPS_MAX: Final = 200_000
ROWS_MAX: Final = 1_000_000
"""Rows an answer has at most, so that no question takes all memory."""
Key = tuple[Any, ...]
"""(start of the step or 0, names as grouped, and of a workload: cluster, kind, start, id)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """A period `[from_us, to_us)` and what of it; None: everything.

    `step` cuts it at the hours, days, weeks (from Monday) and months of `timezone`.
    """

    from_us: int
    to_us: int
    cluster: str | None = None
    org: str | None = None
    project: str | None = None
    user: str | None = None
    kind: str | None = None
    group_by: tuple[str, ...] = ("org",)
    step: str | None = None
    timezone: str = "UTC"

    def check(self) -> None:
        """Raises: InvalidRequest saying what would be right."""
        for name in self.group_by:
            if name not in GROUPS:
                raise InvalidRequest(f"group_by {name!r}: expected one or more of {', '.join(GROUPS)}")
        if len(set(self.group_by)) < len(self.group_by):
            raise InvalidRequest("group_by: expected each name once")
        if self.step is not None and self.step not in STEPS:
            raise InvalidRequest(f"step {self.step!r}: expected one of {', '.join(STEPS)}")
        if self.from_us >= self.to_us:
            raise InvalidRequest("from: expected an instant before `to`")
        if self.step is not None and not 0 <= self.from_us < self.to_us <= INSTANT_MAX_US:
            raise InvalidRequest("step: expected a period between 1970 and 2255 with it")
        if self.step is not None and (self.to_us - self.from_us) // HOUR_US > _STEPS_MAX:
            raise InvalidRequest(f"step: expected a period of at most {_STEPS_MAX // 8766} years with it")
        check_zone(self.timezone)

    def takes(self, org: str, row: Row) -> bool:
        """Whether a row of an org is asked for."""
        return (
            self.org in (None, org)
            and self.cluster in (None, row.cluster)
            and self.project in (None, row.project)
            and self.user in (None, row.user)
            and self.kind in (None, row.kind)
        )


@dataclass(slots=True)
class UsageRow:
    """`names`: what it is grouped by. By workload also the legs of the workload, in their order, by time."""

    key: Key
    names: dict[str, str]
    at_us: int | None
    sums: Sums = field(default_factory=lambda: [0, 0, 0, 0])
    legs: list[tuple[Run, Row, int, int]] = field(default_factory=list)

    @property
    def micro(self) -> int:
        return self.sums[MICRO]

    @property
    def us(self) -> int:
        return self.sums[US]


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Rows in order of time and names. `from_us`, `to_us`: the bounds that the rows are exact for.

    `is_exact`: these and the bounds of all steps are as asked; else details that old are not kept any more.
    """

    query: UsageQuery
    rows: list[UsageRow]
    from_us: int
    to_us: int
    is_exact: bool = True

    @property
    def total_micro(self) -> int:
        return sum(row.micro for row in self.rows)

    def columns(self) -> list[str]:
        """Of a table of the rows."""
        query = self.query
        workload = ["id", "kind", "started_at", "ended_at"] if "workload" in query.group_by else []
        first = [*(["at"] if query.step else []), *query.group_by, *workload]
        return list(dict.fromkeys([*first, "credits", "hours", "refunded"]))

    def totals(self) -> dict[str, str]:
        """The sums of all rows, exactly."""
        sums = [sum(row.sums[column] for row in self.rows) for column in range(4)]
        return _amounts(sums)

    def shape(self, limit: int | None = None, cursor: str | None = None) -> dict[str, Any]:
        """As `--json` and HTTP give it: at most `limit` rows after those of the page that gave `cursor`.

        The totals are of all rows. Raises: InvalidRequest for a cursor that is none.
        """
        rows, after = self.page(limit, cursor)
        query, totals = self.query, self.totals()
        shape: dict[str, Any] = {
            "from": format_time(query.from_us),
            "to": format_time(query.to_us),
            "exact_from": format_time(self.from_us),
            "exact_to": format_time(self.to_us),
            "exact": self.is_exact,
            "group_by": list(query.group_by),
        }
        if query.step:
            shape |= {"step": query.step, "timezone": query.timezone}
        shape |= {"rows": [self._row_shape(row, details=True) for row in rows], "total": totals["credits"]}
        shape["total_hours"] = totals["hours"]
        if "refunded" in totals:
            shape["total_refunded"] = totals["refunded"]
        shape["next"] = after
        return shape

    def csv(self) -> Iterator[str]:
        """Lines of CSV: a header, all rows, and the totals in a last one."""
        columns = self.columns()
        rows = (self._row_shape(row, details=False) for row in self.rows)
        yield from csv_text.lines(columns, [*rows, {columns[0]: "total", **self.totals()}])

    def page(self, limit: int | None, cursor: str | None) -> tuple[list[UsageRow], str | None]:
        """(rows after those that `cursor` stands for, cursor of the next page). Raises: InvalidRequest."""
        rows = self.rows
        if cursor is not None:
            last = _decode_cursor(cursor, rows[0].key if rows else None)
            rows = [row for row in rows if row.key > last]
        if limit is None or len(rows) <= limit:
            return rows, None
        return rows[:limit], _encode_cursor(rows[limit - 1].key)

    def _row_shape(self, row: UsageRow, *, details: bool) -> dict[str, Any]:
        shape: dict[str, Any] = {} if row.at_us is None else {"at": format_time(row.at_us)}
        shape |= {name: value or None for name, value in row.names.items()}
        if "workload" in self.query.group_by:
            shape |= _workload_shape(row, details=details)
        return shape | _amounts(row.sums)


async def whole_period(ledger: Ledger) -> tuple[int, int]:
    """[since, until) of all that was ever charged, in full hours."""
    since = ledger.epoch_us - ledger.epoch_us % HOUR_US
    # Snapshots may bring a clock that is ahead of ours.
    latest = max([ledger.clock(), *(await ledger.charging.source_marks()).values()])
    return since, max(latest + -latest % HOUR_US, since + HOUR_US)


async def usage(ledger: Ledger, query: UsageQuery) -> UsageReport:
    """What was used. Raises: InvalidRequest, UnknownOrg, LedgerUnavailable."""
    query.check()
    orgs = await ledger.accounts.orgs()
    if query.org is not None:
        if query.org not in orgs:
            raise UnknownOrg(f"no org {query.org!r}; `credits grant {query.org} CREDITS` creates it")
        orgs = [query.org]
    horizon = await read_horizon(ledger)
    pieces, is_exact = _pieces(query, horizon)
    rows: dict[Key, UsageRow] = {}
    for org in orgs:
        await _Org(ledger, query, pieces, horizon, org, rows).add()
    found = [rows[key] for key in sorted(rows) if any(rows[key].sums)]
    return UsageReport(query, found, pieces[0][1], pieces[-1][2], is_exact)


def _pieces(query: UsageQuery, horizon: Horizon) -> tuple[list[tuple[int | None, int, int]], bool]:
    """(start of the step, since, until), cut where that can be cut; and whether that is as asked."""
    if query.step is None:
        asked: list[tuple[int | None, int, int]] = [(None, query.from_us, query.to_us)]
    else:
        asked = list(cut(query.step, query.timezone, query.from_us, query.to_us))
    pieces: list[tuple[int | None, int, int]] = []
    at = horizon.settle(query.from_us, up=False)
    is_exact = at == query.from_us
    for start, _, until in asked:
        end = horizon.settle(until, up=True)
        is_exact = is_exact and end == until
        if at < end:
            pieces.append((start, at, end))
        at = end
    return pieces, is_exact


class _Org:
    """Adds what one org used to the rows."""

    def __init__(
        self,
        ledger: Ledger,
        query: UsageQuery,
        pieces: list[tuple[int | None, int, int]],
        horizon: Horizon,
        org: str,
        rows: dict[Key, UsageRow],
    ) -> None:
        self._query = query
        self._pieces = pieces
        self._horizon = horizon
        self._org = org
        self._rows = rows
        self._reader = OrgReader(ledger, org)
        self._by_workload = "workload" in query.group_by
        self._names: dict[int, dict[str, str]] = {}
        self._numbers: list[int] = []

    async def add(self) -> None:
        reader = self._reader
        await reader.open()
        self._names = {
            number: self._names_of(row, None)
            for number, row in enumerate(reader.rows)
            if self._query.takes(self._org, row)
        }
        self._numbers = list(self._names)
        if not self._numbers:
            return
        parts, cuts = [], []
        for index, (_, since, until) in enumerate(self._pieces):
            first, last = whole_hours(since, until)
            if first > last:
                cuts.append((index, since, until))
                continue
            if since < first:
                cuts.append((index, since, first))
            if first < last:
                parts.append((index, first, last))
            if last < until:
                cuts.append((index, last, until))
        if not self._by_workload:
            await reader.add_buckets([(a, b, self._sink(index)) for index, a, b in parts], self._numbers)
            if cuts:
                await self._add_refunds(cuts)
                await self._add_runs(cuts)
            return
        known_from = self._horizon.runs_us
        old = [(i, since, min(until, known_from)) for i, since, until in parts if since < known_from]
        await reader.add_buckets([(a, b, self._sink(index)) for index, a, b in old], self._numbers)
        await self._add_refunds(
            [(i, max(since, known_from), until) for i, since, until in parts if until > known_from] + cuts
        )
        await self._add_runs([(index, since, until) for index, (_, since, until) in enumerate(self._pieces)])

    async def _add_refunds(self, parts: list[tuple[int, int, int]]) -> None:
        """What was given back, and was charged before: no run tells of it. It counts at the start of its hour."""
        if not await self._reader.has_refunds():
            return
        sinks: list[tuple[int, int, Sink]] = []
        for index, since, until in parts:
            first, last = since + -since % HOUR_US, until + -until % HOUR_US
            if first < last:
                sinks.append((first, last, self._sink(index, refunds=True)))
        await self._reader.add_buckets(sinks, self._numbers)

    async def _add_runs(self, parts: list[tuple[int, int, int]]) -> None:
        """What legs were charged for parts of hours, or for all of it by workload."""
        query, known_from = self._query, self._horizon.runs_us
        since, until = parts[0][1], parts[-1][2]
        ends = [part[2] for part in parts]
        async for run in self._reader.runs(since, until):
            row = self._reader.rows[run.row]
            if not query.takes(self._org, row):
                continue
            low, high = run.points[0][0], run.until_us
            for index, first, last in parts[bisect_right(ends, low) :]:
                start, end = max(first, low), min(last, high)
                if start >= end:
                    break
                before, after = charged_at(run, start), charged_at(run, end)
                target = self._row(index, row, run if self._by_workload else None)
                target.sums[MICRO] += after[0] - before[0]
                target.sums[US] += after[1] - before[1]
                if not self._by_workload:
                    continue
                target.legs.append((run, row, start, end))
                if start < known_from:  # the buckets' sums of that time are there already
                    settled = charged_at(run, min(end, known_from))
                    rest = self._row(index, row, None)
                    rest.sums[MICRO] -= settled[0] - before[0]
                    rest.sums[US] -= settled[1] - before[1]

    def _sink(self, index: int, *, refunds: bool = False) -> Sink:
        asked = self._names

        def sums_of(number: int) -> Sums | None:
            names = asked.get(number)  # none of a row that is not asked for, or newer than the rows
            return None if names is None else self._row_of(index, names, None).sums

        return Sink(sums_of, refunds=refunds)

    def _row(self, index: int, facts: Row, run: Run | None) -> UsageRow:
        return self._row_of(index, self._names_of(facts, run), run)

    def _names_of(self, facts: Row, run: Run | None) -> dict[str, str]:
        every = {"org": self._org, "workload": run.id if run else "", **facts._asdict()}
        return {name: every[name] for name in self._query.group_by}

    def _row_of(self, index: int, names: dict[str, str], run: Run | None) -> UsageRow:
        at_us = self._pieces[index][0]
        key: Key = (at_us or 0, *names.values())
        if self._by_workload:
            key += ("", "", -1, "") if run is None else (run.cluster, run.kind, run.key[2] or 0, run.id)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= ROWS_MAX:
                raise InvalidRequest(f"more than {ROWS_MAX} rows: ask for a shorter period or longer steps")
            row = self._rows[key] = UsageRow(key, names, at_us)
        return row


def _amounts(sums: Sums) -> dict[str, str]:
    shape = {"credits": format_micro(sums[MICRO]), "hours": format_hours(sums[US])}
    if sums[REFUNDED_MICRO] or sums[REFUNDED_US]:
        shape |= {
            "refunded": format_micro(sums[REFUNDED_MICRO]),
            "refunded_hours": format_hours(sums[REFUNDED_US]),
        }
    return shape


def _workload_shape(row: UsageRow, *, details: bool) -> dict[str, Any]:
    if not row.legs:
        rest = {"id": None, "kind": row.names.get("kind") or None, "started_at": None, "ended_at": None}
        return rest | ({"legs": []} if details else {})
    legs = sorted(row.legs, key=lambda leg: (leg[0].leg, leg[2]))
    last = legs[-1][0]
    ended = last.ended_us if last.ended_us is not None or last.state != GONE else last.until_us
    shape: dict[str, Any] = {
        "id": last.id,
        "kind": last.kind,
        "started_at": None if last.started_us is None else format_time(last.started_us),
        "ended_at": None if ended is None else format_time(ended),
    }
    if details:
        shape["legs"] = [_leg_shape(*leg) for leg in legs]
    return shape


def _leg_shape(run: Run, row: Row, since: int, until: int) -> dict[str, Any]:
    """A leg inside a period: what it was charged as, and what was billed when at which rate."""
    before, after = charged_at(run, since), charged_at(run, until)
    return {
        "cluster": row.cluster,
        "project": row.project or None,
        "user": row.user or None,
        "resource": row.resource,
        "app": row.app or None,
        "credits": format_micro(after[0] - before[0]),
        "hours": format_hours(after[1] - before[1]),
        "intervals": list(_intervals(run, since, until)),
    }


def _intervals(run: Run, since: int, until: int) -> Iterator[dict[str, Any]]:
    edges = [*(point[0] for point in run.points[1:]), until]
    for (at, _, _, units), end in zip(run.points, edges, strict=True):
        for start, stop in billable(max(at, since), min(end, until), run.ended_us, run.suspended):
            for first, last, nano in run.line.pieces(start, stop):
                shape: dict[str, Any] = {"from": format_time(first), "to": format_time(last), "rate": format_rate(nano)}
                yield shape | ({"bytes": units} if run.kind == "storage" else {})


def _encode_cursor(key: Key) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(key)).decode().rstrip("=")


def _decode_cursor(cursor: str, like: Key | None) -> Key:
    """Raises: InvalidRequest for what no page of this question gave."""
    try:
        key = tuple(msgspec.json.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (binascii.Error, msgspec.MsgspecError, ValueError, TypeError):
        key = ()
    if not key or (like is not None and [type(part) for part in key] != [type(part) for part in like]):
        raise InvalidRequest(f"cursor {cursor[:64]!r} is not one this ledger gave")
    return key
