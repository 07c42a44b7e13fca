"""Holds of what the scheduler itself refused, or cancelled, end soon; those of what waits or starts never do.

Also where exporter or scheduler were away for hours, where there are two exporters, and wherever one is killed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.books import Books
from exporter.health import LedgerHealth
from exporter.rounds import Rounds
from exporter.source_rounds import SourceRounds
from exporter.sources.base import SourceError
from ledger import keys
from ledger.admission import AdmissionRequest, Terms
from ledger.connect import Client
from ledger.model import Code, Observation, RatePlan, RateTable, Snapshot
from ledger.money import MICRO_MAX
from ledger.store import Ledger, open_ledger
from ledger.verify import verify

pytestmark = pytest.mark.redis

T0 = 1_795_000_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
CREDIT = 1_000_000
INTERVAL = 15 * SECOND
SOON = 2 * MINUTE
"""Within this what is not listed is over: a minute to be listed, a round, and two more to be found again."""


class Scheduler:
    """Its jobs by hold or by id: those that wait, and those that run since when."""

    name, cluster = "queue", "c"

    def __init__(self, clock: list[int]) -> None:
        self.clock = clock
        self.waits: set[str] = set()
        self.by_id: set[str] = set()
        self.runs: dict[str, int] = {}
        self.is_down = False
        self.lists_waiting: bool | None = True
        self.late_us = 0
        """How old its list is."""

    def start(self, hold: str) -> None:
        self.waits.discard(hold)
        self.runs[hold] = self.clock[0]

    async def fetch(self, since_us: int | None) -> Snapshot:
        if self.is_down:
            raise SourceError("it is down")
        runs = [
            Observation(f"job of {hold}", "job", "acme", "x", "ann", "p", "", since, hold_id=hold)
            for hold, since in self.runs.items()
        ]
        return Snapshot(
            self.name, self.cluster, self.clock[0] - self.late_us, runs, pending_holds=frozenset(self.waits),
            pending=frozenset(("acme", name) for name in self.by_id), lists_waiting=self.lists_waiting,
        )  # fmt: skip

    async def close(self) -> None: ...


class Site:
    """An org with credits for 100 jobs of one credit each, a scheduler, and exporters that look at it."""

    def __init__(self, ledger: Ledger, clock: list[int], scheduler: Scheduler | None = None) -> None:
        self.ledger, self.clock = ledger, clock
        self.window_us = 15 * MINUTE
        self.scheduler = scheduler or Scheduler(clock)
        self.exporter = self.new_exporter()

    def new_exporter(self, scheduler: Scheduler | None = None) -> SourceRounds:
        async def nothing() -> None: ...

        rounds = Rounds(Books(self.ledger), scheduler or self.scheduler, hold_us=self.window_us)
        return SourceRounds(rounds, LedgerHealth(), after=nothing, clock=self.ledger.clock)

    async def submit(self, source: str = "queue", **more: Any) -> str:
        """The hold of a job that the enforcer let in."""
        request = AdmissionRequest(
            cluster="c", org="acme", project="x", user="ann", preset="p", source=source, **more
        )  # fmt: skip
        decision = await self.ledger.admissions.admit(request, Terms())
        assert decision.code is Code.OK
        assert decision.hold_id is not None
        return decision.hold_id

    async def pass_(self, us: int, *exporters: SourceRounds) -> None:
        """Time passes, with a round every 15 seconds."""
        until = self.clock[0] + us
        while self.clock[0] < until:
            self.clock[0] = min(until, self.clock[0] + INTERVAL)
            for one in exporters or (self.exporter,):
                await one.run()

    async def holds(self) -> set[str]:
        await self.ledger.accounts.balance("acme")  # ends those whose time is over
        found: Any = await self.ledger.client.hkeys(keys.of_org("acme").holds)  # type: ignore[misc]
        report = await verify(self.ledger)
        assert report["ok"], report["differences"]
        return {name.decode() for name in found}


@pytest.fixture
def clock() -> list[int]:
    return [T0]


@pytest.fixture
async def site(client: Client, valkey_url: str, clock: list[int]) -> AsyncIterator[Site]:
    async with open_ledger(valkey_url, epoch_us=T0, clock=lambda: clock[0]) as ledger:
        await ledger.rates.publish(RatePlan("c", ((0, RateTable({"p": 4_000_000_000})),)))
        await ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="t")
        yield Site(ledger, clock)


async def test_what_the_scheduler_refuses_after_our_yes_holds_nothing_for_long(site: Site) -> None:
    await site.exporter.run()
    refused = [await site.submit() for _ in range(100)]
    await site.pass_(MINUTE - INTERVAL)
    assert await site.holds() == set(refused)  # it may be listed yet
    await site.pass_(SOON - MINUTE + INTERVAL)
    assert await site.holds() == set()
    assert (await site.ledger.accounts.balance("acme")).available_micro == 100 * CREDIT


async def test_a_short_hold_is_no_longer_for_being_listed(site: Site) -> None:
    site.window_us = MINUTE
    exporter = site.new_exporter()
    hold = await site.submit()
    await site.pass_(INTERVAL, exporter)
    assert await site.holds() == {hold}
    await site.pass_(MINUTE, exporter)
    assert await site.holds() == set()


async def test_what_is_cancelled_while_it_waits_holds_nothing_for_long(site: Site) -> None:
    hold = await site.submit()
    site.scheduler.waits = {hold}
    await site.pass_(HOUR)
    site.scheduler.waits = set()
    await site.pass_(MINUTE)
    assert await site.holds() == set()


async def test_what_waits_is_held_for_however_long_nobody_looks(site: Site) -> None:
    first, second = await site.submit(), await site.submit(workload_id="7")
    site.scheduler.waits, site.scheduler.by_id = {first}, {"7"}
    site.clock[0] += 3 * HOUR  # the exporter was never there yet
    assert await site.holds() == {first, second}
    await site.pass_(5 * MINUTE)
    site.scheduler.is_down = True
    await site.pass_(HOUR)
    site.clock[0] += 12 * HOUR
    assert await site.holds() == {first, second}
    site.scheduler.is_down = False
    site.exporter = site.new_exporter()  # after kill -9
    for _ in range(3):
        await site.pass_(5 * MINUTE)
        site.clock[0] += 18 * HOUR
    assert await site.holds() == {first, second}
    site.scheduler.by_id = set()
    await site.pass_(MINUTE)
    assert await site.holds() == {first}


async def test_a_job_that_starts_after_the_list_was_made_is_held_until_it_is_charged(site: Site) -> None:
    hold = await site.submit()
    site.scheduler.waits = {hold}
    site.scheduler.late_us = 10 * SECOND  # as charges from a cluster's watches are behind
    await site.pass_(5 * MINUTE)
    site.scheduler.start(hold)
    await site.exporter.run()
    assert await site.holds() == {hold}
    await site.pass_(15 * SECOND)
    assert await site.holds() == set()
    assert (await site.ledger.accounts.balance("acme")).held_micro == CREDIT


async def test_an_old_list_and_one_with_gaps_prove_nothing(site: Site) -> None:
    hold = await site.submit()
    site.scheduler.waits = {hold}
    site.scheduler.late_us = HOUR
    unlisted = await site.submit()
    await site.pass_(30 * MINUTE)
    assert await site.holds() == {hold, unlisted}
    site.scheduler.late_us, site.scheduler.lists_waiting = 0, False
    await site.pass_(14 * MINUTE)
    assert await site.holds() == {hold, unlisted}  # as long as what no source is asked about
    await site.pass_(2 * MINUTE)
    assert await site.holds() == {hold}


async def test_what_could_not_be_charged_keeps_its_hold_and_no_others(site: Site) -> None:
    ledger = site.ledger
    await ledger.accounts.upsert("huge", who="t", unlimited=True)
    runs = (
        await ledger.admissions.admit(AdmissionRequest(cluster="c", org="huge", preset="p", source="queue"), Terms())
    ).hold_id
    assert runs is not None
    refused = await site.submit()
    client, names = ledger.client, keys.of_org("huge")
    await client.hset(names.org, "spent", MICRO_MAX)  # type: ignore[misc]
    seen = site.scheduler.fetch

    async def fetch(since_us: int | None) -> Snapshot:
        snapshot = await seen(since_us)
        job = Observation("job", "job", "huge", "", "", "p", "", T0, hold_id=runs)
        return replace(snapshot, workloads=[*snapshot.workloads, job])

    site.scheduler.fetch = fetch  # type: ignore[method-assign]
    await site.pass_(SOON)
    await ledger.accounts.balances()
    assert await client.hkeys(names.holds) == [runs.encode()]  # type: ignore[misc]
    found = await client.hkeys(keys.of_org("acme").holds)  # type: ignore[misc]
    assert refused.encode() not in found


@pytest.mark.parametrize("source", ["", "another"])
async def test_what_this_source_does_not_list_is_left_alone(site: Site, source: str) -> None:
    hold = await site.submit(source)
    await site.pass_(14 * MINUTE)
    assert await site.holds() == {hold}
    await site.pass_(2 * MINUTE)
    assert await site.holds() == ({hold} if source else set())


async def test_an_array_holds_for_the_tasks_that_wait(site: Site) -> None:
    hold = await site.submit(count=3)
    site.scheduler.waits = {hold}
    await site.pass_(20 * MINUTE)
    site.scheduler.runs[hold] = site.clock[0]  # one of the three
    await site.pass_(HOUR)
    assert await site.holds() == {hold}
    assert (await site.ledger.accounts.balance("acme")).held_micro == 3 * CREDIT
    site.scheduler.waits = set()  # the others were cancelled
    await site.pass_(MINUTE)
    assert await site.holds() == set()
    assert (await site.ledger.accounts.balance("acme")).held_micro == CREDIT


async def test_one_exporter_that_misses_a_job_takes_nothing_that_another_sees(site: Site) -> None:
    hold = await site.submit()
    site.scheduler.waits = {hold}
    await site.pass_(10 * MINUTE)
    blind = Scheduler(site.clock)
    other = site.new_exporter(blind)
    for _ in range(20):
        await site.pass_(INTERVAL, other)
        await site.pass_(INTERVAL)
        assert await site.holds() == {hold}
    await site.pass_(HOUR)  # the other one is gone
    assert await site.holds() == {hold}


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(["waits", "refused", "plain"])),
        st.tuples(st.sampled_from(["start", "cancel"]), st.integers(0, 9)),
        st.tuples(st.sampled_from(["kill", "down", "up"]), st.just(0)),
        st.tuples(st.just("away"), st.integers(1, 50)),
        st.tuples(st.just("rounds"), st.integers(1, 10)),
    ),
    max_size=25,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_STEPS)
async def test_whatever_happens_what_waits_is_held_and_nothing_else_for_long(
    client: Client, valkey_url: str, steps: list[tuple[str, Any]]
) -> None:
    clock = [T0]
    await client.flushall()
    async with open_ledger(valkey_url, epoch_us=T0, clock=lambda: clock[0]) as ledger:
        await ledger.rates.publish(RatePlan("c", ((0, RateTable({"p": 4_000_000_000})),)))
        await ledger.accounts.grant("acme", 1_000_000 * CREDIT, key="k", who="t")
        site = Site(ledger, clock)
        exporters = [site.exporter, site.new_exporter()]
        for what, argument in steps:
            jobs = sorted(site.scheduler.waits)
            if what == "submit":
                hold = await site.submit("" if argument == "plain" else "queue")
                if argument == "waits":
                    site.scheduler.waits.add(hold)
            elif what == "start" and jobs:
                site.scheduler.start(jobs[argument % len(jobs)])
            elif what == "cancel" and jobs:
                site.scheduler.waits.discard(jobs[argument % len(jobs)])
            elif what == "kill":
                exporters[0] = site.new_exporter()
            elif what in ("down", "up"):
                site.scheduler.is_down = what == "down"
            elif what == "away":
                clock[0] += argument * MINUTE
            elif what == "rounds":
                await site.pass_(argument * INTERVAL, *exporters)
            assert site.scheduler.waits <= await site.holds()
        site.scheduler.is_down = False
        await site.pass_(SOON, *exporters)
        clock[0] += 15 * MINUTE  # those that no source lists
        assert await site.holds() == site.scheduler.waits
        balance = await ledger.accounts.balance("acme")
        assert balance.available_micro == balance.granted_micro - balance.spent_micro - balance.held_micro
