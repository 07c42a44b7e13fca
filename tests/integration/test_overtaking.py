"""Two exporters on one source: one stands still anywhere in a round while the other goes on, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Coroutine
from math import floor
from typing import Any, ClassVar

import pytest
from redis.asyncio import UnixDomainSocketConnection

from exporter.rounds import Rounds
from ledger.connect import connect
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from tests.crash_history import CLUSTER, DISK_NANO, GIGA, SOURCE, History
from tests.crash_worker import rounds_of
from tests.histories import HOUR, MINUTE, ORGS, PRESETS, T0, Life, Prices, renamed, snapshot
from tests.integration.test_charges_equal_the_model import Bench

pytestmark = pytest.mark.redis

THREE = (*ORGS, "gamma")
POLLS = tuple(T0 + HOUR + number * 17 * MINUTE + 1 for number in range(7))


def life(number: int, org: int, start: int = T0 + 7, end: int | None = None) -> Life:
    pauses = ((POLLS[1] - MINUTE, POLLS[1] + MINUTE),) if number == 1 else ()
    return Life(f"job-{number}", ORGS[org], "vision", "ann", "cpu-small", "", start, end, pauses)


def history(lives: tuple[Life, ...], moves: dict[int, list[int]]) -> History:
    prices = Prices()
    prices.put(0, {"cpu-small": 9_999_999_999, "gpu-large": 0, "free": 0}, {"vllm": 0})
    return History(POLLS, lives, moves, {}, (), prices, HOUR)


def just_before(poll: int) -> int:
    return POLLS[poll] - MINUTE // 2


AT_2_AND_4 = [just_before(2), just_before(4)]
HISTORIES = {
    "there and back": history((life(0, 0), life(1, 1)), {0: [just_before(2), just_before(3)]}),
    "there, back and there": history((life(0, 0),), {0: [just_before(p) for p in (2, 3, 4)]}),
    "two pass each other": history((life(0, 0), life(1, 1)), {0: [just_before(2)], 1: AT_2_AND_4}),
    "new and moved at once": history((life(0, 0, start=just_before(2) - 1),), {0: [just_before(3), just_before(4)]}),
    "moved, then over": history((life(0, 0, end=just_before(3)),), {0: [just_before(2)]}),
    "over and moved at once": history((life(0, 0, end=just_before(2)),), {0: [just_before(2)]}),
}  # fmt: skip


class Interrupted(UnixDomainSocketConnection):
    """Lets `guest` go first at a given call: before it is sent (from 1; 0: never)."""

    call: ClassVar[int] = 0
    sent: ClassVar[int] = 0
    guest: ClassVar[Callable[[], Awaitable[None]]]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        Interrupted.sent += 1
        if Interrupted.sent == Interrupted.call:
            await Interrupted.guest()
        await super().send_packed_command(command, check_health)


async def interrupt(ledger: Ledger) -> None:
    """From here on the ledger's calls are those of an exporter that is overtaken."""
    pool: Any = ledger.client.connection_pool
    await pool.disconnect()
    pool.connection_class = Interrupted
    pool.reset()
    await pool.release(await pool.get_connection())  # its own first commands are not calls of a round
    Interrupted.sent = 0


async def step(ledger: Ledger, rounds: Rounds, history: History) -> bool:
    """One poll that the ledger does not have; False: there is none."""
    since = await ledger.charging.source_mark(SOURCE)
    poll = history.after(since)
    if poll is not None:
        await rounds.take(history.snapshot(poll), since)
    return poll is not None


async def overtaken(url: str, history: History, poll: int, call: int, polls: int, is_new: bool) -> int:
    """The first exporter stands still at one call of its round of `poll` while a second one does so many rounds.

    `is_new`: the second one begins only then, else it has done every other round before. How many calls the first
    one's round took.
    """
    async with connect(url, None) as client:
        await client.flushall()
    async with open_ledger(url, epoch_us=T0) as one, open_ledger(url, epoch_us=T0) as other:
        await one.rates.publish(history.plan())
        first, second = rounds_of(one), rounds_of(other)
        for number in range(poll):
            turn = (one, first) if is_new or number % 2 else (other, second)
            await step(*turn, history)

        async def overtake() -> None:
            for _ in range(polls):
                await step(other, second, history)

        Interrupted.call, Interrupted.guest = call, overtake
        since = await one.charging.source_mark(SOURCE)
        await interrupt(one)
        await first.take(history.snapshot(poll), since)
        calls = Interrupted.sent
        Interrupted.call = 0
        for ledger, rounds in itertools.cycle([(one, first), (other, second)]):
            if not await step(ledger, rounds, history):
                break
        it = Bench(one, url)
        runs, buckets = history.expected()
        where = f"poll {poll}, call {call}, {polls} polls, {'new' if is_new else 'old'}"
        assert {run: micro for run, micro in (await it.totals()).items() if micro} == runs, where
        assert await it.buckets() == buckets, where
        report = await verify(one)
        assert report["ok"], (where, report["differences"])
        return calls


@pytest.mark.parametrize("is_new", [False, True], ids=["takes turns", "begins then"])
@pytest.mark.parametrize("name", HISTORIES)
async def test_an_exporter_overtaken_at_any_call_charges_nothing_twice_and_loses_nothing(
    name: str, is_new: bool, valkey_url: str
) -> None:
    it, call = HISTORIES[name], 1
    while call <= await overtaken(valkey_url, it, 2, call, 2, is_new):
        call += 1
    assert call > 12


# -- any order at all -------------------------------------------------------------------------------------


class Died(Exception):
    """An exporter was killed."""


class Order:
    """Who makes the next call, drawn at random: only one does at a time, so a seed tells it all.

    `calls_left`: by exporter, calls until it dies; negative: it does not.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.calls_left: dict[int, int] = {}
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._stir = asyncio.Event()
        self._patience = {number: rng.choice([0.02, 0.2, 1.0]) for number in range(3)}

    async def turn(self, number: int) -> None:
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._stir.set()
        await self._waiting[number]
        self.calls_left[number] = self.calls_left.get(number, -1) - 1
        if self.calls_left[number] == -1:
            raise Died

    async def run(self, exporters: list[Coroutine[Any, Any, None]]) -> None:
        tasks = [asyncio.create_task(exporter) for exporter in exporters]
        for task in tasks:
            task.add_done_callback(lambda _: self._stir.set())
        last = 0
        try:
            while not all(task.done() for task in tasks):
                while any(n not in self._waiting and not task.done() for n, task in enumerate(tasks)):
                    self._stir.clear()
                    await self._stir.wait()
                ready = sorted(self._waiting)
                if ready and (last not in ready or self._rng.random() > 0.8):
                    last = self._rng.choices(ready, [self._patience[number] for number in ready])[0]
                if ready:
                    self._waiting.pop(last).set_result(None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            task.result()


def ordered(order: Order, number: int) -> type[UnixDomainSocketConnection]:
    class Ordered(UnixDomainSocketConnection):
        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            await order.turn(number)
            await super().send_packed_command(command, check_health)

    return Ordered


class Moving:
    """Jobs that move between three orgs again and again; `poll` is what is listed now, as time goes on."""

    def __init__(self, rng: random.Random) -> None:
        self.polls = sorted(T0 + at for at in rng.sample(range(MINUTE, 20 * HOUR), 8))
        self.prices = Prices()
        for at in (0, *sorted(rng.sample(range(T0, T0 + 20 * HOUR), 2))):
            self.prices.put(at, {preset: rng.randrange(10**10) for preset in PRESETS}, {})
        self._rng = rng
        self._at = 0
        self._lives = [self._life(number) for number in range(2)]
        self._owners = {
            life: sorted((T0 + at, rng.choice(THREE)) for at in rng.sample(range(20 * HOUR), rng.randrange(10)))
            for life in self._lives
        }

    def _life(self, number: int) -> Life:
        marks = sorted(T0 + at for at in self._rng.sample(range(-HOUR, 18 * HOUR), self._rng.choice([2, 4])))
        end = None if self._rng.random() < 0.4 else marks[-1]
        pauses = ((marks[1], marks[2]),) if len(marks) == 4 else ()
        who = self._rng.choice(THREE), "vision", "ann", self._rng.choice(PRESETS), ""
        return Life(f"job-{number}", *who, marks[0], end, pauses)

    def snapshot(self, at: int) -> Snapshot:
        lives_ = [renamed(life, org=self._owner(life, at)) for life in self._lives]
        return snapshot(lives_, at, 100 * HOUR, frozenset(), True)

    def _owner(self, life: Life, at: int) -> str:
        return [life.org, *(org for since, org in self._owners[life] if since <= at)][-1]

    def now(self) -> Snapshot:
        if self._rng.random() < 0.7:
            self._at = min(self._at + 1, len(self.polls) - 1)
        return self.snapshot(self.polls[self._at])

    def is_over(self) -> bool:
        return self._at == len(self.polls) - 1

    def costs(self) -> dict[str, int]:
        """Micro-credits by run, up to the last poll."""
        last = self.polls[-1]
        costs = {f"{life.id}@{life.start}": floor(self.prices.cost(life, last, 0)) for life in self._lives}
        return {run: micro for run, micro in costs.items() if micro}


class Stored(Moving):
    """Two volumes that move in the same way."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self._sizes = [rng.randrange(1000 * GIGA) for _ in self._lives]

    def snapshot(self, at: int) -> Snapshot:
        volumes = [
            Observation(f"vol-{n}", "storage", self._owner(life, at), "vision", "", "disk", bytes=size)
            for n, (life, size) in enumerate(zip(self._lives, self._sizes, strict=True))
        ]
        return Snapshot(SOURCE, CLUSTER, at, volumes)

    def costs(self) -> dict[str, int]:
        since, until = self.polls[0], self.polls[-1]
        costs = {
            f"vol-{n}@None": DISK_NANO * size * (until - since) // (GIGA * 1000 * HOUR)
            for n, size in enumerate(self._sizes)
        }
        return {run: micro for run, micro in costs.items() if micro}


async def export(url: str, cluster: Moving, order: Order, number: int, rng: random.Random) -> None:
    """Rounds of whatever is listed just then; now and then the exporter dies in one, and a new one begins."""
    async with open_ledger(url, epoch_us=T0) as ledger:
        pool: Any = ledger.client.connection_pool
        await pool.disconnect()
        pool.connection_class = ordered(order, number)
        pool.reset()
        rounds = rounds_of(ledger)
        while not cluster.is_over():
            order.calls_left[number] = rng.randrange(40) if rng.random() < 0.2 else -1
            try:
                since = await ledger.charging.source_mark(SOURCE)
                await rounds.take(cluster.now(), since)
            except Died:
                await pool.disconnect()
                rounds = rounds_of(ledger)
        order.calls_left[number] = -1


async def compete(url: str, rng: random.Random, cluster: Moving, exporters: int, where: object) -> None:
    order = Order(rng)
    async with connect(url, None) as client:
        await client.flushall()
    async with open_ledger(url, epoch_us=T0) as ledger:
        steps = cluster.prices.plan(CLUSTER).steps
        disk = {"disk": DISK_NANO}
        await ledger.rates.publish(
            RatePlan(CLUSTER, tuple((at, RateTable(table.presets, table.apps, disk)) for at, table in steps))
        )
        if isinstance(cluster, Stored):  # what has no start of its own is charged from when it was seen first
            await rounds_of(ledger).take(cluster.snapshot(cluster.polls[0]), None)
        await order.run([export(url, cluster, order, n, rng) for n in range(exporters)])
        since = await ledger.charging.source_mark(SOURCE)
        assert not (await rounds_of(ledger).take(cluster.snapshot(cluster.polls[-1]), since)).failed
        charged = {run: micro for run, micro in (await Bench(ledger, url).totals()).items() if micro}
        assert charged == cluster.costs(), where
        report = await verify(ledger)
        assert report["ok"], (where, report["differences"])


@pytest.mark.parametrize("exporters", [2, 3])
@pytest.mark.parametrize("seed", range(10))
async def test_in_whatever_order_exporters_come_each_run_is_charged_its_whole_cost_once(
    seed: int, exporters: int, valkey_url: str
) -> None:
    for number in range(15):
        rng = random.Random(f"{seed} {number}")
        await compete(valkey_url, rng, Moving(rng), exporters, number)


@pytest.mark.parametrize("exporters", [2, 3])
@pytest.mark.parametrize("seed", range(2))
async def test_a_volume_that_is_let_go_and_not_taken_at_once_is_charged_for_the_time_in_between(
    seed: int, exporters: int, valkey_url: str
) -> None:
    for number in range(30):
        rng = random.Random(f"{seed} {number}")
        await compete(valkey_url, rng, Stored(rng), exporters, number)
