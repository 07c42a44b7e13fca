"""What of an org runs now, with what each workload cost so far and costs an hour."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ledger import keys
from ledger.connect import again
from ledger.lua import text
from ledger.org_state import Row, decode_rows
from ledger.runs import PAUSED, Run, field_of
from ledger.store import Ledger
from ledger.usage_reader import Lines, charged_at, read_lines

_RUNNING = ("open", PAUSED)


@dataclass(frozen=True, slots=True)
class Running:
    """A workload that goes on. `micro`: charged for all of it, up to `until_us`; `nano`: credits an hour now, in
    nano-credits, 0 while it is suspended or where nothing is charged for it."""

    id: str
    row: Row
    started_us: int | None
    until_us: int
    micro: int
    nano: int
    units: int
    is_suspended: bool


@dataclass(frozen=True, slots=True)
class RunningPage:
    """A page of them, and of all of them how many and what they cost an hour together."""

    items: list[Running]
    count: int
    nano: int


async def running_page(ledger: Ledger, org: str, start: int, limit: int) -> RunningPage:
    """Those from `start` on, by what they cost so far, the most first. Raises: LedgerUnavailable."""
    client: Any = ledger.client
    names = keys.of_org(org)

    async def ask() -> list[Any]:
        async with client.pipeline(transaction=True) as pipe:
            for name in (names.org, names.rows, names.runs):
                pipe.hgetall(name)
            answer: list[Any] = await pipe.execute()
            return answer

    facts, row_fields, records = await again(ask)
    rows = decode_rows(row_fields)
    marks = {text(k)[len("mark:") :]: int(v) for k, v in facts.items() if k.startswith(b"mark:")}
    lines = await read_lines(ledger, sorted({row.cluster for row in rows}))
    runs = await asyncio.to_thread(_decode, org, list(records.values()), rows, lines)
    earlier = await _earlier_legs(client, names.ended, org, rows, lines, runs)
    found = await asyncio.to_thread(_price, runs, rows, marks, earlier)
    return RunningPage(found[start : start + limit], len(found), sum(one.nano for one in found))


def _decode(org: str, records: Sequence[bytes], rows: Sequence[Row], lines: Lines) -> list[Run]:
    runs = [_priced(Run.decode(org, data), rows, lines) for data in records]
    return [run for run in runs if run.state in _RUNNING and run.ended_us is None]


def _priced(run: Run, rows: Sequence[Row], lines: Lines) -> Run:
    row = rows[run.row]
    run.line = lines(run.cluster, row.kind, row.resource, row.app, run.bills_app)
    return run


async def _earlier_legs(
    client: Any, ended: str, org: str, rows: Sequence[Row], lines: Lines, runs: Sequence[Run]
) -> dict[str, int]:
    """What the legs before the present one were charged, by the run's field."""
    wanted = [(run.field, field_of(run.cluster, run.key, leg)) for run in runs for leg in range(run.leg)]
    sums: dict[str, int] = {}
    for start in range(0, len(wanted), 1000):
        part = wanted[start : start + 1000]
        found = await again(partial(client.hmget, ended, [field for _, field in part]))
        for (field, _), data in zip(part, found, strict=True):
            if data is not None:
                leg = _priced(Run.decode(org, data), rows, lines)
                sums[field] = sums.get(field, 0) + charged_at(leg, leg.until_us)[0]
    return sums


def _price(runs: Sequence[Run], rows: Sequence[Row], marks: dict[str, int], earlier: dict[str, int]) -> list[Running]:
    found = []
    for run in runs:
        run.until_us = run.charged_until(marks.get(run.source))
        run.settle_anchor(run.until_us)
        units = run.points[-1][3]
        found.append(
            Running(
                run.id, rows[run.row], run.started_us, run.until_us,
                charged_at(run, run.until_us)[0] + earlier.get(run.field, 0), run.per_us // 1_000_000_000,
                units, bool(run.suspended) and run.suspended[-1][1] is None,
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: (-one.micro, one.row, one.id))
