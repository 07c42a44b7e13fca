"""Reads what an org used: its buckets and roll-ups, to be added up, and the runs behind them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any, Final

from ledger import keys
from ledger.connect import again
from ledger.errors import LedgerDamaged
from ledger.lua import text
from ledger.model import RatePlan
from ledger.money import COST_DENOMINATOR, HOUR_US
from ledger.org_state import Row, decode_rows
from ledger.rates_history import RateLine, line_of
from ledger.runs import Run, hour_of
from ledger.steps import step_bounds
from ledger.store import Ledger
from ledger.usage_sums import FieldSums

DAY_US: Final = 24 * HOUR_US
Lines = Callable[[str, str, str, str, bool], RateLine]
"""(cluster, kind, resource, app, bills_app) -> the rates over time."""
_SUFFIXES: Final = ("", "t", "r", "u")
_FIELDS_AT_ONCE: Final = 100_000
_KEYS_AT_ONCE: Final = 500
_SCAN: Final = 2000
_FEW: Final = 8
"""A row of so many is asked for by itself; more of them are read with all the others."""


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far back details are kept: runs from `runs_us` on, hours from `hours_us` on, days (UTC) before."""

    runs_us: int = 0
    hours_us: int = 0

    def settle(self, us: int, *, up: bool) -> int:
        """The instant to cut at for one asked: itself where that is exact, else the next or the last that is."""
        grain = DAY_US if us < self.hours_us else HOUR_US if us < self.runs_us else 1
        return us + -us % grain if up else us - us % grain


async def read_horizon(ledger: Ledger) -> Horizon:
    """What retention has left so far."""
    client: Any = ledger.client
    runs, hours = await again(lambda: client.hmget(keys.META, ["forgotten_us", "by_day_us"]))
    return Horizon(int(runs or 0), int(hours or 0))


async def read_lines(ledger: Ledger, clusters: Sequence[str]) -> Lines:
    """The rates of clusters as they were and are in force."""
    return lines_of({cluster: (await ledger.rates.read(cluster))[1] for cluster in clusters})


def lines_of(plans: dict[str, RatePlan | None]) -> Lines:
    """The rates of plans, by cluster."""

    @cache
    def line(cluster: str, kind: str, resource: str, app: str, bills_app: bool) -> RateLine:
        return line_of(plans.get(cluster), kind, resource, app, bills_app)

    return line


class OrgReader:
    """One org, as of the instant it was opened; runs that changed since are given as they were then."""

    def __init__(self, ledger: Ledger, org: str, lines: Lines | None = None) -> None:
        """`lines`: rates to price the runs at; else those that were in force."""
        self.org = org
        self.rows: list[Row] = []
        self._ledger = ledger
        self._client: Any = ledger.client
        self._keys = keys.of_org(org)
        self._lines = lines
        self._marks: dict[str, int] = {}

    async def open(self) -> None:
        """Read the rows. Raises: LedgerUnavailable, LedgerDamaged."""
        await self._set_rows(await again(partial(self._client.hgetall, self._keys.rows)))

    async def _set_rows(self, fields: dict[bytes, bytes]) -> None:
        try:
            self.rows = decode_rows(fields)
        except ValueError as e:
            raise LedgerDamaged(f"org {self.org!r}: the ledger's rows cannot be read: {e}") from e

    async def has_refunds(self) -> bool:
        """Whether anything was ever given back."""
        spent = await again(partial(self._client.hgetall, self._keys.spent))
        return any(field[-1:] in (b"r", b"u") for field in spent)

    async def add_buckets(
        self, parts: Sequence[tuple[int, int, FieldSums]], rows: Sequence[int] | None = None, *, whole: bool = True
    ) -> None:
        """Add all that was used in [since, until) to sums, for each part; parts start and end on full hours.

        `rows`: the numbers of those that are asked for, None for all. `whole`: where it is all there is, the org's
        totals may stand for it, with what comes in for it meanwhile.
        """
        if not parts:
            return
        first, last = min(p[0] for p in parts), max(p[1] for p in parts)
        names = self._keys

        async def ask() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zrangebyscore(names.hours, first // 1_000_000, f"({last // 1_000_000}")
                pipe.hgetall(names.rollups)
                pipe.zrange(names.hours, 0, 0)
                pipe.zrange(names.hours, -1, -1)
                answer: list[Any] = await pipe.execute()
                return answer

        found, marks, oldest, newest = await again(ask)
        hours = [int(hour) * 1_000_000 for hour in found]
        if not hours:
            return
        if whole and len(parts) == 1 and first <= int(oldest[0]) * 1_000_000 and int(newest[0]) * 1_000_000 < last:

            async def ask_all() -> list[Any]:
                async with self._client.pipeline(transaction=True) as pipe:
                    pipe.hgetall(names.spent)
                    pipe.zrange(names.hours, 0, 0)
                    pipe.zrange(names.hours, -1, -1)
                    answer: list[Any] = await pipe.execute()
                    return answer

            spent, oldest, newest = await again(ask_all)
            if first <= int(oldest[0]) * 1_000_000 and int(newest[0]) * 1_000_000 < last:  # and nothing came since
                parts[0][2].add(spent)
                parts[0][2].settle()
                return
        kept = {text(field) for field, state in marks.items() if state == b"ok"}
        wanted = [(key, sink) for since, until, sink in parts for key in self._cover(since, until, hours, kept)]
        fields = None
        if rows is not None and len(rows) * _FEW < len(self.rows):
            fields = [f"{number}{suffix}" for number in rows for suffix in _SUFFIXES]
        batch = self._at_once(fields)
        for start in range(0, len(wanted), batch):
            some = wanted[start : start + batch]
            buckets = await again(partial(self._hashes, [key for key, _ in some], fields))
            for (_, sink), bucket in zip(some, buckets, strict=True):
                sink.add(bucket)
        for _, _, sink in parts:
            sink.settle()

    async def hours(
        self, until: int, fields: Sequence[str] | None = None
    ) -> AsyncIterator[tuple[int, dict[bytes, bytes]]]:
        """(hour, its bucket) of all hours before an instant, ascending; of the buckets all, or only some fields."""
        names, last = self._keys, f"({until // 1_000_000}"
        found = await again(partial(self._client.zrangebyscore, names.hours, "-inf", last))
        batch = self._at_once(fields)
        for start in range(0, len(found), batch):
            hours = [int(hour) * 1_000_000 for hour in found[start : start + batch]]
            buckets = await again(partial(self._hashes, [names.bucket(hour) for hour in hours], fields))
            for hour, bucket in zip(hours, buckets, strict=True):
                yield hour, bucket

    def _at_once(self, fields: Sequence[str] | None) -> int:
        """How many buckets are asked for together."""
        width = len(fields) if fields is not None else 2 * len(self.rows)
        return max(1, min(_KEYS_AT_ONCE, _FIELDS_AT_ONCE // (width + 1)))

    async def _hashes(self, names: Sequence[str], fields: Sequence[str] | None = None) -> list[dict[bytes, bytes]]:
        async with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                if fields is None:
                    pipe.hgetall(name)
                else:
                    pipe.hmget(name, fields)
            found: list[Any] = await pipe.execute()
        if fields is None:
            return found
        asked = [field.encode() for field in fields]
        return [{f: v for f, v in zip(asked, values, strict=True) if v is not None} for values in found]

    def _cover(self, since: int, until: int, hours: list[int], kept: set[str]) -> Iterator[str]:
        """Keys whose hashes add up to [since, until): months and days that are rolled up, else hours."""
        index = bisect_left(hours, since)
        while index < len(hours) and hours[index] < until:
            hour = hours[index]
            day = hour - hour % DAY_US
            for level, (start, end) in (("m", _month(day)), ("d", (day, day + DAY_US))) if kept else ():
                if start >= since and end <= until and f"{level}{start // 1_000_000}" in kept:
                    yield self._keys.rollup(f"{level}{start // 1_000_000}")
                    index = bisect_left(hours, end)
                    break
            else:
                yield self._keys.bucket(hour)
                index += 1

    async def runs(self, since: int, until: int) -> AsyncIterator[Run]:
        """Legs that were charged for time in [since, until), each once; `until_us` is up to when they are charged.

        Read in batches: what ended is not held in memory at once.
        """
        names = self._keys

        async def ask() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                for name in (names.org, names.rows, names.runs):
                    pipe.hgetall(name)
                answer: list[Any] = await pipe.execute()
                return answer

        facts, rows, running = await again(ask)
        self._marks = {text(k)[len("mark:") :]: int(v) for k, v in facts.items() if k.startswith(b"mark:")}
        await self._set_rows(rows)
        if self._lines is None:
            self._lines = await read_lines(self._ledger, sorted({row.cluster for row in self.rows}))
        live = {}
        for data in running.values():
            run = Run.decode(self.org, data)
            live[run.field] = run.leg
            if self._prepare(run, since, until):
                yield run
        seen: set[bytes] = set()
        cursor = 0
        while True:
            cursor, part = await again(partial(self._client.hscan, names.ended, cursor, count=_SCAN))
            for field, data in part.items():
                run = Run.decode(self.org, data)
                if run.leg >= live.get(run.field, run.leg + 1) or field in seen:
                    continue  # it ended, or went on in another leg, after the runs were read
                if self._prepare(run, since, until):
                    seen.add(field)
                    yield run
            if not cursor:
                return

    def _prepare(self, run: Run, since: int, until: int) -> bool:
        if run.row >= len(self.rows):
            return False  # newer than the rows
        run.until_us = run.charged_until(self._marks.get(run.source))
        if run.points[0][0] >= until or run.until_us <= since:
            return False
        row = self.rows[run.row]
        assert self._lines is not None
        run.line = self._lines(run.cluster, row.kind, row.resource, row.app, run.bills_app)
        return True


@lru_cache(maxsize=4096)
def _month(us: int) -> tuple[int, int]:
    return step_bounds("month", "UTC", us)


def charged_at(run: Run, us: int) -> tuple[int, int]:
    """(micro-credits, microseconds billed) that a leg was charged for up to an instant."""
    us = min(us, run.until_us)
    cost, billed = run.cumulative(us)
    # A volume keeps one size an hour: what lies between two of them is shared out, never beyond the later one.
    for at, cost_then, billed_then, _ in run.points[1:]:
        if at > us:
            cost, billed = min(cost, cost_then), min(billed, billed_then)
            break
    return cost // COST_DENOMINATOR, billed


def whole_hours(since: int, until: int) -> tuple[int, int]:
    """The part of [since, until) that is full hours; empty where first >= last."""
    return since + -since % HOUR_US, hour_of(until)
