"""A hold lives as long as its job waits in the scheduler's queue, and ends soon after it does not any more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from exporter.books import Books
from exporter.health import LedgerHealth
from exporter.rounds import Rounds
from exporter.source_rounds import SourceRounds
from ledger import keys
from ledger.admission import AdmissionRequest, Decision
from ledger.clock import now_us
from ledger.connect import Client
from ledger.hold_ids import new_hold_id
from ledger.model import Code, Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from ledger.waiting_holds import Listing, WaitingHolds

pytestmark = pytest.mark.redis

T0 = 1_795_000_000_000_000
MINUTE = 60_000_000
CREDIT = 1_000_000
ORGS = ("acme", "beta }{corp", "long " * 40)


class Queue:
    """A scheduler that runs some jobs and has others wait, by their holds."""

    name = "queue"
    cluster = "c"

    def __init__(self, clock: list[int]) -> None:
        self.clock = clock
        self.waits: set[str] = set()
        self.runs: list[Observation] = []
        self.by_id: set[tuple[str, str]] = set()

    async def fetch(self, since_us: int | None) -> Snapshot:
        return Snapshot(
            self.name,
            self.cluster,
            self.clock[0],
            list(self.runs),
            pending_holds=frozenset(self.waits),
            pending=frozenset(self.by_id),
        )

    async def close(self) -> None:
        pass


@pytest.fixture
def clock() -> list[int]:
    return [T0]


@pytest.fixture
async def ledger(client: Client, valkey_url: str, clock: list[int]) -> AsyncIterator[Ledger]:
    async with open_ledger(valkey_url, epoch_us=T0, clock=lambda: clock[0]) as opened:
        # 15 credits for the 15 minutes of a hold.
        await opened.rates.publish(RatePlan("c", ((0, RateTable({"p": 60_000_000_000})),)))
        yield opened


def exporter(ledger: Ledger, queue: Queue) -> SourceRounds:
    async def nothing() -> None:
        pass

    rounds = Rounds(Books(ledger), queue, hold_us=15 * MINUTE)
    return SourceRounds(rounds, LedgerHealth(), after=nothing, clock=ledger.clock)


async def submit(ledger: Ledger, org: str, count: int = 1) -> Decision:
    return await ledger.admissions.admit(AdmissionRequest(cluster="c", org=org, preset="p", count=count))


@pytest.mark.parametrize("org", ORGS)
async def test_a_queue_is_never_longer_than_the_credits_reach(ledger: Ledger, clock: list[int], org: str) -> None:
    await ledger.accounts.grant(org, 20 * CREDIT, key="k", who="t")
    queue = Queue(clock)
    rounds = exporter(ledger, queue)
    await rounds.once()  # reads the orgs
    first = await submit(ledger, org)
    assert first.hold_id is not None
    queue.waits = {first.hold_id}
    for minute in range(0, 120, 4):
        clock[0] = T0 + minute * MINUTE
        await rounds.once()
        assert (await submit(ledger, org)).code is Code.NO_CREDITS
        if minute == 60:
            rounds = exporter(ledger, queue)
    # It starts: from then on its next 15 minutes are what is set aside.
    queue.waits = set()
    queue.runs = [Observation("job", "job", org, "", "", "p", "", clock[0], hold_id=first.hold_id)]
    await rounds.once()
    balance = await ledger.accounts.balance(org)
    assert (balance.holds, balance.held_micro) == (0, 15 * CREDIT)
    assert (await verify(ledger))["ok"]


async def test_the_hold_of_a_job_that_left_the_queue_ends(ledger: Ledger, clock: list[int]) -> None:
    await ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="t")
    queue = Queue(clock)
    rounds = exporter(ledger, queue)
    array = await submit(ledger, "acme", 4)
    assert array.hold_id is not None
    queue.waits = {array.hold_id}
    for minute in range(0, 60, 5):
        clock[0] = T0 + minute * MINUTE
        await rounds.once()
    assert (await ledger.accounts.balance("acme")).held_micro == 60 * CREDIT
    queue.waits = set()  # cancelled
    clock[0] += 16 * MINUTE
    await rounds.once()
    assert (await ledger.accounts.balance("acme")).held_micro == 0
    # Said to wait again, it does not come back, nor does one that nobody ever made.
    queue.waits = {array.hold_id, new_hold_id("acme"), new_hold_id("nobody"), "no hold", "::0.x", "."}
    await rounds.once()
    assert [(b.org, b.holds) for b in await ledger.accounts.balances()] == [("acme", 0)]
    assert (await verify(ledger))["ok"]


@pytest.mark.parametrize("org", ORGS)
async def test_work_that_names_no_hold_keeps_it_by_its_own_id(ledger: Ledger, clock: list[int], org: str) -> None:
    await ledger.accounts.grant(org, 20 * CREDIT, key="k", who="t")
    queue = Queue(clock)
    rounds = exporter(ledger, queue)
    request = AdmissionRequest(cluster="c", org=org, preset="p", workload_id="job-1")
    assert (await ledger.admissions.admit(request)).allowed
    queue.by_id = {(org, "job-1"), (org, "never asked"), ("nobody", "job-1")}
    for minute in range(0, 120, 4):
        clock[0] = T0 + minute * MINUTE
        await rounds.once()
        assert (await ledger.accounts.balance(org)).held_micro == 15 * CREDIT
    queue.by_id = set()  # cancelled
    clock[0] += 16 * MINUTE
    await rounds.once()
    assert (await ledger.accounts.balance(org)).held_micro == 0
    assert (await verify(ledger))["ok"]


@pytest.mark.parametrize("off_us", [-20 * MINUTE, -40_000_000, 20 * MINUTE])
async def test_holds_live_by_the_servers_clock(
    client: Client, valkey_url: str, monkeypatch: pytest.MonkeyPatch, off_us: int
) -> None:
    """That of an exporter may be wrong: what waits is held for all the same, and no one list ends it."""
    monkeypatch.setattr("ledger.waiting_holds.now_us", lambda: now_us() + off_us)
    async with open_ledger(valkey_url, epoch_us=T0) as ledger:
        await ledger.rates.publish(RatePlan("c", ((0, RateTable({"p": 4_000_000_000})),)))
        await ledger.accounts.grant("acme", 10 * CREDIT, key="k", who="t")
        job = AdmissionRequest(cluster="c", org="acme", preset="p")
        plain, listed = [
            (await ledger.admissions.admit(replace(job, source=source))).hold_id or "" for source in ("", "queue")
        ]
        holds = WaitingHolds(ledger.client, 15 * MINUTE, ledger.given_clock, "c", "queue")
        names = keys.of_org("acme")

        async def lives(hold: str) -> float:
            """Minutes."""
            return (await ledger.client.zscore(names.hold_expiry, hold) * 1000 - now_us()) / MINUTE

        await holds.keep([plain, listed], ["acme"])
        assert 14 < await lives(plain) <= 15
        assert 35 * 60 < await lives(listed) <= 36 * 60
        record = json.loads(await ledger.client.hget(names.holds, listed) or b"")
        long_ago = json.dumps(record | {"at": "2026-01-01T00:00:00Z"})
        await ledger.client.hset(names.holds, listed, long_ago)  # type: ignore[misc]
        await holds.end_unlisted(["acme"], Listing(now_us() + off_us, frozenset(), frozenset()), 30_000_000)
        assert 0.3 < await lives(listed) <= 0.5
        assert 14 < await lives(plain) <= 15
