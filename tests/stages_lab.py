"""A made-up cluster under a reaper: its jobs are metered, told, suspended and stopped as time passes."""

from __future__ import annotations

from typing import Any

from config.settings import AdmissionSettings
from enforcer.actions.base import ActionError, Outcome
from enforcer.metrics import EnforcerMetrics
from enforcer.reaper import Reaper
from enforcer.stages import Policy
from exporter.books import Books
from exporter.rounds import Rounds
from ledger.connect import Client
from ledger.model import Kind, Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger
from ledger.verify import verify

T0 = 1_795_000_800_000_000  # a full hour
MINUTE = 60_000_000
HOUR = 60 * MINUTE
CREDIT = 1_000_000


class Scheduler:
    """What was done to which workload; a suspended one is listed as suspended from then on."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.reasons: list[str] = []
        self.fails = False
        self.deaf: set[str] = set()
        """Workloads whose signal fails."""
        self.outcome = Outcome.DONE

    def _note(self, what: str, workload: str, reason: str = "") -> Outcome:
        if self.fails:
            raise ActionError("the scheduler does not answer")
        self.done.append((what, workload))
        if reason:
            self.reasons.append(reason)
        return self.outcome

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        if workload_id in self.deaf:
            raise ActionError("the signal cannot be sent")
        return self._note("signal", workload_id, reason)

    async def suspend(self, workload_id: str, reason: str) -> Outcome:
        return self._note("suspend", workload_id, reason)

    async def resume(self, workload_id: str) -> Outcome:
        return self._note("resume", workload_id)

    async def stop(self, workload_id: str, reason: str) -> Outcome:
        return self._note("stop", workload_id, reason)

    async def close(self) -> None: ...


class Nothing:
    name, cluster = "s", "c"

    async def fetch(self, since_us: int | None) -> Snapshot:
        raise AssertionError

    async def close(self) -> None: ...


class Cluster:
    """A cluster with jobs of 4 credits an hour each, metered, under a reaper."""

    def __init__(
        self, client: Client, then: str = "suspend", notifier: Any = None, interval: float = 15.0,
        scheduler: Scheduler | None = None, **admission: Any,
    ) -> None:  # fmt: skip
        self.now, self.notifier = T0, notifier
        self.step = 0
        """How far clocks were set since: what was waited for is not so much longer."""
        self.ledger = Ledger(client, T0 - 24 * HOUR, lambda: self.now)
        self.scheduler = scheduler or Scheduler()
        self.metrics = EnforcerMetrics("test")
        self.rounds = Rounds(Books(self.ledger), Nothing(), 15 * MINUTE)
        self._policy, self._admission = Policy(24 * HOUR, 10 * MINUTE, then), AdmissionSettings(**admission)
        self._interval = interval
        self.restart()
        self.jobs: dict[str, tuple[str, str]] = {}
        self.presets: dict[str, str] = {}
        """Of jobs that do not run on `small`."""
        self.starts: dict[str, int] = {}
        self.suspensions: dict[str, list[tuple[int, int | None]]] = {}
        self.grants = 0

    def restart(self) -> None:
        """Another enforcer goes on, as after `kill -9`."""
        self.reaper = Reaper(
            self.ledger, self._policy, self._admission, {"s": self.scheduler}, self.metrics, lambda: self.now,
            interval_seconds=self._interval, notifier=self.notifier, monotonic=lambda: self.now - self.step,
        )  # fmt: skip

    def set_clocks(self, by_us: int) -> None:
        """All wall clocks are set: forward, or back."""
        self.now += by_us
        self.step += by_us

    async def setup(self, credits_micro: int, *jobs: str, project: str = "p") -> None:
        table = RateTable({"small": 4_000_000_000, "large": 4_000_000_000})
        await self.ledger.rates.publish(RatePlan("c", ((0, table),)))
        await self.grant(credits_micro)
        self.jobs = dict.fromkeys(jobs, (project, "u"))

    async def grant(self, micro: int) -> None:
        self.grants += 1
        await self.ledger.accounts.grant("acme", micro, key=str(self.grants), who="test")

    def start(self, job: str) -> None:
        """A job starts now, or anew."""
        self.jobs[job], self.starts[job] = ("p", "u"), self.now

    async def meter(self) -> None:
        listed = [
            Observation(
                job, Kind.JOB, "acme", project, user, self.presets.get(job, "small"), "", self.starts.get(job, T0),
                suspended=tuple(self.suspensions.get(job, ())),
            )
            for job, (project, user) in self.jobs.items()
        ]  # fmt: skip
        await self.rounds.take(Snapshot("s", "c", self.now, listed), None)

    async def after(self, minutes: float, *, metered: bool = True, org: str = "acme") -> int:
        """Time passes; the cluster is metered and looked at. The stage of `org`."""
        self.now += int(minutes * MINUTE)
        if metered:
            await self.meter()
        before = len(self.scheduler.done)
        if await self.reaper.round() and self.notifier is not None:
            await self.notifier.deliver()
        for what, job in self.scheduler.done[before:]:
            if what == "suspend":
                self.suspensions.setdefault(job, []).append((self.now, None))
            elif what == "resume":
                since, _ = self.suspensions[job].pop()
                self.suspensions[job].append((since, self.now))
            elif what == "stop":
                self.jobs.pop(job)
        report = await verify(self.ledger)
        assert report["ok"], report["differences"]
        return self.metrics.stages[org]

    async def stages(self) -> list[str]:
        entries, _ = await self.ledger.accounts.journal("acme")
        return [entry["stage"] for entry in entries if entry["type"] == "stage" and entry["tier"] == "org"]
