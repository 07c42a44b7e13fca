"""What was used in a period: exact sums out of the ledger, grouped as asked.

Sums of full hours come from the buckets; by workload, and for parts of hours, from the records of the runs.
Credits are what was charged; what a correction gave back of them stands beside, in `refunded`. By workload, credits
are what the workload cost in the end; what was given back, and what is older than the records that are kept, is in
rows without a workload, so that every grouping adds up to the same total.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from ledger.errors import InvalidRequest, UnknownOrg
from ledger.money import HOUR_US
from ledger.org_state import Row
from ledger.runs import Run
from ledger.steps import cut
from ledger.store import Ledger
from ledger.usage_reader import Horizon, OrgReader, charged_at, read_horizon, whole_hours
from ledger.usage_report import Key, UsageQuery, UsageReport, UsageRow
from ledger.usage_sums import MICRO, US, Sink, Sums

ROWS_MAX: Final = 1_000_000
"""Rows an answer has at most, so that no question takes all memory."""


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
            raise UnknownOrg(query.org)
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
