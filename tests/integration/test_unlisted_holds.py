"""Holds of work that no list has end soon, whatever happens meanwhile, and what that costs goes by what changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import keys
from ledger.admission import AdmissionRequest
from ledger.connect import Client, connect
from ledger.lua import Script
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger, open_ledger
from ledger.unlisted_holds import SCRIPT_BATCH
from ledger.waiting_holds import Listing, WaitingHolds
from tests.integration.test_backends import cluster_url

__all__ = ["cluster_url"]  # a fixture
pytestmark = pytest.mark.redis

T0 = 1_795_000_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
ROUND = 15 * SECOND
CREDIT = 1_000_000
SOON = 120 * SECOND
LONG = "long " * 40


class Site:
    """A ledger, what waits in the scheduler by its hold (or by its own id), and exporters that see it."""

    def __init__(self, ledger: Ledger, clock: list[int], orgs: tuple[str, ...] = ("acme", LONG)) -> None:
        self.ledger = ledger
        self.clock = clock
        self.orgs = orgs
        self.client: Any = ledger.client
        self.waits: dict[str, tuple[str, str | None]] = {}
        """hold -> (org, id of the work where it is listed by that)"""
        self._last = 0

    async def start(self) -> None:
        await self.ledger.rates.publish(RatePlan("c", ((0, RateTable({"p": 4_000_000_000})),)))
        for org in self.orgs:
            await self.ledger.accounts.grant(org, 1_000_000 * CREDIT, key="k", who="t")

    def exporter(self) -> WaitingHolds:
        return WaitingHolds(self.client, 15 * MINUTE, lambda: self.clock[0], "c", "queue")

    async def submit(self, org: str = "acme", *, by_id: bool = False, is_listed: bool = True) -> str:
        self._last += 1
        work = f"job-{self._last}" if by_id else None
        request = AdmissionRequest(cluster="c", org=org, preset="p", source="queue", workload_id=work)
        hold = (await self.ledger.admissions.admit(request)).hold_id
        assert hold is not None
        if is_listed:
            self.waits[hold] = org, work
        return hold

    async def round(
        self, exporter: WaitingHolds, missing: frozenset[str] = frozenset(), orgs: tuple[str, ...] | None = None
    ) -> None:
        """`missing`: what the list leaves out by mistake; `orgs`: those that were charged."""
        listed = {hold: about for hold, about in self.waits.items() if hold not in missing}
        holds = {hold for hold, (_, work) in listed.items() if work is None}
        work = {(org, work) for org, work in listed.values() if work is not None}
        await exporter.keep(holds, self.orgs, work)
        listing = Listing(self.clock[0], holds, {name for _, name in work})
        await exporter.end_unlisted(self.orgs if orgs is None else orgs, listing, 2 * ROUND)

    async def rounds(self, exporter: WaitingHolds, us: int) -> None:
        for _ in range(us // ROUND):
            self.clock[0] += ROUND
            await self.round(exporter)

    async def held(self) -> set[str]:
        found: set[str] = set()
        for org in self.orgs:
            await self.ledger.accounts.balance(org)  # ends what is over
            found.update(hold.decode() for hold in await self.client.hkeys(keys.of_org(org).holds))
        return found

    async def tail(self) -> dict[bytes, bytes]:
        """All that the ledger has, to come back to as after a crash."""
        names = await self.client.keys("credits:*")
        return dict(zip(names, [await self.client.dump(name) for name in names], strict=True))

    async def lose(self, tail: dict[bytes, bytes]) -> None:
        gone = [name for name in await self.client.keys("credits:*") if name not in tail]
        if gone:
            await self.client.delete(*gone)
        for name, value in tail.items():
            await self.client.restore(name, 0, value, replace=True)


@asynccontextmanager
async def opened(url: str, orgs: tuple[str, ...] = ("acme", LONG)) -> AsyncIterator[Site]:
    clock = [T0]
    async with connect(url, None) as client:
        await client.flushall()
    async with open_ledger(url, epoch_us=T0, clock=lambda: clock[0]) as ledger:
        site = Site(ledger, clock, orgs)
        await site.start()
        yield site


@pytest.fixture
async def site(client: Client, valkey_url: str) -> AsyncIterator[Site]:
    async with opened(valkey_url) as found:
        yield found


class Traffic:
    """What the server was sent, answered and asked since it was last looked at."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def reset(self) -> None:
        await self._client.config_resetstat()

    async def bytes(self) -> int:
        info = await self._client.info("stats")
        return int(info["total_net_input_bytes"]) + int(info["total_net_output_bytes"])


@pytest.mark.parametrize("by_id", [False, True])
async def test_a_round_costs_what_changed(site: Site, by_id: bool) -> None:
    first = await site.submit(by_id=by_id)
    names, redis = keys.of_org("acme"), site.client
    record, many = await redis.hget(names.holds, first), 5000
    fields = {f"acme.{number}": record.replace(b"job-1", b"more-%d" % number) for number in range(many)}
    await redis.hset(names.holds, mapping=fields)
    await redis.zadd(names.hold_expiry, dict.fromkeys(fields, (T0 + 24 * 60 * MINUTE) // 1000))
    await redis.hset(names.hold_of, mapping={f"c{keys.US}more-{n}": f"acme.{n}" for n in range(many)})
    site.waits |= {f"acme.{number}": ("acme", f"more-{number}" if by_id else None) for number in range(many)}
    exporter, traffic = site.exporter(), Traffic(redis)
    await site.rounds(exporter, 2 * MINUTE)
    del site.waits[first]
    await site.rounds(exporter, SOON)  # the server has all scripts
    await traffic.reset()
    await site.rounds(exporter, ROUND)
    assert await traffic.bytes() < 2000
    left = [f"acme.{number}" for number in range(10)]
    for hold in left:
        del site.waits[hold]
    await traffic.reset()
    await site.rounds(exporter, ROUND)
    assert await traffic.bytes() < 8000
    await site.rounds(exporter, SOON)
    assert await site.held() == set(site.waits)


@pytest.mark.parametrize("org", ["acme", LONG])
@pytest.mark.parametrize("by_id", [False, True])
async def test_what_left_while_nobody_looked(site: Site, org: str, by_id: bool) -> None:
    exporter = site.exporter()
    gone, stays = await site.submit(org, by_id=by_id), await site.submit(org, by_id=by_id)
    await site.rounds(exporter, 2 * MINUTE)
    del site.waits[gone]
    await site.rounds(site.exporter(), SOON)  # one that was started anew
    assert await site.held() == {stays}


async def test_what_another_exporter_saw_waiting_and_not_leaving(site: Site) -> None:
    stands_by, other = site.exporter(), site.exporter()
    await site.rounds(stands_by, ROUND)
    hold = await site.submit()
    await site.rounds(other, ROUND)
    del site.waits[hold]  # and the other one is killed
    await site.rounds(stands_by, SOON)
    assert await site.held() == set()


@pytest.mark.parametrize("by_id", [False, True])
async def test_what_another_exporter_ends_by_mistake_lives_on(site: Site, by_id: bool) -> None:
    right, wrong = site.exporter(), site.exporter()
    hold = await site.submit(by_id=by_id)
    for _ in range(20):
        site.clock[0] += ROUND
        await site.round(right)
        await site.round(wrong, frozenset({hold}))
    assert await site.held() == {hold}


@pytest.mark.parametrize("ended", [False, True])
async def test_an_end_that_the_ledger_lost_is_said_again(site: Site, ended: bool) -> None:
    exporter = site.exporter()
    hold = await site.submit()
    await site.rounds(exporter, 2 * MINUTE)
    tail = await site.tail()
    del site.waits[hold]
    await site.rounds(exporter, ROUND)
    if ended:
        await site.rounds(exporter, SOON)
        assert await site.held() == set()
    await site.lose(tail)
    assert await site.held() == {hold}
    await site.rounds(exporter, SOON)
    assert await site.held() == set()


async def test_an_end_by_another_exporter_that_the_ledger_lost(site: Site) -> None:
    stays, killed = site.exporter(), site.exporter()
    hold = await site.submit()
    await site.rounds(stays, 2 * MINUTE)
    tail = await site.tail()
    del site.waits[hold]
    await site.rounds(killed, MINUTE)
    assert await site.held() == set()
    await site.rounds(stays, ROUND)
    await site.lose(tail)
    await site.rounds(stays, SOON)
    assert await site.held() == set()


async def test_ends_of_which_the_ledger_lost_the_last_ones(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """More were said than one call takes; the server came back with what the first one wrote."""
    exporter = site.exporter()
    names, record = keys.of_org("acme"), await site.client.hget(keys.of_org("acme").holds, await site.submit())
    made = {f"acme.{number}": record for number in range(SCRIPT_BATCH + 1)}
    await site.client.hset(names.holds, mapping=made)
    await site.client.zadd(names.hold_expiry, dict.fromkeys(made, (site.clock[0] + 24 * 60 * MINUTE) // 1000))
    await site.client.hincrby(names.held, "", len(made) * CREDIT)
    site.waits |= dict.fromkeys(made, ("acme", None))
    await site.rounds(exporter, 2 * MINUTE)
    tails = []
    call = Script.__call__

    async def noting(self: Script, *arguments: Any) -> Any:
        answer = await call(self, *arguments)
        if self.name == "unlisted":
            tails.append(await site.tail())
        return answer

    monkeypatch.setattr(Script, "__call__", noting)
    site.waits.clear()
    await site.rounds(exporter, ROUND)
    await site.lose(tails[0])
    await site.rounds(exporter, SOON)
    assert await site.held() == set()


@pytest.mark.parametrize("by_id", [False, True])
async def test_what_waits_is_kept_by_one_whose_clock_went_back(site: Site, by_id: bool) -> None:
    """Of a source that does not list all that waits, so nobody looks when holds end."""
    wall = [T0]
    exporter = WaitingHolds(site.client, 15 * MINUTE, lambda: site.clock[0], "c", "")
    exporter._clock = lambda: wall[0]  # the ledger's server has another
    work = "job" if by_id else None
    request = AdmissionRequest(cluster="c", org="acme", preset="p", workload_id=work)
    hold = (await site.ledger.admissions.admit(request)).hold_id
    assert hold is not None
    for number in range(120):
        if number == 10:
            wall[0] -= 60 * MINUTE
        await exporter.keep([] if by_id else [hold], site.orgs, [("acme", "job")] if by_id else [])
        assert await site.held() == {hold}
        wall[0] += ROUND
        site.clock[0] += ROUND


async def test_what_waits_is_kept_where_the_ledger_lost_that_it_was(site: Site) -> None:
    """Of a source that does not list all that waits, so nobody looks when holds end."""
    exporter = WaitingHolds(site.client, 15 * MINUTE, lambda: site.clock[0], "c", "")
    hold = (await site.ledger.admissions.admit(AdmissionRequest(cluster="c", org="acme", preset="p"))).hold_id
    assert hold is not None
    expiry, moved = keys.of_org("acme").hold_expiry, 0
    for _ in range(120):
        tail, before = await site.tail(), await site.client.zscore(expiry, hold)
        await exporter.keep([hold], site.orgs)
        if await site.client.zscore(expiry, hold) != before:
            moved += 1
            if moved == 2:
                await site.lose(tail)
        site.clock[0] += ROUND
        assert await site.held() == {hold}
    assert moved < 7


@pytest.mark.parametrize("by_id", [False, True])
async def test_an_org_that_was_not_charged_is_looked_at_later(site: Site, by_id: bool) -> None:
    exporter = site.exporter()
    hold = await site.submit(LONG, by_id=by_id)
    await site.rounds(exporter, 2 * MINUTE)
    del site.waits[hold]
    for _ in range(20):
        site.clock[0] += ROUND
        await site.round(exporter, orgs=("acme",))
    assert await site.held() == {hold}
    await site.rounds(exporter, SOON)
    assert await site.held() == set()


@pytest.mark.parametrize("by_id", [False, True])
async def test_what_left_right_after_it_was_listed(site: Site, by_id: bool) -> None:
    exporter = site.exporter()
    await site.rounds(exporter, ROUND)
    hold = await site.submit(by_id=by_id)
    await site.rounds(exporter, ROUND)
    del site.waits[hold]
    await site.rounds(exporter, SOON)
    assert await site.held() == set()


async def test_more_at_once_than_one_answer_says(site: Site) -> None:
    exporter = site.exporter()
    stays = await site.submit()
    await site.rounds(exporter, ROUND)
    names, record = keys.of_org("acme"), await site.client.hget(keys.of_org("acme").holds, stays)
    made = {f"acme.{number}": record for number in range(6000)}
    await site.client.hset(names.holds, mapping=made)
    await site.client.zadd(names.hold_expiry, dict.fromkeys(made, (site.clock[0] + 24 * 60 * MINUTE) // 1000))
    await site.client.hincrby(names.held, "", 6000 * CREDIT)
    await site.rounds(exporter, SOON)
    assert await site.held() == {stays}


async def test_a_ledger_that_an_earlier_version_wrote(site: Site) -> None:
    """It had those that wait end a day after they were last said to."""
    gone, stays = await site.submit(), await site.submit()
    day = dict.fromkeys((gone, stays), (T0 + 24 * 60 * MINUTE) // 1000)
    await site.client.zadd(keys.of_org("acme").hold_expiry, day)
    del site.waits[gone]
    exporter = site.exporter()
    await site.rounds(exporter, SOON)
    assert await site.held() == {stays}
    # Its exporter runs still, and then ends.
    await site.client.zadd(keys.of_org("acme").hold_expiry, {stays: (site.clock[0] + 24 * 60 * MINUTE) // 1000})
    del site.waits[stays]
    await site.rounds(exporter, SOON)
    assert await site.held() == set()


@pytest.mark.slow
async def test_on_a_cluster(cluster_url: str) -> None:
    orgs = tuple(f"org-{number}" for number in range(8))
    async with opened(cluster_url, orgs) as site:
        exporter = site.exporter()
        made = [await site.submit(org, by_id=by_id) for org in orgs for by_id in (False, True)]
        await site.rounds(exporter, 2 * MINUTE)
        for hold in made[::3]:
            del site.waits[hold]
        await site.submit(is_listed=False, org=orgs[0])
        await site.rounds(exporter, SOON + MINUTE)
        assert await site.held() == set(site.waits)


EVENTS = st.sampled_from(
    ["submit", "submit", "submit by id", "refused", "leaves", "leaves", "killed", "away", "mistake", "crash", "nothing"]
)


@given(st.lists(st.tuples(EVENTS, st.integers(0, 10)), max_size=25))
async def test_two_exporters_crashes_and_mistakes(valkey_url: str, history: list[tuple[str, int]]) -> None:
    """What waits keeps its hold, and what does not ends, as long as some exporter sees right lists."""
    async with opened(valkey_url, ("acme",)) as site:
        exporters = [site.exporter(), site.exporter()]
        away = -1
        tail = now = await site.tail()
        for event, number in history:
            site.clock[0] += ROUND
            mistake = frozenset[str]()
            hold = sorted(site.waits)[number % len(site.waits)] if site.waits else ""
            if event.startswith("submit"):
                await site.submit(by_id=event == "submit by id")
            elif event == "refused":
                await site.submit(is_listed=False)
            elif event == "leaves":
                site.waits.pop(hold, None)
            elif event == "killed":
                exporters[number % 2] = site.exporter()
            elif event == "away":
                away = number % 3 - 1
            elif event == "mistake" and away == -1:
                mistake = frozenset({hold})
            elif event == "crash":
                await site.lose(tail)
                held = await site.held()
                site.waits = {hold: about for hold, about in site.waits.items() if hold in held}
            tail, now = now, await site.tail()
            for which, exporter in enumerate(exporters):
                if which != away:
                    await site.round(exporter, mistake if which == number % 2 else frozenset())
            assert set(site.waits) <= await site.held()
        await site.rounds(exporters[0 if away != 0 else 1], SOON)
        assert await site.held() <= set(site.waits)
