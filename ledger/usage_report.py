"""A question about what was used, and its answer: rows as JSON, CSV and pages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ledger import csv_text
from ledger.clock import INSTANT_MAX_US, format_time
from ledger.errors import InvalidRequest
from ledger.money import HOUR_US, format_hours, format_micro, format_rate
from ledger.org_state import Row
from ledger.runs import GONE, Run, billable
from ledger.steps import STEPS, check_zone
from ledger.usage_reader import charged_at
from ledger.usage_sums import MICRO, REFUNDED_MICRO, REFUNDED_US, US, Sums

GROUPS: Final = ("cluster", "org", "project", "user", "kind", "resource", "app", "workload")
_STEPS_MAX: Final = 200_000
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
