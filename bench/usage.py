"""Usage over a year with 10,000 projects in one org: before and after the roll-ups, and what a year takes in memory.

python -m bench.usage [PROJECTS]

Every project works on two presets, each in a twentieth of the year's hours, a few hours at a stretch. Buckets are
written as commits leave them; the totals that are asked for are known, and are compared.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from exporter.books import Books
from exporter.rounds import Rounds
from ledger import keys
from ledger.clock import parse_time
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.money import HOUR_US
from ledger.org_state import Row
from ledger.rollups import roll_up
from ledger.store import Ledger, open_ledger
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from tests.servers import ServerProcess

START = parse_time("2025-11-15T00:00:00Z")
HOURS = 365 * 24
STRETCH = 4
SHARE = 0.05
NOW = START + HOURS * HOUR_US


class NoSource:
    """Only names: snapshots are handed over."""

    name = "bench"
    cluster = "default"


async def memory(ledger: Ledger) -> int:
    """Bytes that the server's data takes."""
    client: Any = ledger.client
    return int((await client.info("memory"))["used_memory_dataset"])


async def fill(ledger: Ledger, projects: int) -> int:
    """A year of one org; micro-credits in all."""
    client: Any = ledger.client
    names = keys.of_org("acme")
    rows = [
        Row("default", f"project-{n // 2}", f"user-{n // 2 % 97}", "job", f"preset-{n % 2}", "")
        for n in range(2 * projects)
    ]
    await client.sadd(keys.ORGS, "acme")
    for start in range(0, len(rows), 5000):
        part = {str(n): msgspec.json.encode(rows[n]) for n in range(start, min(start + 5000, len(rows)))}
        await client.hset(names.rows, mapping=part)
    chance = random.Random(1)
    hours: list[list[int]] = [[] for _ in range(HOURS)]
    for number in range(len(rows)):
        for _ in range(int(HOURS * SHARE / STRETCH)):
            begins = chance.randrange(HOURS - STRETCH)
            for hour in range(begins, begins + STRETCH):
                hours[hour].append(number)
    totals = [0] * len(rows)
    for index, numbers in enumerate(hours):
        us = START + index * HOUR_US
        fields = {"0t": "0"}
        for number in set(numbers):
            micro = 1_234_567 + number
            totals[number] += micro
            fields[str(number)], fields[f"{number}t"] = str(micro), str(HOUR_US)
        async with client.pipeline(transaction=False) as pipe:
            pipe.hset(names.bucket(us), mapping=fields)
            pipe.zadd(names.hours, {str(us // 1_000_000): us // 1_000_000})
            await pipe.execute()
    spent = {str(number): str(micro) for number, micro in enumerate(totals)}
    await client.hset(names.spent, mapping=spent)
    await client.hset(names.org, mapping={"name": "acme", "known": "1", "spent": str(sum(totals))})
    await client.hset(keys.SOURCES, "bench", str(NOW))
    return sum(totals)


async def ask(ledger: Ledger, what: str, query: UsageQuery, expected: int | None = None) -> None:
    """The best of three, in seconds: on the clock, and of this process' processor time."""
    best, cpu = 1e9, 1e9
    for _ in range(3):
        begins, worked = time.perf_counter(), time.process_time()
        report = await usage(ledger, query)
        best, cpu = min(best, time.perf_counter() - begins), min(cpu, time.process_time() - worked)
    assert expected in (None, report.total_micro), (expected, report.total_micro)
    print(f"{what:58} {best:7.3f} s ({cpu:.3f} s of work)   {len(report.rows):6} rows")


async def years(url: str, projects: int) -> None:
    """Questions to a year of one large org."""
    async with open_ledger(url, epoch_us=START) as ledger:
        before = await memory(ledger)
        total = await fill(ledger, projects)
        filled = await memory(ledger)
        cells = int(2 * projects * HOURS * SHARE)
        print(f"one org, {projects} projects, {2 * projects} rows, a year: about {cells:,} row-hours")
        print(f"memory: {(filled - before) / 2**20:.0f} MiB, {(filled - before) / cells:.0f} bytes a row-hour")
        by_project = UsageQuery(from_us=START, to_us=NOW, org="acme", group_by=("project",))
        month = UsageQuery(
            from_us=parse_time("2026-03-01T00:00:00Z"), to_us=parse_time("2026-04-01T00:00:00Z"), group_by=("project",)
        )
        odd = UsageQuery(from_us=START + 7 * HOUR_US, to_us=NOW - 5 * HOUR_US, group_by=("project",))
        await ask(ledger, "all there is, by project", by_project, total)
        await ask(ledger, "a month by project, out of hours", month)
        begins, worked = time.perf_counter(), time.process_time()
        made = await roll_up(ledger, NOW)
        took, work = time.perf_counter() - begins, time.process_time() - worked
        print(f"{made} roll-ups made in {took:.1f} s ({work:.1f} s of work), once")
        print(f"memory: {(await memory(ledger) - filled) / 2**20:.0f} MiB more for them")
        await ask(ledger, "a month by project", month)
        await ask(ledger, "a year but for 12 hours, by project", odd)
        await ask(ledger, "the same by preset and month", UsageQuery(
            from_us=odd.from_us, to_us=odd.to_us, group_by=("resource",), step="month"))  # fmt: skip
        await ask(ledger, "the same by project and month", UsageQuery(
            from_us=odd.from_us, to_us=odd.to_us, group_by=("project",), step="month"))  # fmt: skip
        await ask(ledger, "the same of one project by day in Berlin", UsageQuery(
            from_us=odd.from_us, to_us=odd.to_us, project="project-7", group_by=(), step="day",
            timezone="Europe/Berlin"))  # fmt: skip


async def records(url: str) -> None:
    """What a workload takes that ended, and an org of usual size in a year."""
    async with open_ledger(url, epoch_us=START) as ledger:
        table = RateTable({"preset-0": 1_000_000_000, "preset-1": 40_500_000_000})
        await ledger.rates.publish(RatePlan("default", ((0, table),)))
        rounds = Rounds(Books(ledger), NoSource(), 0)  # type: ignore[arg-type]
        before = await memory(ledger)
        count = 50_000
        jobs = [
            Observation(
                f"{1_000_000 + n}", "job", "usual", f"project-{n % 10}", f"user-{n % 30}", f"preset-{n % 2}", "",
                START + n * 60_000_000, START + n * 60_000_000 + 90 * 60_000_000,
            )
            for n in range(count)
        ]  # fmt: skip
        begins = time.perf_counter()
        await rounds.take(Snapshot("bench", "default", START + (count + 100) * 60_000_000, jobs), None)
        took = time.perf_counter() - begins
        client: Any = ledger.client
        names = keys.of_org("usual")
        runs = await client.memory_usage(names.ended, samples=0) + await client.memory_usage(
            keys.claims("default"), samples=0
        )
        whole = await memory(ledger) - before
        hours = await client.zcard(names.hours)
        print(f"{count} ended jobs of an org with 30 rows in {hours} hours, charged in {took:.1f} s:")
        print(
            f"  {runs / count:.0f} bytes a job (record and claim), {(whole - runs) / hours:.0f} bytes an hour (bucket)"
        )
        per_year = runs / count * 100 * 365 + (whole - runs) / hours * HOURS
        print(f"  an org with 100 jobs a day and 30 rows: {per_year / 2**20:.0f} MiB a year")
        query = UsageQuery(from_us=START, to_us=START + 24 * HOUR_US, org="usual", group_by=("workload",))
        await ask(ledger, f"a day by workload among {count}", query)


def main() -> None:
    projects = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as scratch:
        for name, work in (("records", records), ("years", lambda url: years(url, projects))):
            server = ServerProcess(Path(scratch) / name).start()
            try:
                asyncio.run(work(server.url))
            finally:
                server.kill9()


if __name__ == "__main__":
    main()
