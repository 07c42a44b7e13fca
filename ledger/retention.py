"""Old details make room: hours are merged into days, records of ended runs into sums. No total ever changes.

What is given up stays known as a bound. Runs that were charged up to `forgotten_us` at most may have no record any
more: a run that has none is never charged for time before it, so that one a scheduler lists again, however late, is
not charged twice. Before `by_day_us` amounts are kept by day (UTC).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.charging import Claim
from ledger.connect import again
from ledger.errors import InvalidRequest, LedgerUnavailable
from ledger.lua import text
from ledger.money import parse_credits
from ledger.org_state import Row, decode_rows
from ledger.plan import new_token, rollups_of
from ledger.runs import Run, field_of
from ledger.store import Ledger
from ledger.usage_reader import DAY_US, Lines, charged_at, read_lines
from ledger.verify_grants import SIGNS

DAYS_MIN: Final = 62
"""A budget's month has to be read by the hour, and schedulers list again what ended weeks ago."""
DAYS: Final = 400
_BATCH: Final = 1000
_TRIES: Final = 50
Progress = Callable[[int, int], None]
"""(orgs done, orgs in all)"""


@dataclass(slots=True)
class Retained:
    """What was given up: records of runs, hours, entries of journals."""

    runs: int = 0
    hours: int = 0
    entries: int = 0


async def retain(
    ledger: Ledger,
    now_us: int,
    *,
    run_days: int | None = DAYS,
    hour_days: int | None = DAYS,
    journal_days: int | None = None,
    progress: Progress | None = None,
) -> Retained:
    """Give up records of runs that ended, hours, and entries of journals older than so many days; None: never.

    Safe beside rounds, beside itself and after a crash. Nothing newer than the last snapshot counts as old, however
    long ago that was. Raises: InvalidRequest, LedgerUnavailable, LedgerDamaged.
    """
    for name, days in (("run_days", run_days), ("hour_days", hour_days), ("journal_days", journal_days)):
        if days is not None and days < DAYS_MIN:
            raise InvalidRequest(f"{name} {days}: expected at least {DAYS_MIN}")
    marks = await ledger.charging.source_marks()
    now_us = min(now_us, max(marks.values(), default=0))
    runs_us = await _advance(ledger, "forgotten_us", now_us, run_days)
    hours_us = await _advance(ledger, "by_day_us", now_us, hour_days)
    done = Retained()
    # Read after the bound is set: an org that comes to be later is read by its exporter with the bound.
    orgs = await ledger.accounts.orgs()
    for number, org in enumerate(orgs):
        if journal_days is not None:
            done.entries += await _trim_journal(ledger, org, now_us - journal_days * DAY_US)
        if hours_us:
            done.hours += await _merge_hours(ledger, org, hours_us)
        if runs_us:
            done.runs += await _Forgetting(ledger, org, runs_us).run()
        if progress:
            progress(number + 1, len(orgs))
    return done


async def _advance(ledger: Ledger, name: str, now_us: int, days: int | None) -> int:
    """The bound of that name: moved forward, if it is time, never back."""
    client: Any = ledger.client
    present = int(await again(lambda: client.hget(keys.META, name)) or 0)
    if days is None:
        return present
    bound = now_us - days * DAY_US
    bound -= bound % DAY_US
    if bound <= present:
        return present
    await again(lambda: client.hset(keys.META, name, str(bound)))
    return bound


async def _merge_hours(ledger: Ledger, org: str, until: int) -> int:
    """Merge the hours of each day before an instant into the day's first; how many were merged."""
    client: Any = ledger.client
    names = keys.of_org(org)
    found = await again(partial(client.zrangebyscore, names.hours, "-inf", f"({until // 1_000_000}"))
    old = [us for us in (int(hour) * 1_000_000 for hour in found) if us % DAY_US]
    for hour in old:
        day = hour - hour % DAY_US
        arguments = [str(hour // 1_000_000), str(day // 1_000_000), *rollups_of(hour)]
        await ledger.scripts.merge_hour([names.hours, names.bucket(hour), names.bucket(day), names.rollups], arguments)
    # A day that is one bucket needs no copy.
    copies = sorted({rollups_of(hour)[0] for hour in old})
    for start in range(0, len(copies), _BATCH):
        some = copies[start : start + _BATCH]
        await again(partial(client.hdel, names.rollups, *some))
        for name in some:
            await again(partial(client.unlink, names.rollup(name)))
    return len(old)


async def _trim_journal(ledger: Ledger, org: str, until: int) -> int:
    """Give up the journal's entries before an instant; what they granted is kept as a sum. How many they were."""
    client: Any = ledger.client
    names = keys.of_org(org)
    end = f"{max(0, until) // 1000}-0"
    granted, first, after = 0, None, "-"
    while page := await again(partial(client.xrange, names.journal, min=after, max=f"({end}", count=_BATCH)):
        first = first or text(page[0][0])
        entries = (msgspec.json.decode(fields[b"entry"]) for _, fields in page)
        granted += sum(SIGNS[e["type"]] * parse_credits(e["credits"]) for e in entries if e["type"] in SIGNS)
        after = f"({text(page[-1][0])}"
    if first is None:
        return 0
    answer = text(await ledger.scripts.trim_journal([names.org, names.journal], [first, end, str(granted)]))
    return 0 if answer == "conflict" else int(answer)  # another did it, or this very call, before


class _Forgetting:
    """Folds the records of one org that were charged up to an instant at most into sums per row."""

    def __init__(self, ledger: Ledger, org: str, until: int) -> None:
        self._ledger = ledger
        self._client: Any = ledger.client
        self._org = org
        self._until = until
        self._keys = keys.of_org(org)

    async def run(self) -> int:
        """How many records were forgotten."""
        if not await self._set_bound():
            return 0
        forgotten, cursor = 0, 0
        old: list[bytes] = []
        while True:
            cursor, part = await again(partial(self._client.hscan, self._keys.ended, cursor, count=_BATCH))
            old += [field for field, data in part.items() if Run.decode(self._org, data).until_us <= self._until]
            if len(old) >= _BATCH or (old and not cursor):
                forgotten += await self._fold(old)
                old = []
            if not cursor:
                return forgotten

    async def _set_bound(self) -> bool:
        """Whether it is another one: then exporters learn of it, as the commit is another one too."""
        name, present = await again(lambda: self._client.hmget(self._keys.org, ["name", "forgotten_us"]))
        if name is None or text(present) == str(self._until):
            # Nothing was ever granted to or charged to it; or what a crash left is forgotten with the next bound.
            return False
        await self._fold([])
        return True

    async def _fold(self, fields: list[bytes]) -> int:
        for _ in range(_TRIES):
            token, records, rows = await self._read(fields)
            runs = {
                field: run
                for field, data in zip(fields, records, strict=True)
                if data is not None and (run := Run.decode(self._org, data)).until_us <= self._until
            }
            if fields and not runs:
                return 0
            lines = await read_lines(self._ledger, sorted({run.cluster for run in runs.values()}))
            plan = {
                "expected": token,
                "token": new_token(),
                "bound": str(self._until),
                "fields": [text(field) for field in runs],
                "sums": self._sums(runs, rows, lines),
            }
            answer = await self._ledger.scripts.forget(
                [self._keys.org, self._keys.ended, self._keys.forgotten], [msgspec.msgpack.encode(plan)]
            )
            if text(answer) == "ok":
                await self._drop_claims(runs)
                return len(runs)
        raise LedgerUnavailable(f"org {self._org!r} is charged so often that nothing old could be forgotten; try again")

    async def _read(self, fields: list[bytes]) -> tuple[str, list[bytes | None], list[Row]]:
        async def ask() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hget(self._keys.org, "commit")
                pipe.hgetall(self._keys.rows)
                if fields:
                    pipe.hmget(self._keys.ended, fields)
                answer: list[Any] = await pipe.execute()
                return answer

        token, rows, *records = await again(ask)
        return text(token), records[0] if records else [], decode_rows(rows)

    def _sums(self, runs: Mapping[bytes, Run], rows: list[Row], lines: Lines) -> list[list[str]]:
        sums: dict[int, list[int]] = {}
        for run in runs.values():
            row = rows[run.row]
            run.line = lines(run.cluster, row.kind, row.resource, row.app, run.bills_app)
            micro, us = charged_at(run, run.until_us)
            found = sums.setdefault(run.row, [0, 0, 0, 0])
            for column, value in enumerate(
                (micro + run.refunded_micro, us + run.refunded_us, run.refunded_micro, run.refunded_us)
            ):
                found[column] += value
        return [[str(row), *map(str, amounts)] for row, amounts in sums.items()]

    async def _drop_claims(self, runs: Mapping[bytes, Run]) -> None:
        """Who is charged for a run that is over need not be known any more. One that another org has now stays."""
        wanted: dict[str, list[str]] = {}
        for field, run in runs.items():
            if text(field) == run.field:
                wanted.setdefault(run.cluster, []).append(field_of("", run.key))
        for cluster, claims in wanted.items():
            found = await again(partial(self._client.hmget, keys.claims(cluster), claims))
            mine = [
                field
                for field, data in zip(claims, found, strict=True)
                if data is not None and Claim.decode(data).org == self._org
            ]
            if mine:
                await again(partial(self._client.hdel, keys.claims(cluster), *mine))
