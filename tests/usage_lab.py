"""A ledger with charges in it, made by rounds over snapshots that the test writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from exporter.books import Books
from exporter.rounds import Rounds
from ledger.connect import connect
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger, open_ledger
from tests.histories import T0

RATES = RateTable(
    presets={"cpu-small": 1_000_000_000, "gpu-large": 40_500_000_000, "free": 0},
    apps={"vllm": 2_500_000_000},
    storage={"default": 100_000},
)


class _NoSource:
    name = "test"
    cluster = "default"


class UsageLab:
    """`clock[0]` is now."""

    def __init__(self, ledger: Ledger, clock: list[int]) -> None:
        self.ledger = ledger
        self.clock = clock
        self.restart()

    def restart(self) -> None:
        """As a new exporter would: nothing is in memory."""
        self.rounds = Rounds(Books(self.ledger), _NoSource(), hold_us=0)  # type: ignore[arg-type]

    async def publish(self, at: int, table: RateTable = RATES) -> None:
        """New rates, from `at` on; the first are for all time."""
        self.clock[0] = max(self.clock[0], at)
        await self.ledger.rates.publish(RatePlan("default", ((0, table),)))

    async def take(self, at: int, workloads: Sequence[Observation], *, complete: bool = True) -> None:
        """One round over a snapshot of the cluster `default`."""
        self.clock[0] = max(self.clock[0], at)
        since = await self.ledger.charging.source_mark("test")
        report = await self.rounds.take(Snapshot("test", "default", at, list(workloads), complete), since)
        assert not report.failed


@asynccontextmanager
async def usage_lab(url: str, epoch: int = T0) -> AsyncIterator[UsageLab]:
    """An empty ledger on the server at `url`, with rates in force."""
    async with connect(url, None) as client:
        await client.flushall()
    clock = [epoch]
    async with open_ledger(url, epoch_us=epoch, clock=lambda: clock[0]) as ledger:
        lab = UsageLab(ledger, clock)
        await lab.publish(epoch)
        yield lab


def job(
    name: str,
    start: int,
    end: int | None = None,
    *,
    org: str = "acme",
    project: str = "vision",
    user: str = "ann",
    preset: str = "gpu-large",
    app: str = "",
    suspended: tuple[tuple[int, int | None], ...] = (),
) -> Observation:
    """What the scheduler says of a job (of an app, where `app` is given)."""
    return Observation(name, "app" if app else "job", org, project, user, preset, app, start, end, suspended)


def volume(name: str, size: int, *, org: str = "acme", project: str = "vision") -> Observation:
    """What is said of a volume of `size` bytes."""
    return Observation(name, "storage", org, project, "", "default", bytes=size)
