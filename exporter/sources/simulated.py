"""The `simulated` source: a believable cluster for demonstrations and tests, without a scheduler.

What runs is a pure function of the seed and the time: jobs are drawn hour by hour from a generator that is
seeded with the hour, so that a restart, or a second exporter, sees the very same cluster. A job's future is
told only as it happens: its end, its suspensions and its next run are not listed before their time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from exporter.sources.simulated_load import DRAWN_HOURS_MAX, Org, Run, draw_hour, draw_org, seeded, services
from ledger.clock import Clock, now_us
from ledger.model import Kind, Observation, Snapshot
from ledger.money import GB, HOUR_US

ORGS: Final = ("acme", "globex", "initech", "umbrella")
LISTED_US: Final = HOUR_US // 2
"""How long a finished workload stays listed, as schedulers do (longer where the caller was away longer)."""


@dataclass(frozen=True, slots=True)
class _Volume:
    """Fills up by `growth_gb` in `days`, then is cleaned up and starts again."""

    id: str
    org: str
    project: str
    user: str
    base_gb: int
    growth_gb: int
    days: int

    def bytes_at(self, us: int) -> int:
        """The size at an instant; it changes at each full hour."""
        hours = self.days * 24
        filled, noise = us // HOUR_US % hours, seeded(f"{self.id}/{us // HOUR_US}").randrange(GB)
        return (self.base_gb + self.growth_gb * filled // hours) * GB + noise


class SimulatedCluster:
    """The whole cluster as a pure function of time; presets `cpu-small`, `cpu-large`, `gpu-small`, `gpu-large`,
    apps `jupyter` and `vllm`, storage class `default`.

    `jobs_per_hour` is how many jobs and notebooks an org of middle size submits in its busiest hour.
    """

    def __init__(self, *, cluster: str, seed: int = 1, orgs: Sequence[str] = ORGS, jobs_per_hour: float = 12.0) -> None:
        self.cluster = cluster
        self._orgs = [draw_org(f"{seed}/{cluster}/{name}", name, jobs_per_hour) for name in orgs]
        self._volumes = [volume for org in self._orgs for volume in _volumes(org)]
        self._drawn: dict[int, list[Run]] = {}

    def at(self, us: int, ended_after_us: int) -> list[Observation]:
        """What the scheduler lists at `us`: all that waits, runs and is stored, and what ended after
        `ended_after_us`."""
        listed = []
        kept = {}
        for hour in range(ended_after_us // HOUR_US - DRAWN_HOURS_MAX, us // HOUR_US + 1):
            kept[hour] = self._drawn.get(hour) or self._draw(hour)
            listed += [run.seen_at(us) for run in kept[hour] if run.listed_at(us, ended_after_us)]
        # Replaced, not edited: the thread of a fetch that was given up may still be at work here.
        self._drawn = kept
        for org in self._orgs:
            runs = services(org, ended_after_us, us)
            listed += [run.seen_at(us) for run in runs if run.listed_at(us, ended_after_us)]
        return listed + [
            Observation(v.id, Kind.STORAGE.value, v.org, v.project, v.user, "default", bytes=v.bytes_at(us))
            for v in self._volumes
        ]

    def history(self, from_us: int, to_us: int) -> Iterator[Observation]:
        """Every run of a job or an app that ran in `[from_us, to_us)`, as known at `to_us`.

        Volumes are left out: what they hold has no history, only snapshots (`at`).
        """
        for hour in range(from_us // HOUR_US - DRAWN_HOURS_MAX, to_us // HOUR_US + 1):
            for run in self._draw(hour):
                if run.started_us < to_us and run.ended_us > from_us:
                    yield run.seen_at(to_us)
        for org in self._orgs:
            for run in services(org, from_us, to_us):
                if run.started_us < to_us and run.ended_us > from_us:
                    yield run.seen_at(to_us)

    def _draw(self, hour: int) -> list[Run]:
        return [run for org in self._orgs for run in draw_hour(org, hour)]


class SimulatedSource:
    """`SimulatedCluster` as of now, by the clock."""

    def __init__(
        self,
        *,
        name: str,
        cluster: str,
        seed: int = 1,
        orgs: Sequence[str] = ORGS,
        jobs_per_hour: float = 12.0,
        clock: Clock = now_us,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self._cluster = SimulatedCluster(cluster=cluster, seed=seed, orgs=orgs, jobs_per_hour=jobs_per_hour)
        self._clock = clock

    async def fetch(self, since_us: int | None) -> Snapshot:
        """The cluster as it is now; all that ended after `since_us` is listed, however long ago."""
        taken_us = self._clock()
        ended_after_us = taken_us - LISTED_US if since_us is None else min(since_us, taken_us - LISTED_US)
        # After a long absence there are months to draw; the loop must not wait for that.
        listed = await asyncio.to_thread(self._cluster.at, taken_us, ended_after_us)
        return Snapshot(self.name, self.cluster, taken_us, listed)

    async def close(self) -> None:
        """Nothing to give back."""


def _volumes(org: Org) -> Iterator[_Volume]:
    random = seeded(f"{org.seed}/volumes")
    for project, users in org.projects:
        yield _Volume(
            f"{org.name}-{project}-data",
            org.name,
            project,
            "",
            random.randrange(100, 2000),
            random.randrange(50, 500),
            random.randrange(5, 15),
        )
        for user in users:
            yield _Volume(
                f"{org.name}-{project}-{user}-home",
                org.name,
                project,
                user,
                random.randrange(5, 50),
                random.randrange(1, 40),
                random.randrange(3, 30),
            )
