"""A long random history of a cluster, made of a seed alone, so that any process can go on with it anywhere.

What is listed at which poll follows from the poll's number; the account of what it costs is made with fractions.
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

from ledger.model import Observation, RatePlan, RateTable, Snapshot
from tests.histories import HOUR, MINUTE, ORGS, PRESETS, SPAN, T0, Life, Prices, renamed, snapshot

SOURCE, CLUSTER = "test", "default"
DISK_NANO = 123_456_789
GIGA = 10**9

Buckets = dict[tuple[str, int, str, str, str], int]


@dataclass(frozen=True)
class Volume:
    """A stored volume; `sizes`: bytes at each poll, None where it is not listed (before and after)."""

    id: str
    org: str
    sizes: tuple[int | None, ...]


@dataclass(frozen=True)
class History:
    """`moves`: number of a life -> instants from which it belongs to the other org, to its own again, and so on."""

    polls: tuple[int, ...]
    lives: tuple[Life, ...]
    moves: dict[int, list[int]]
    hidden: dict[int, tuple[frozenset[int], bool]]
    volumes: tuple[Volume, ...]
    prices: Prices
    retention: int
    _known: dict[Observation, Observation] = field(default_factory=dict)
    _expected: dict[int | None, tuple[dict[str, int], Buckets]] = field(default_factory=dict)

    @classmethod
    def of(cls, seed: int, polls: int, lives: int = 16, *, plain: bool = False) -> History:
        """`plain`: without what depends on when it is seen first (moves between orgs, sizes of volumes)."""
        rng = random.Random(seed)
        instants = tuple(sorted(T0 + at for at in rng.sample(range(MINUTE, SPAN), polls)))
        found: list[Life] = []
        for number in range(lives):
            marks = sorted(T0 + at for at in rng.sample(range(-HOUR, SPAN), rng.choice([2, 2, 4, 6, 8])))
            who = {
                "id": f"job-{number}", "org": rng.choice(ORGS), "project": rng.choice(["vision", "nlp"]),
                "user": rng.choice(["ann", "bob"]), "preset": rng.choice(PRESETS), "app": rng.choice(["", "", "vllm"]),
            }  # fmt: skip
            parts = [marks[:4], marks[4:]] if len(marks) == 8 else [marks]  # 8: requeued
            for part in parts:
                pauses = tuple(zip(part[1:-1:2], part[2:-1:2], strict=True))
                open_end = part is parts[-1] and rng.random() < 0.2
                found.append(Life(**who, start=part[0], end=None if open_end else part[-1], suspended=pauses))
        moved = [n for n, life in enumerate(found) if rng.random() < 0.3 and not plain]
        moves = {n: sorted(T0 + at for at in rng.sample(range(SPAN), rng.choice([1, 2, 5]))) for n in moved}
        may_hide = [n for n in range(len(found)) if n not in moves]
        hidden = {
            poll: (frozenset(rng.sample(may_hide, 2)), rng.random() < 0.5)
            for poll in range(polls)
            if rng.random() < 0.1
        }
        prices = Prices()
        prices.put(0, *_rates(rng))
        for at in sorted(rng.sample(range(SPAN), 5)):
            prices.put(T0 + at, *_rates(rng))
        volumes = () if plain else tuple(_volume(rng, number, polls) for number in range(3))
        return cls(instants, tuple(found), moves, hidden, volumes, prices, rng.choice([MINUTE, HOUR]))

    def plan(self) -> RatePlan:
        steps = [(at, RateTable(presets, apps, {"disk": DISK_NANO})) for at, presets, apps in self.prices.steps]
        return RatePlan(CLUSTER, ((0, steps[0][1]), *steps[1:]))

    def after(self, mark: int | None) -> int | None:
        """The number of the first poll after an instant; None: that was the last one."""
        number = 0 if mark is None else bisect_right(self.polls, mark)
        return number if number < len(self.polls) else None

    def snapshot(self, poll: int) -> Snapshot:
        """What is listed at a poll; a workload of which there is nothing new is the very same object."""
        at = self.polls[poll]
        hidden, complete = self.hidden.get(poll, (frozenset(), True))
        lives = [
            renamed(life, org=ORGS[life.org == ORGS[0]]) if bisect_right(self.moves.get(n, ()), at) % 2 else life
            for n, life in enumerate(self.lives)
        ]
        shot = snapshot(lives, at, self.retention, hidden, complete)
        listed = [self._known.setdefault(o, o) for o in shot.workloads]
        for volume in self.volumes:
            size = volume.sizes[poll]
            if size is not None:
                listed.append(Observation(volume.id, "storage", volume.org, "vision", "", "disk", bytes=size))
        return Snapshot(SOURCE, CLUSTER, at, listed, complete)

    def expected(self, polls: int | None = None) -> tuple[dict[str, int], Buckets]:
        """Micro-credits by run, and by org, hour, project, user and resource, after so many polls (None: all)."""
        if polls not in self._expected:
            self._expected[polls] = self._account(polls)
        return self._expected[polls]

    def _account(self, polls: int | None) -> tuple[dict[str, int], Buckets]:
        runs: dict[str, int] = defaultdict(int)
        buckets: Buckets = defaultdict(int)
        done = range(len(self.polls) if polls is None else polls)
        listings = [{(o.id, o.started_us): o for o in self.snapshot(poll).workloads} for poll in done]
        for life in self.lives:
            key = life.id, life.start
            seen = [poll for poll in done if key in listings[poll]]
            if not seen:
                continue
            owners = [(0, listings[seen[0]][key].org)]
            for poll in seen:
                listed = listings[poll][key]
                # Who it belongs to is heeded while it runs; what is over stays with the org that was charged.
                if listed.org != owners[-1][1] and listed.ended_us is None:
                    owners.append((self.polls[poll], listed.org))
            total = self._post(
                buckets, self.polls[seen[-1]], lambda until, life=life: self.prices.cost(life, until, 0), owners,
                lambda org, hour, life=life: (org, hour, life.project, life.user, f"{life.preset}/{life.app}"),
            )  # fmt: skip
            if total:
                runs[f"{life.id}@{life.start}"] += total
        for volume in self.volumes:
            sizes = [(self.polls[p], volume.sizes[p]) for p in done if volume.sizes[p] is not None]
            if not sizes:
                continue
            total = self._post(
                buckets, sizes[-1][0], lambda until, sizes=sizes: _stored(sizes, until), [(0, volume.org)],
                lambda org, hour: (org, hour, "vision", "", "disk/"),
            )  # fmt: skip
            if total:
                runs[f"{volume.id}@None"] += total
        return dict(runs), dict(buckets)

    @staticmethod
    def _post(buckets, last, cost, owners, key) -> int:  # type: ignore[no-untyped-def]
        edges = sorted({*range(T0, last, HOUR), last, *(since for since, _ in owners if since)})
        before = 0
        for since, until in itertools.pairwise(edges):
            micro = floor(cost(until)) - before
            before += micro
            if micro:
                org = [name for at, name in owners if at <= since][-1]
                buckets[key(org, since - since % HOUR)] += micro
        return before


def _rates(rng: random.Random) -> tuple[dict[str, int], dict[str, int]]:
    presets = {"cpu-small": rng.randrange(10**10), "gpu-large": rng.randrange(5 * 10**10), "free": 0}
    return presets, {"vllm": rng.randrange(10**10)}


def _volume(rng: random.Random, number: int, polls: int) -> Volume:
    born, gone = sorted(rng.sample(range(polls + 1), 2))
    size = rng.randrange(1000 * GIGA)
    sizes: list[int | None] = [None] * polls
    for poll in range(born, gone):
        size = rng.randrange(1000 * GIGA) if rng.random() < 0.1 else size
        sizes[poll] = size
    return Volume(f"vol-{number}", rng.choice(ORGS), tuple(sizes))


def _stored(sizes: list[tuple[int, int]], until: int) -> Fraction:
    total = Fraction(0)
    for (at, size), (stop, _) in itertools.pairwise(sizes):
        if at < until:
            total += Fraction(DISK_NANO * size * (min(stop, until) - at), GIGA * 1000 * HOUR)
    return total
