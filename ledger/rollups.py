"""Sums by day and by month (UTC), kept beside the hours so that a year is read in a moment.

A roll-up is a copy: a charge for an hour it holds takes its mark away in the same commit, and it counts no more until
it is made anew.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from functools import partial
from typing import Any, Final

from ledger import keys
from ledger.connect import again
from ledger.lua import text
from ledger.plan import rollups_of
from ledger.steps import step_bounds
from ledger.store import Ledger
from ledger.usage_reader import DAY_US, OrgReader, read_horizon
from ledger.usage_sums import FieldSums, add_up

_FIELDS_AT_ONCE: Final = 5000
_SPARE_MS: Final = 3_600_000


async def roll_up(ledger: Ledger, now_us: int) -> int:
    """Make the roll-ups of all days and months that are over and have none; how many were made.

    Safe beside rounds and beside itself. Raises: LedgerUnavailable, LedgerDamaged.
    """
    return sum([await _roll_up_org(ledger, org, now_us) for org in await ledger.accounts.orgs()])


async def _roll_up_org(ledger: Ledger, org: str, now_us: int) -> int:
    client: Any = ledger.client
    names = keys.of_org(org)
    hours = [int(hour) * 1_000_000 for hour in await again(partial(client.zrange, names.hours, 0, -1))]
    by_day_us = (await read_horizon(ledger)).hours_us
    have = {text(k) for k, v in (await again(partial(client.hgetall, names.rollups))).items() if v == b"ok"}
    days: dict[str, tuple[int, int]] = {}
    months: dict[str, tuple[int, int]] = {}
    for day in sorted({hour - hour % DAY_US for hour in hours}):
        named, month = rollups_of(day)
        if day >= by_day_us:  # before, the days themselves are what is kept
            days[named] = (day, day + DAY_US)
        if month not in months:
            months[month] = step_bounds("month", "UTC", day)
    reader = OrgReader(ledger, org)
    await reader.open()
    made = 0
    for name, (since, until) in [*days.items(), *months.items()]:  # months are added up from days
        if name not in have and until <= now_us:
            made += await _make(ledger, reader, name, since, until)
    return made


async def _make(ledger: Ledger, reader: OrgReader, name: str, since: int, until: int) -> bool:
    """Make one roll-up; False where a charge came in between."""
    client: Any = ledger.client
    names = keys.of_org(reader.org)
    work = secrets.token_hex(8)
    spare = names.rollup(f"{name}:{work}")
    await again(partial(client.hset, names.rollups, name, work))
    sums = FieldSums()
    await reader.add_buckets([(since, until, sums)], whole=False)
    items = [(field, value) for field, value in sums.fields.items() if value]
    for start in range(0, len(items), _FIELDS_AT_ONCE):
        await again(partial(client.hset, spare, mapping=dict(items[start : start + _FIELDS_AT_ONCE])))
        await again(partial(client.pexpire, spare, _SPARE_MS))
    answer = await ledger.scripts.rollup([names.rollups, spare, names.rollup(name)], [name, work])
    return text(answer) == "ok"


async def check_rollups(ledger: Ledger, org: str) -> tuple[int, list[str]]:
    """(roll-ups that count, names of those whose sums are not those of their hours)."""
    client: Any = ledger.client
    names = keys.of_org(org)
    marks = await again(partial(client.hgetall, names.rollups))
    right: set[str] = set()
    wrong, checked = [], 0
    for name in sorted(text(field) for field, state in marks.items() if state == b"ok"):  # days come before months
        answer = await _read_with_parts(ledger, names, name, right)
        if answer is None:
            continue  # a charge came in between
        kept, parts = answer
        checked += 1
        sums: defaultdict[bytes, int] = defaultdict(int)
        for part in parts:
            add_up(sums, part)
        if {field: value for field, value in sums.items() if value} == {k: int(v) for k, v in kept.items()}:
            right.add(name)
        else:
            wrong.append(name)
    return checked, wrong


async def _read_with_parts(
    ledger: Ledger, names: keys.OrgKeys, name: str, right: set[str]
) -> tuple[dict[bytes, bytes], list[dict[bytes, bytes]]] | None:
    """A roll-up and what it is the sum of, of one instant: days that are right, else hours; None: it counts no more."""
    client: Any = ledger.client
    since, until = step_bounds("day" if name[0] == "d" else "month", "UTC", int(name[1:]) * 1_000_000)

    async def ask() -> list[Any]:
        hours = await client.zrangebyscore(names.hours, since // 1_000_000, f"({until // 1_000_000}")
        days = [rollups_of(int(hour) * 1_000_000)[0] for hour in hours] if name[0] == "m" else []
        used = sorted(right.intersection(days))
        async with client.pipeline(transaction=True) as pipe:
            pipe.hmget(names.rollups, [name, *used])
            pipe.hgetall(names.rollup(name))
            for day in used:
                pipe.hgetall(names.rollup(day))
            for hour in hours:
                if rollups_of(int(hour) * 1_000_000)[0] not in used:
                    pipe.hgetall(names.bucket(int(hour) * 1_000_000))
            answer: list[Any] = await pipe.execute()
            return answer

    states, kept, *parts = await again(ask)
    return (kept, parts) if all(state == b"ok" for state in states) else None
