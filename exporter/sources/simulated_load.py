"""Who submits what to the simulated cluster, and what becomes of it: pure draws from seeded generators."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from ledger.model import Interval, Kind, Observation
from ledger.money import HOUR_US

_SECOND_US: Final = 1_000_000
_WEEK_US: Final = 7 * 24 * HOUR_US
_LONGEST_HOURS: Final = 48
DRAWN_HOURS_MAX: Final = _LONGEST_HOURS + 8
"""A job is over within this many hours after the hour it was drawn for: waits and pauses are bounded."""

_PROJECTS: Final = ("vision", "speech", "genomics", "climate", "pricing", "robotics", "search", "imaging")
_USERS: Final = ("ann", "bob", "chen", "dora", "eli", "fay", "gus", "hana", "ivan", "jo", "kim", "lee", "mia")


@dataclass(frozen=True, slots=True)
class _Sort:
    """A sort of workload: how often it is submitted, on what it runs, how many minutes it takes."""

    weight: int
    kind: str
    preset: str
    app: str
    median_minutes: int
    limit_hours: int


_SORTS: Final = (
    _Sort(40, Kind.JOB.value, "cpu-small", "", 12, 4),
    _Sort(20, Kind.JOB.value, "cpu-large", "", 40, 12),
    _Sort(18, Kind.JOB.value, "gpu-small", "", 70, 24),
    _Sort(7, Kind.JOB.value, "gpu-large", "", 240, _LONGEST_HOURS),
    _Sort(10, Kind.APP.value, "cpu-small", "jupyter", 150, 10),
    _Sort(5, Kind.APP.value, "gpu-small", "jupyter", 120, 10),
)
_WEIGHTS: Final = tuple(sort.weight for sort in _SORTS)


@dataclass(frozen=True, slots=True)
class Org:
    """An org with its people; all that it does follows from `seed`."""

    seed: str
    name: str
    projects: tuple[tuple[str, tuple[str, ...]], ...]
    jobs_per_hour: float
    offset_hours: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a workload from end to end, future included."""

    id: str
    kind: str
    org: str
    project: str
    user: str
    preset: str
    app: str
    listed_us: int
    started_us: int
    ended_us: int
    suspended: tuple[tuple[int, int], ...] = ()
    limit_us: int | None = None

    def listed_at(self, us: int, ended_after_us: int) -> bool:
        """Whether the scheduler lists it at `us`, where it lists what ended after `ended_after_us`."""
        return self.listed_us <= us and self.ended_us > ended_after_us

    def seen_at(self, us: int) -> Observation:
        """What the scheduler knows of it at `us`."""
        suspended: tuple[Interval, ...] = tuple(
            (since, until if until <= us else None) for since, until in self.suspended if since <= us
        )
        return Observation(
            self.id,
            self.kind,
            self.org,
            self.project,
            self.user,
            self.preset,
            self.app,
            self.started_us if self.started_us <= us else None,
            self.ended_us if self.ended_us <= us else None,
            suspended,
            limit_us=self.limit_us,
        )


def seeded(seed: str) -> Random:
    """A generator that draws the same for the same seed, in every process."""
    return Random(seed)  # noqa: S311 - nothing here is secret


def draw_org(seed: str, name: str, jobs_per_hour: float) -> Org:
    """An org between half and one and a half times the middle size, in some time zone."""
    random = seeded(seed)
    projects = tuple(
        (project, tuple(random.sample(_USERS, random.randrange(2, 6))))
        for project in random.sample(_PROJECTS, random.randrange(2, 5))
    )
    return Org(seed, name, projects, jobs_per_hour * random.uniform(0.5, 1.5), random.choice((-8, -5, 0, 1, 5)))


def activity(org: Org, hour: int) -> float:
    """How busy an hour (since 1970, UTC) is: 1 in the early afternoon of a working day, less otherwise."""
    local = hour + org.offset_hours
    # 1970 began on a Thursday, so that day 2 was a Saturday.
    weekend = (local // 24 - 2) % 7 < 2
    daylight = max(0.0, math.cos((local % 24 - 14) * math.pi / 12))
    return (0.12 + 0.88 * daylight) * (0.3 if weekend else 1.0)


def draw_hour(org: Org, hour: int) -> Iterator[Run]:
    """The runs of all that the org submits in an hour: a Poisson process."""
    random = seeded(f"{org.seed}/{hour}")
    expected = org.jobs_per_hour * activity(org, hour)
    if expected <= 0:
        return
    at, number = random.expovariate(expected), 0
    while at < 1:
        yield from _draw_job(org, random, f"{org.name}-{hour}-{number}", hour * HOUR_US + int(at * HOUR_US))
        at, number = at + random.expovariate(expected), number + 1


def services(org: Org, from_us: int, to_us: int) -> Iterator[Run]:
    """The org's inference services around a period; each is deployed anew about once a week."""
    for number in range(from_us // _WEEK_US - 2, to_us // _WEEK_US + 1):
        random = seeded(f"{org.seed}/service/{number}")
        project, users = random.choice(org.projects)
        user = random.choice(users)
        started, ended = (_deployed_us(org, number), _deployed_us(org, number + 1))
        yield Run(
            f"{org.name}-vllm-{number}",
            Kind.APP.value,
            org.name,
            project,
            user,
            random.choice(("gpu-small", "gpu-large")),
            "vllm",
            started,
            started,
            # The next one takes a few minutes to come up.
            ended - random.randrange(60, 900) * _SECOND_US,
        )


def _deployed_us(org: Org, number: int) -> int:
    return number * _WEEK_US + seeded(f"{org.seed}/deployed/{number}").randrange(5 * 24 * HOUR_US)


def _draw_job(org: Org, random: Random, workload: str, submitted_us: int) -> Iterator[Run]:
    """A job's run, or its two runs where it was preempted and started again."""
    sort = random.choices(_SORTS, _WEIGHTS)[0]
    project, users = random.choice(org.projects)
    user = random.choice(users)
    limit_us = sort.limit_hours * HOUR_US
    started_us = submitted_us + _wait_us(random)
    fate = random.random()
    if fate < 0.08:
        # Wrong path, missing module: most jobs that fail do so at once.
        took_us = random.randrange(2 * _SECOND_US, 90 * _SECOND_US)
    else:
        took_us = min(limit_us, int(sort.median_minutes * 60 * _SECOND_US * random.lognormvariate(0, 1)))

    def run(listed_us: int, since_us: int, until_us: int, paused: tuple[tuple[int, int], ...] = ()) -> Run:
        return Run(
            workload,
            sort.kind,
            org.name,
            project,
            user,
            sort.preset,
            sort.app,
            listed_us,
            since_us,
            until_us,
            paused,
            limit_us,
        )

    if 0.08 <= fate < 0.12:
        preempted_us = started_us + int(took_us * random.uniform(0.1, 0.9))
        again_us = preempted_us + _wait_us(random)
        yield run(submitted_us, started_us, preempted_us)
        # It goes on from its last checkpoint.
        yield run(preempted_us, again_us, again_us + took_us - (preempted_us - started_us))
    elif 0.12 <= fate < 0.17:
        paused_us = started_us + int(took_us * random.uniform(0.1, 0.9))
        resumed_us = paused_us + _wait_us(random)
        yield run(
            submitted_us,
            started_us,
            started_us + took_us + resumed_us - paused_us,
            ((paused_us, resumed_us),),
        )
    else:
        yield run(submitted_us, started_us, started_us + took_us)


def _wait_us(random: Random) -> int:
    """Seconds to two hours in the queue; five minutes are usual."""
    return int(min(7200.0, 5 + random.expovariate(1 / 300)) * _SECOND_US)
