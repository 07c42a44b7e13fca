"""What was used in a period: exact sums out of the ledger, grouped as asked.

Sums of full hours come from the hourly buckets; by workload, from the records of the runs. Credits are net: what a
correction gave back of a row or a workload is taken off it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

from ledger import keys
from ledger.clock import format_time, from_us, to_us
from ledger.connect import again
from ledger.errors import InvalidRequest
from ledger.lua import text
from ledger.money import COST_DENOMINATOR, HOUR_US, format_hours, format_micro
from ledger.org_state import Row, decode_amounts, decode_rows
from ledger.rates_history import line_of
from ledger.runs import GONE, Run
from ledger.store import Ledger

GROUPS: Final = ("cluster", "org", "project", "user", "kind", "resource", "app", "workload")
STEPS: Final = ("hour", "day", "week", "month")
_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """A period `[from_us, to_us)` of full hours, and what of it; None: everything.

    `step` cuts it at the hours, days, weeks (Monday) and months of UTC.
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

    def check(self) -> None:
        """Raises: InvalidRequest saying what would be right."""
        for name in self.group_by:
            if name not in GROUPS:
                raise InvalidRequest(f"group_by {name!r}: expected of {', '.join(GROUPS)}")
        if self.step is not None and self.step not in STEPS:
            raise InvalidRequest(f"step {self.step!r}: expected one of {', '.join(STEPS)}")
        if self.from_us >= self.to_us:
            raise InvalidRequest("from: expected an instant before `to`")
        for name, us in (("from", self.from_us), ("to", self.to_us)):
            if us % HOUR_US:
                raise InvalidRequest(f"{name} {format_time(us)}: expected a full hour")

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
    """`names`: what it is grouped by. By workload also what the workload is."""

    names: dict[str, str]
    at_us: int | None = None
    micro: int = 0
    us: int = 0
    workload: Run | None = None


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Rows in order of time and names."""

    query: UsageQuery
    rows: list[UsageRow]

    @property
    def total_micro(self) -> int:
        return sum(row.micro for row in self.rows)

    def shape(self) -> dict[str, Any]:
        """As `--json` and HTTP give it."""
        return {
            "from": format_time(self.query.from_us),
            "to": format_time(self.query.to_us),
            "group_by": list(self.query.group_by),
            "rows": [_row_shape(row) for row in self.rows],
            "total": format_micro(self.total_micro),
        }


async def usage(ledger: Ledger, query: UsageQuery) -> UsageReport:
    """What was used. Raises: InvalidRequest, LedgerUnavailable."""
    query.check()
    rows: dict[tuple[str, ...], UsageRow] = {}
    read = _add_runs if "workload" in query.group_by else _add_buckets
    for org in await ledger.accounts.orgs() if query.org is None else [query.org]:
        await read(ledger, query, org, rows)
    found = [rows[key] for key in sorted(rows, key=lambda k: (rows[k].at_us or 0, k))]
    return UsageReport(query, [row for row in found if row.micro or row.us])


async def _add_buckets(ledger: Ledger, query: UsageQuery, org: str, rows: dict[tuple[str, ...], UsageRow]) -> None:
    names, client = keys.of_org(org), _client(ledger)
    numbered = decode_rows(await again(partial(client.hgetall, names.rows)))
    first, last = query.from_us // 1_000_000, query.to_us // 1_000_000 - 1
    hours = [int(hour) * 1_000_000 for hour in await again(partial(client.zrangebyscore, names.hours, first, last))]
    for start in range(0, len(hours), _BATCH):
        part = hours[start : start + _BATCH]
        for hour, bucket in zip(part, await _buckets(client, names, part), strict=True):
            at_us = step_start(query.step, hour) if query.step else None
            for number, amounts in decode_amounts(bucket).items():
                if query.takes(org, numbered[number]):
                    row = _row(rows, query, org, numbered[number], at_us)
                    row.micro += amounts.micro - amounts.refunded_micro
                    row.us += amounts.us - amounts.refunded_us


async def _buckets(client: Any, names: keys.OrgKeys, hours: list[int]) -> list[dict[bytes, bytes]]:
    async def read() -> list[dict[bytes, bytes]]:
        async with client.pipeline(transaction=False) as pipe:
            for hour in hours:
                pipe.hgetall(names.bucket(hour))
            found: list[dict[bytes, bytes]] = await pipe.execute()
            return found

    return await again(read)


async def _add_runs(ledger: Ledger, query: UsageQuery, org: str, rows: dict[tuple[str, ...], UsageRow]) -> None:
    names, client = keys.of_org(org), _client(ledger)

    async def read() -> list[dict[bytes, bytes]]:
        async with client.pipeline(transaction=True) as pipe:
            for name in (names.org, names.rows, names.runs, names.ended):
                pipe.hgetall(name)
            found: list[dict[bytes, bytes]] = await pipe.execute()
            return found

    fields, row_fields, runs, ended = await again(read)
    marks = {text(name).removeprefix("mark:"): int(v) for name, v in fields.items() if name.startswith(b"mark:")}
    numbered = decode_rows(row_fields)
    plans = {cluster: (await ledger.rates.read(cluster))[1] for cluster in {row.cluster for row in numbered}}
    legs: dict[tuple[Any, ...], int] = defaultdict(int)
    for data in (*runs.values(), *ended.values()):
        run = Run.decode(org, data)
        facts = numbered[run.row]
        if not query.takes(org, facts):
            continue
        run.line = line_of(plans[run.cluster], facts.kind, facts.resource, facts.app, run.bills_app)
        charged = run.charged_until(marks.get(run.source))
        since, until = max(query.from_us, run.points[0][0]), min(query.to_us, charged)
        run.until_us = charged
        while since < until:
            end = min(until, step_end(query.step, since)) if query.step else until
            before, after = run.cumulative(since), run.cumulative(end)
            at_us = step_start(query.step, since) if query.step else None
            row = _row(rows, query, org, facts, at_us, run)
            row.micro += after[0] // COST_DENOMINATOR - before[0] // COST_DENOMINATOR
            row.us += after[1] - before[1]
            key = (id(row),)
            if run.leg >= legs[key]:
                legs[key], row.workload = run.leg, run
            since = end


def _row(
    rows: dict[tuple[str, ...], UsageRow],
    query: UsageQuery,
    org: str,
    facts: Row,
    at_us: int | None,
    run: Run | None = None,
) -> UsageRow:
    every = {"org": org, **facts._asdict()}
    names = {name: run.id if name == "workload" and run else every[name] for name in query.group_by}
    life = () if run is None else (run.cluster, run.kind, "" if run.started_us is None else f"{run.started_us:020}")
    key = (str(at_us or ""), *names.values(), *life)
    row = rows.get(key)
    if row is None:
        row = rows[key] = UsageRow(names, at_us)
    return row


def _row_shape(row: UsageRow) -> dict[str, Any]:
    shape: dict[str, Any] = {} if row.at_us is None else {"at": format_time(row.at_us)}
    shape |= {name: value or None for name, value in row.names.items()}
    if (run := row.workload) is not None:
        ended = run.ended_us if run.ended_us is not None or run.state != GONE else run.until_us
        shape |= {
            "id": run.id,
            "kind": run.kind,
            "started_at": None if run.started_us is None else format_time(run.started_us),
            "ended_at": None if ended is None else format_time(ended),
        }
    return shape | {"credits": format_micro(row.micro), "hours": format_hours(row.us)}


def step_start(step: str, us: int) -> int:
    """The start of the hour, day, week or month (UTC) an instant is in."""
    if step == "hour":
        return us - us % HOUR_US
    day = from_us(us).replace(hour=0, minute=0, second=0, microsecond=0)
    starts: dict[str, Callable[[], Any]] = {
        "day": lambda: day,
        "week": lambda: day - timedelta(days=day.weekday()),
        "month": lambda: day.replace(day=1),
    }
    return to_us(starts[step]())


def step_end(step: str, us: int) -> int:
    """The end of the hour, day, week or month (UTC) an instant is in."""
    if step == "hour":
        return step_start(step, us) + HOUR_US
    start = from_us(step_start(step, us))
    if step == "month":
        return to_us((start + timedelta(days=32)).replace(day=1))
    return to_us(start + timedelta(days=1 if step == "day" else 7))


def _client(ledger: Ledger) -> Any:
    return ledger.client
