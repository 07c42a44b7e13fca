"""Random lives of workloads, what schedulers would say of them, and an independent exact account of their cost.

The account is made with fractions over plain intervals; it shares nothing with the meter but the domain types.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

from hypothesis import strategies as st

from ledger.clock import parse_time
from ledger.model import Observation, RatePlan, RateTable, Snapshot

T0 = parse_time("2026-11-01T00:00:00Z")
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
SPAN = 30 * HOUR
ORGS = ("acme", "beta }{corp")
PRESETS = ("cpu-small", "gpu-large", "free")


@dataclass(frozen=True)
class Life:
    """What really happened to one run."""

    id: str
    org: str
    project: str
    user: str
    preset: str
    app: str
    start: int
    end: int | None
    suspended: tuple[tuple[int, int], ...] = ()

    def seen_at(self, t: int) -> Observation:
        """What a scheduler that knows everything up to `t` says."""
        suspended = tuple((a, b if b <= t else None) for a, b in self.suspended if a <= t)
        ended = self.end if self.end is not None and self.end <= t else None
        return Observation(
            self.id, "app" if self.app else "job", self.org, self.project, self.user, self.preset, self.app, self.start,
            ended, suspended,
        )  # fmt: skip

    def billable(self, until: int) -> list[tuple[int, int]]:
        end = until if self.end is None else min(self.end, until)
        pieces, at = [], self.start
        for a, b in self.suspended:
            if a >= end:
                break
            if a > at:
                pieces.append((at, a))
            at = max(at, min(b, end))
        if at < end:
            pieces.append((at, end))
        return pieces


def instants(low: int = 0, high: int = SPAN) -> st.SearchStrategy[int]:
    """Instants of the test's day and a bit, often on full hours and seconds, sometimes odd."""
    offsets = st.one_of(
        st.integers(low // HOUR, high // HOUR).map(lambda h: h * HOUR),
        st.integers(low // SECOND, high // SECOND).map(lambda s: s * SECOND),
        st.integers(low, high),
    )
    return offsets.map(lambda o: T0 + min(max(o, low), high))


@st.composite
def lives(draw: st.DrawFn) -> list[Life]:
    """Up to eight runs of up to six ids; runs of one id never overlap (requeues)."""
    found: list[Life] = []
    for number in range(draw(st.integers(1, 6))):
        org = draw(st.sampled_from(ORGS))
        project, user = draw(st.sampled_from(["vision", "nlp"])), draw(st.sampled_from(["ann", "bob"]))
        preset, app = draw(st.sampled_from(PRESETS)), draw(st.sampled_from(["", "", "vllm"]))
        marks = sorted(draw(st.lists(instants(-2 * HOUR), min_size=2, max_size=8, unique=True)))
        requeued = draw(st.booleans()) and len(marks) >= 4
        parts = [marks[: len(marks) // 2], marks[len(marks) // 2 :]] if requeued else [marks]
        for last, part in enumerate(parts):
            ends = not (last == len(parts) - 1 and draw(st.booleans()))
            inner = part[1:-1] if ends else part[1:]
            pauses = tuple(zip(inner[0::2], inner[1::2], strict=False))
            found.append(
                Life(f"job-{number}", org, project, user, preset, app, part[0], part[-1] if ends else None, pauses)
            )
    return found


@dataclass
class Prices:
    """Rates over time, in nano-credits an hour: what the model believes was in force when."""

    steps: list[tuple[int, dict[str, int], dict[str, int]]] = field(default_factory=list)

    def put(self, at: int, presets: dict[str, int], apps: dict[str, int]) -> None:
        self.steps = [s for s in self.steps if s[0] < at] + [(at, presets, apps)]

    def cost(self, life: Life, until: int, since: int, epoch: int = T0) -> Fraction:
        """Exact micro-credits of what is billed in [since, until)."""
        total = Fraction(0)
        for a, b in life.billable(until):
            a = max(a, since, epoch)
            for number, (at, presets, apps) in enumerate(self.steps):
                end = self.steps[number + 1][0] if number + 1 < len(self.steps) else until
                start, stop = max(a, at), min(b, end)
                if start < stop:
                    nano = presets[life.preset] + (apps[life.app] if life.app else 0)
                    total += Fraction(nano * (stop - start), 1000 * HOUR)
        return total

    def plan(self, cluster: str) -> RatePlan:
        steps = [(at, RateTable(presets, apps)) for at, presets, apps in self.steps]
        return RatePlan(cluster, ((0, steps[0][1]), *steps[1:]))


rates = st.integers(0, 50_000_000_000)
price_lists = st.fixed_dictionaries({"cpu-small": rates, "gpu-large": rates, "free": st.just(0)})
app_lists = st.fixed_dictionaries({"vllm": rates})


def snapshot(
    lives_: list[Life], t: int, retention: int, hidden: frozenset[int] = frozenset(), complete: bool = True
) -> Snapshot:
    """What the scheduler lists at `t`: started runs, finished ones for `retention`, not the hidden ones."""
    listed = [
        life.seen_at(t)
        for number, life in enumerate(lives_)
        if number not in hidden and life.start <= t and (life.end is None or t < life.end + retention)
    ]
    return Snapshot("test", "default", t, listed, complete)


def renamed(life: Life, **changes: str) -> Life:
    return replace(life, **changes)
