"""A round over many running workloads, from a parsed snapshot to the commit, on a server of its own.

python -m bench.round [WORKLOADS]

The bound in the same run: one script call a workload, pipelined, as a meter without rows would have to do.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from exporter.books import Books
from exporter.rounds import RoundReport, Rounds
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.money import NANO
from ledger.store import Ledger, open_ledger
from tests.servers import ServerProcess

T0 = 1_760_000_400_000_000
SECOND = 1_000_000
ORGS = 20
ROUNDS = 5


class NoSource:
    """Only names: snapshots are handed over."""

    name = "bench"
    cluster = "default"

    async def fetch(self, since_us: int | None) -> Snapshot:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing to give back."""


def jobs(count: int) -> list[Observation]:
    """Running jobs in 20 orgs and 2,000 rows."""
    return [
        Observation(
            f"job-{n}", "job", f"org-{n % ORGS}", f"project-{n // ORGS % 5}", f"user-{n // 100 % 10}",
            f"preset-{n // 1000 % 2}", started_us=T0 + n % 3600 * SECOND,
        )
        for n in range(count)
    ]  # fmt: skip


def churn(running: list[Observation], taken_us: int, round_number: int) -> tuple[list[Observation], list[Observation]]:
    """(listed, running from then on): 1 % of the jobs have ended, and as many new ones have started."""
    ended: list[Observation] = []
    goes_on: list[Observation] = []
    for n, job in enumerate(running):
        if n % 100 != round_number:
            goes_on.append(job)
            continue
        ended.append(msgspec.structs.replace(job, ended_us=taken_us - 5 * SECOND))
        name = f"job-{n}-{round_number}"
        goes_on.append(msgspec.structs.replace(job, id=name, started_us=taken_us - 4 * SECOND))
    return goes_on + ended, goes_on


async def written(ledger: Ledger) -> int:
    """Bytes the server got from its clients so far."""
    client: Any = ledger.client
    return int((await client.info("stats"))["total_net_input_bytes"])


def resident_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@contextmanager
def processor_time() -> Iterator[Callable[[], float]]:
    """Seconds of one core that this process took so far."""
    began = time.process_time()
    yield lambda: time.process_time() - began


async def measure(what: str, ledger: Ledger, rounds: Rounds, shots: list[Snapshot]) -> float:
    """Rounds over the snapshots; the median of their seconds."""
    took, bytes_before = [], await written(ledger)
    reports: list[RoundReport] = []
    with processor_time() as used:
        for shot in shots:
            since = await ledger.charging.source_mark("bench")
            began = time.perf_counter()
            reports.append(await rounds.take(shot, since))
            took.append(time.perf_counter() - began)
        busy = used() / len(shots)
    seconds = sorted(took)[len(took) // 2]
    count = len(shots[0].workloads)
    sent = (await written(ledger) - bytes_before) / len(shots)
    print(
        f"{what:28} {count / seconds:10,.0f} workloads/s  {seconds:6.3f} s ({busy:5.3f} s of this core)"
        f"  {sent / 1000:9,.1f} kB written  {sum(r.records for r in reports) / len(shots):9,.0f} records"
        f"  {resident_mb():4.0f} MB"
    )
    return count / seconds


async def bound(ledger: Ledger, count: int) -> float:
    """Workloads/s of one small script call each, 1,000 in a pipeline."""
    client: Any = ledger.client
    script = "local v = redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2]) redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])"
    digest = await client.script_load(f"{script} return v")
    began = time.perf_counter()
    for start in range(0, count, 1000):
        async with client.pipeline(transaction=False) as pipe:
            for n in range(start, min(start + 1000, count)):
                pipe.execute_command(
                    "EVALSHA", digest, 2, "bench:spent", "bench:marks", f"job-{n}", "4166", "1760000415"
                )
            await pipe.execute()
    return count / (time.perf_counter() - began)


async def run(count: int, url: str) -> None:
    async with open_ledger(url, epoch_us=T0) as ledger:
        rates = RateTable(presets={"preset-0": 40_500_000_000, "preset-1": NANO})
        await ledger.rates.publish(RatePlan("default", ((0, rates),)))
        for n in range(ORGS):
            await ledger.accounts.grant(f"org-{n}", 10**12, key="bench", who="bench")
        rounds = Rounds(Books(ledger), NoSource(), hold_us=900 * SECOND)
        running = jobs(count)
        gc.collect()
        print(f"{count} workloads, {ORGS} orgs, {len({(o.org, o.project, o.user, o.resource) for o in running})} rows;"
              f" {resident_mb():.0f} MB before the first round")  # fmt: skip
        taken = T0 + 3600 * SECOND

        def shots(lists: list[list[Observation]]) -> list[Snapshot]:
            nonlocal taken
            made = []
            for listed in lists:
                taken += 15 * SECOND
                made.append(Snapshot("bench", "default", taken, listed))
            return made

        await measure("first round", ledger, rounds, shots([running]))
        steady = await measure("steady, as the json source", ledger, rounds, shots([running] * ROUNDS))
        # Sources that read everything anew give equal observations, not the same ones.
        again = [[msgspec.structs.replace(o) for o in running] for _ in range(ROUNDS)]
        await measure("steady, all read anew", ledger, rounds, shots(again))
        del again
        gc.collect()
        lists = []
        for n in range(ROUNDS):
            listed, running = churn(running, taken + (n + 1) * 15 * SECOND, n)
            lists.append(listed)
        await measure("1 % ended, 1 % new", ledger, rounds, shots(lists))
        calls = await bound(ledger, min(count, 50_000))
        print(
            f"{'one script call a workload':28} {calls:10,.0f} workloads/s;"
            f" the steady round is {steady / calls:.0f} times that"
        )
        print(f"{'resident at most':28} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:10,.0f} MB")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as directory:
        server = ServerProcess(Path(directory)).start()
        try:
            asyncio.run(run(count, server.url))
        finally:
            server.kill9()


if __name__ == "__main__":
    main()
