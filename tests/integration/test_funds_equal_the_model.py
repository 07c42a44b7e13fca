"""What is left, expired, held and owed, at every step of random histories, against an account kept by the minute."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.admission import AdmissionRequest, Terms
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.verify import verify
from tests.histories import MINUTE, T0
from tests.integration.test_charges_equal_the_model import bench

pytestmark = pytest.mark.redis

# A credit a minute, so a hold of 15 minutes is 15 credits.
PLAN = RatePlan("default", ((0, RateTable(presets={"p": 60_000_000_000})),))
CREDIT = 1_000_000
HOLD = 15


@dataclass
class Grant:
    key: str
    amount: int
    starts: int
    expires: int | None
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.amount

    def order(self) -> tuple[float, int, str]:
        return float("inf") if self.expires is None else self.expires, self.starts, self.key


@dataclass
class Job:
    """In minutes since T0. `charged`: the minutes that it was charged for."""

    start: int
    end: int
    seen_from: int
    charged: set[int] = field(default_factory=set)

    def is_listed(self, now: int) -> bool:
        return max(self.start, self.seen_from) <= now


@dataclass
class Model:
    """All amounts in credits, all instants in minutes."""

    now: int = 0
    grants: list[Grant] = field(default_factory=list)
    spent: int = 0
    owed: int = 0
    owed_since: int = 0
    running: int = 0
    holds: dict[str, tuple[int, int]] = field(default_factory=dict)

    def _pay(self, due: int, since: int, until: int) -> int:
        for grant in sorted(self.grants, key=Grant.order):
            if grant.starts < until and (grant.expires is None or grant.expires > since):
                paid = min(due, grant.left)
                grant.left -= paid
                due -= paid
        return due

    def settle(self) -> None:
        """What is owed is paid by every grant that has been in force since it came to be owed."""
        self.owed = self._pay(self.owed, self.owed_since, self.now + 1)

    def use(self, minute: int) -> None:
        self.owed = self._pay(self.owed, self.owed_since, minute + 1)
        self.spent += 1
        if self._pay(1, minute, minute + 1):
            self.owed += 1
            self.owed_since = max(self.owed_since, minute + 1)

    def poll(self, jobs: list[Job]) -> None:
        used: list[int] = []
        refunded: list[tuple[int, int]] = []
        for number, job in enumerate(jobs):
            if job.is_listed(self.now):
                minutes = set(range(job.start, min(job.end, self.now)))
                used += minutes - job.charged
                refunded += [(number, len(job.charged - minutes))] if job.charged - minutes else []
                job.charged = minutes
        for minute in sorted(used):
            self.use(minute)
        for number, amount in refunded:
            self.grants.append(Grant(f"correction-{number}-{self.now}", amount, 0, None))
        self.running = HOLD * sum(job.is_listed(self.now) and self.now < job.end for job in jobs)
        self.settle()

    def funds(self) -> tuple[int, int, int, int]:
        """(granted, expired, spent, held)"""
        self.settle()
        self.holds = {hold: (amount, until) for hold, (amount, until) in self.holds.items() if until > self.now}
        granted = sum(g.amount - (g.left if g.starts > self.now else 0) for g in self.grants)
        expired = sum(g.left for g in self.grants if g.starts <= self.now and g.expires and g.expires <= self.now)
        held = sum(amount for amount, _ in self.holds.values())
        left = granted - expired - self.spent
        return granted, expired, self.spent, held + min(self.running, max(0, left - held))

    def free(self) -> int:
        granted, expired, spent, _ = self.funds()
        return granted - expired - spent - sum(amount for amount, _ in self.holds.values()) - self.running


jobs_ = st.lists(
    st.builds(
        lambda start, length, late: Job(start, start + length, start + late),
        st.integers(0, 200), st.integers(1, 150), st.sampled_from([0, 0, 0, 10, 100]),
    ),
    min_size=1, max_size=4,
)  # fmt: skip
acts = st.lists(
    st.one_of(
        st.tuples(
            st.just("grant"), st.integers(1, 200), st.integers(-60, 100), st.one_of(st.none(), st.integers(1, 150))
        ),
        st.tuples(st.just("poll"), st.integers(0, 70)),
        st.tuples(st.just("wait"), st.integers(1, 70)),
        st.tuples(st.just("correct"), st.integers(0, 3), st.integers(1, 60)),
        st.tuples(st.just("admit"), st.integers(1, 3)),
        st.tuples(st.just("release"), st.integers(0, 5)),
    ),
    min_size=1, max_size=25,
)  # fmt: skip


@given(jobs=jobs_, acts=acts)
async def test_funds_are_exact_at_every_step(jobs: list[Job], acts: list[tuple], valkey_url: str) -> None:  # type: ignore[type-arg]
    model, clock = Model(), [T0]
    async with bench(valkey_url, clock) as it:
        accounts, admissions = it.ledger.accounts, it.ledger.admissions
        await it.ledger.rates.publish(PLAN)
        await accounts.upsert("acme", who="test")
        for number, (act, *arguments) in enumerate(acts):
            if act == "grant":
                amount, shift, length = arguments
                starts = max(0, model.now + shift)
                expires = None if length is None else starts + length
                grant = Grant(f"{number:03}", amount, starts, expires)
                model.grants.append(grant)
                model.settle()
                await accounts.grant(
                    "acme", amount * CREDIT, key=grant.key, who="test", effective_us=T0 + starts * MINUTE,
                    expires_us=None if expires is None else T0 + expires * MINUTE,
                )  # fmt: skip
            elif act in ("poll", "correct"):
                if act == "poll":
                    model.now += arguments[0]
                else:
                    job = jobs[arguments[0] % len(jobs)]
                    job.end = max(job.start + 1, min(job.end, model.now) - arguments[1])
                    model.now += 1
                clock[0] = T0 + model.now * MINUTE
                listed = [
                    Observation(
                        f"job-{n}", "job", "acme", "vision", "ann", "p", "", T0 + job.start * MINUTE,
                        T0 + job.end * MINUTE if job.end <= model.now else None,
                    )
                    for n, job in enumerate(jobs)
                    if job.is_listed(model.now)
                ]  # fmt: skip
                await it.take(Snapshot("test", "default", clock[0], listed))
                model.poll(jobs)
            elif act == "wait":
                model.now += arguments[0]
                clock[0] = T0 + model.now * MINUTE
            elif act == "admit":
                request = AdmissionRequest(cluster="default", org="acme", preset="p", count=arguments[0])
                decision = await admissions.admit(request, Terms(hold_us=HOLD * MINUTE))
                assert decision.allowed == (model.free() >= HOLD * arguments[0])
                if decision.hold_id:
                    model.holds[decision.hold_id] = HOLD * arguments[0], model.now + HOLD
            elif model.holds:
                hold = sorted(model.holds)[arguments[0] % len(model.holds)]
                expected = model.holds.pop(hold)
                freed = await admissions.release("acme", hold)
                assert freed == (expected[0] * CREDIT if expected[1] > model.now else None)
            balance = await accounts.balance("acme")
            figures = balance.granted_micro, balance.expired_micro, balance.spent_micro, balance.held_micro
            granted, expired, spent, held = model.funds()
            assert figures == (granted * CREDIT, expired * CREDIT, spent * CREDIT, held * CREDIT)
            assert balance.available_micro == (granted - expired - spent - held) * CREDIT
            assert balance.overdraft_micro == max(0, expired + spent - granted) * CREDIT
            assert sum(g.amount - g.left for g in model.grants) + model.owed == spent
        report = await verify(it.ledger)
        assert report["ok"], report["differences"]
