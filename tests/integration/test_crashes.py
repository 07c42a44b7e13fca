"""Invariants 2 to 8 under kill -9 of everything, at any moment, with and without a lost tail of the log."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from redis.asyncio import Redis, UnixDomainSocketConnection

from exporter.rounds import Rounds
from ledger import keys, lua
from ledger.connect import Client, again, connect
from ledger.errors import LedgerUnavailable
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.org_state import OrgState
from ledger.plan import Plan
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from tests.crash_history import SOURCE, History
from tests.crash_worker import DoomedConnection, Nursery, doom, give, rounds_of
from tests.histories import HOUR, ORGS, T0
from tests.integration.test_charges_equal_the_model import Bench
from tests.servers import ServerProcess, cluster_options, form_cluster, free_port, newest_log, wait_until

pytestmark = pytest.mark.redis

MakeServer = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "children.log")
    yield nursery
    nursery.close()


async def publish_for_good(ledger: Ledger, history: History, *servers: ServerProcess) -> None:
    """The rates are in the servers' logs when this returns: with `everysec` they might get there after the answer."""
    admins = [Redis(unix_socket_path=str(server.socket)) for server in servers]
    for admin in admins:
        await admin.config_set("appendfsync", "always")
    await ledger.rates.publish(history.plan())
    for admin in admins:
        await admin.config_set("appendfsync", "everysec")
        await admin.aclose()


async def equals_the_model(ledger: Ledger, history: History, polls: int | None = None) -> None:
    it = Bench(ledger, "")
    runs, buckets = history.expected(polls)
    charged = {run: micro for run, micro in (await it.totals()).items() if micro}
    assert charged == runs
    assert await it.buckets() == buckets
    report = await verify(ledger)
    assert report["ok"], report["differences"]


# -- random moments ---------------------------------------------------------------------------------------


class Chaos:
    """Exporters and a customer at work on a server, all of them killed at random moments."""

    def __init__(self, server: ServerProcess, nursery: Nursery, directory: Path, seed: int, **history: Any) -> None:
        self.server = server
        self.nursery = nursery
        self.rng = random.Random(seed)
        self.told = {"seed": seed, **history}
        self.history = History.of(**self.told)
        self.log = directory / "customer.log"
        self.kills: Counter[str] = Counter()
        self.cuts: list[tuple[int, int]] = []
        self.floor = 0
        self._exporters: list[int] = []
        self._customer = 0

    async def run(self, kills: int, exporters: int, cuts: bool) -> None:
        async with open_ledger(self.server.url, epoch_us=T0) as ledger:
            await publish_for_good(ledger, self.history, self.server)
        self.floor = self.server.log_size()
        self._exporters = [self._export() for _ in range(exporters)]
        self._customer = self._spend()
        while self.kills.total() < kills:
            await asyncio.sleep(self.rng.random() * self.rng.choice([0.005, 0.02, 0.08]))  # the random moment itself
            self._kill(cuts)
        wait_until(self._exporters_are_done, 120, "the exporters' end")
        # The last cut may have taken back what an exporter had charged that was done by then; a real one never is.
        self._exporters = [self._export()]
        wait_until(self._exporters_are_done, 120, "the end of the one that looks once more")
        self.nursery.kill9(self._customer)

    def _kill(self, cuts: bool) -> None:
        whom = self.rng.choices(["exporter", "server", "customer"], [0.6, 0.25, 0.15])[0]
        if whom == "server":
            self.server.kill9()
            if cuts and self.rng.random() < 0.7:
                room = self.server.log_size() - self.floor
                self.server.cut_tail(self.rng.randrange(min(room, self.rng.choice([100, 10_000, 100_000])) + 1))
                self.cuts.append((time.monotonic_ns(), self.server.log_size()))
            self.server.start()
            self.kills[whom] += 1
        elif whom == "customer":
            self.kills[whom] += self.nursery.kill9(self._customer)
            self._customer = self._spend()
        else:
            victim = self.rng.randrange(len(self._exporters))
            self.kills[whom] += self.nursery.kill9(self._exporters[victim])
            self._exporters[victim] = self._export()

    def _export(self) -> int:
        return self.nursery.start("export", url=self.server.url, history=self.told)

    def _spend(self) -> int:
        return self.nursery.start(
            "spend", url=self.server.url, seed=self.rng.randrange(10**9), log=str(self.log),
            directory=str(self.server.directory),
        )  # fmt: skip

    def _exporters_are_done(self) -> bool:
        self._exporters = [pid for pid in self._exporters if self.nursery.status(pid) is None]
        return not self._exporters

    async def grants_are_exact(self, ledger: Ledger) -> None:
        """Acknowledged grants are there unless their part of the log was cut off; asked again, none is given twice."""
        notes = [json.loads(line) for line in self.log.read_text().splitlines()]
        asked = {note["asked"]["key"]: note["asked"] for note in notes if "asked" in note}
        present = {record.key for org in ORGS for record in await ledger.accounts.grants(org)}
        for note in notes:
            if "acknowledged" in note and all(kept > note["log_size"] for at, kept in self.cuts if at > note["since"]):
                assert note["acknowledged"] in present
        assert present <= asked.keys()
        bodies = list(asked.values())
        known = await asyncio.gather(*(give(ledger, body) for body in bodies))
        assert {body["key"] for body, was_known in zip(bodies, known, strict=True) if was_known} == present
        expected: dict[str, int] = defaultdict(int)
        for body in asked.values():
            expected[body["org"]] += body["micro"]
        for org, micro in expected.items():
            assert (await ledger.accounts.balance(org)).granted_micro == micro
            entries = [entry async for entry in journal(ledger, org) if entry["type"] == "grant"]
            assert sorted(entry["key"] for entry in entries) == sorted(k for k, b in asked.items() if b["org"] == org)


async def journal(ledger: Ledger, org: str) -> AsyncIterator[dict[str, Any]]:
    cursor = None
    while True:
        entries, cursor = await ledger.accounts.journal(org, cursor)
        for entry in entries:
            yield entry
        if cursor is None:
            return


async def no_hold_leaks(ledger: Ledger) -> None:
    deadline = time.monotonic() + 10
    for org in ORGS:
        while (await ledger.accounts.balance(org)).holds:
            assert time.monotonic() < deadline, "holds outlived their time"
            await asyncio.sleep(0.02)
        assert not await ledger.client.hgetall(keys.of_org(org).held)


async def chaos(
    server: ServerProcess, nursery: Nursery, directory: Path, seed: int, *, kills: int, exporters: int, cuts: bool,
    polls: int,
) -> None:  # fmt: skip
    it = Chaos(server, nursery, directory, seed, polls=polls, plain=cuts)
    began = time.monotonic()
    await it.run(kills, exporters, cuts)
    async with open_ledger(server.url, epoch_us=T0) as ledger:
        await equals_the_model(ledger, it.history)
        last = len(it.history.polls) - 1
        await rounds_of(ledger).take(it.history.snapshot(last), it.history.polls[last])
        await equals_the_model(ledger, it.history)
        await again(lambda: ledger.client.config_set("appendfsync", "always"))  # so that no grant waits for a second
        await it.grants_are_exact(ledger)
        await no_hold_leaks(ledger)
        await equals_the_model(ledger, it.history)
    print(f"seed {seed}: {dict(it.kills)}, {len(it.cuts)} cuts, {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("cuts", [False, True], ids=["whole log", "lost tail"])
async def test_kill_9_at_random_moments(make_server: MakeServer, nursery: Nursery, tmp_path: Path, cuts: bool) -> None:
    await chaos(make_server(), nursery, tmp_path, 1, kills=30, exporters=2, cuts=cuts, polls=300)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "exporters", "cuts", "binary"),
    [
        pytest.param(2, 1, False, "valkey", id="one exporter"),
        pytest.param(3, 2, False, "redis", id="two exporters, Redis 7.0", marks=pytest.mark.redis_server),
        pytest.param(4, 1, True, "valkey", id="one exporter, lost tails"),
        pytest.param(5, 2, True, "valkey", id="two exporters, lost tails"),
    ],
)
async def test_kill_9_hundreds_of_times(
    make_server: MakeServer, nursery: Nursery, tmp_path: Path, seed: int, exporters: int, cuts: bool, binary: str
) -> None:
    server = make_server(binary=binary)
    await chaos(server, nursery, tmp_path, seed, kills=75, exporters=exporters, cuts=cuts, polls=600)


@pytest.mark.slow
async def test_kill_9_and_lost_tails_of_the_nodes_of_a_cluster(make_server: MakeServer, nursery: Nursery) -> None:
    nodes = [make_server(port=free_port(), options=cluster_options()) for _ in range(3)]
    await form_cluster(nodes)
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    told = {"seed": 6, "polls": 250, "plain": True}
    history, rng = History.of(**told), random.Random(6)
    async with open_ledger(url, epoch_us=T0) as ledger:
        await publish_for_good(ledger, history, *nodes)
    floors = {node: node.log_size() for node in nodes}
    exporters = [nursery.start("export", url=url, history=told) for _ in range(2)]
    for _ in range(30):
        await asyncio.sleep(rng.random() * rng.choice([0.02, 0.1]))  # the random moment itself
        if rng.random() < 0.6:
            victim = rng.randrange(2)
            nursery.kill9(exporters[victim])
            exporters[victim] = nursery.start("export", url=url, history=told)
        else:
            node = rng.choice(nodes)
            node.kill9()
            node.cut_tail(rng.randrange(min(node.log_size() - floors[node], 10_000) + 1))
            node.start()
    wait_until(lambda: all(nursery.status(pid) is not None for pid in exporters), 120, "the exporters' end")
    last = nursery.start("export", url=url, history=told)  # see Chaos.run
    wait_until(lambda: nursery.status(last) is not None, 120, "the end of the one that looks once more")
    async with open_ledger(url, epoch_us=T0) as ledger:
        await equals_the_model(ledger, history)


# -- every moment -----------------------------------------------------------------------------------------


async def copy(client: Client, to: int) -> None:
    """What is in the client's database also in another one, and nothing else there."""
    names = await client.keys("*")
    async with client.pipeline(transaction=False) as pipe:
        pipe.select(to)
        pipe.flushdb()
        pipe.select(0)
        for name in names:
            pipe.copy(name, name, to)
        await pipe.execute()


async def calls_of_a_round(url: str, history: History, poll: int) -> int:
    async with open_ledger(url, epoch_us=T0) as ledger:
        rounds = rounds_of(ledger)
        since = await ledger.charging.source_mark(SOURCE)
        await doom(ledger, 0, sends_first=False)
        await rounds.take(history.snapshot(poll), since)
        return DoomedConnection.sent


async def dies_at_every_call(url: str, nursery: Nursery, polls: int, rounds: range) -> int:
    """Kills an exporter before and after every call of these rounds; how often."""
    told = {"seed": 11, "polls": polls}
    history = History.of(**told)
    spare = f"{url}?db=1"
    deaths = 0
    async with open_ledger(url, epoch_us=T0) as ledger:
        await ledger.rates.publish(history.plan())
        going = rounds_of(ledger)
        for poll in range(rounds.stop):
            if poll in rounds:
                for _ in range(2):  # the first time the server may have to be sent a script
                    await copy(ledger.client, 1)
                    calls = await calls_of_a_round(spare, history, poll)
                for call, sends_first in itertools.product(range(1, calls + 1), (False, True)):
                    await copy(ledger.client, 1)
                    pid = nursery.start("die", url=spare, history=told, poll=poll, call=call, sends_first=sends_first)
                    wait_until(lambda pid=pid: nursery.status(pid) is not None)
                    assert nursery.status(pid) == signal.SIGKILL
                    deaths += 1
                    await goes_on(spare, history, poll)
            await going.take(history.snapshot(poll), await ledger.charging.source_mark(SOURCE))
    return deaths


async def goes_on(url: str, history: History, poll: int) -> None:
    """A new exporter takes up where the dead one left it, and is exact after this round and the next."""
    async with open_ledger(url, epoch_us=T0) as ledger:
        rounds = rounds_of(ledger)
        following = range(poll, min(poll + 2, len(history.polls)))
        for number in following:
            await rounds.take(history.snapshot(number), await ledger.charging.source_mark(SOURCE))
        await equals_the_model(ledger, history, following.stop)


async def test_kill_9_before_and_after_every_call_of_a_round(make_server: MakeServer, nursery: Nursery) -> None:
    assert await dies_at_every_call(make_server().url, nursery, 12, range(5, 6)) > 20


@pytest.mark.slow
async def test_kill_9_before_and_after_every_call_of_many_rounds(make_server: MakeServer, nursery: Nursery) -> None:
    assert await dies_at_every_call(make_server().url, nursery, 12, range(2, 12, 3)) > 100


def job(number: int, ended_hour: int | None = None, org: str = "acme") -> Observation:
    ended = None if ended_hour is None else T0 + ended_hour * HOUR
    return Observation(f"job-{number}", "job", org, "vision", "ann", "small", "", T0, ended)


async def take(rounds: Rounds, hour: int, *workloads: Observation) -> None:
    since = await rounds.ledger.charging.source_mark(SOURCE)
    report = await rounds.take(Snapshot(SOURCE, "default", T0 + hour * HOUR, workloads), since)
    assert not report.failed


async def test_an_exporter_that_outlives_a_lost_tail_charges_what_was_lost_again(make_server: MakeServer) -> None:
    server = make_server()
    async with open_ledger(server.url, epoch_us=T0) as ledger:
        await ledger.rates.publish(RatePlan("default", ((0, RateTable({"small": 10**9})),)))
        rounds = rounds_of(ledger)
        await take(rounds, 1, job(1))
        before = server.log_size()
        await take(rounds, 2, job(1, ended_hour=2))
        server.stop()
        server.cut_tail(server.log_size() - before)
        server.start()
        await take(rounds, 3, job(1, ended_hour=2))
        await take(rounds, 4)
        assert (await ledger.accounts.balance("acme")).spent_micro == 2_000_000
        assert (await verify(ledger))["ok"]


async def rewritten(ledger: Ledger) -> None:
    """Returns once the server has no rewriting of its log under way."""
    client: Any = ledger.client
    deadline = time.monotonic() + 15
    while (await client.info("persistence"))["aof_rewrite_in_progress"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("binary", ["valkey", pytest.param("redis", marks=pytest.mark.redis_server)])
async def test_a_torn_transaction_is_not_applied_by_a_later_restart(make_server: MakeServer, binary: str) -> None:
    server = make_server(binary=binary)
    async with open_ledger(server.url, epoch_us=T0) as ledger:
        await ledger.rates.publish(RatePlan("default", ((0, RateTable({"small": 10**9})),)))
        rounds = rounds_of(ledger)
        await take(rounds, 1, job(1))
        await take(rounds, 2, job(1))
        server.kill9()
        log = newest_log(server.directory).read_bytes()
        server.cut_tail(len(log) - log.rindex(b"HINCRBY") - 3)  # inside of the charge
        server.start()
        if binary == "redis":  # which leaves a transaction without its end in its log: docs/architecture.md
            await again(ledger.client.bgrewriteaof)  # its connection is one of before
            wait_until(lambda: newest_log(server.directory).name.endswith(".2.incr.aof"))
            await rewritten(ledger)
        await take(rounds, 3, job(1))
        server.kill9()
        server.start()
        await take(rounds, 4, job(1))
        assert (await ledger.accounts.balance("acme")).spent_micro == 4_000_000
        assert (await verify(ledger))["ok"]


async def test_a_move_between_orgs_that_was_cut_short_and_then_taken_back(valkey_url: str) -> None:
    class Cut(Exception):
        """The exporter's end."""

    async with connect(valkey_url, None) as client:
        await client.flushall()
    async with open_ledger(valkey_url, epoch_us=T0) as ledger:
        await ledger.rates.publish(RatePlan("default", ((0, RateTable({"small": 10**9})),)))
        commit = ledger.charging.commit

        async def dies_at_acme(plan: Plan, state: OrgState) -> bool:
            if plan.org == "acme":
                raise Cut
            return await commit(plan, state)

        for hour, org in enumerate(["acme", "beta", "acme", "beta", "beta"], 1):
            rounds = rounds_of(ledger)
            if hour == 3:
                ledger.charging.commit = dies_at_acme  # type: ignore[method-assign]
                with pytest.raises(Cut):
                    await take(rounds, hour, job(1, org=org))
                ledger.charging.commit = commit  # type: ignore[method-assign]
            else:
                await take(rounds, hour, job(1, org=org))
        assert (await ledger.accounts.balance("acme")).spent_micro == 2_000_000
        assert (await ledger.accounts.balance("beta")).spent_micro == 3_000_000
        assert (await verify(ledger))["ok"]


async def test_a_grant_that_the_log_lost_before_it_was_durable_is_not_acknowledged_unseen(
    make_server: MakeServer,
) -> None:
    server = make_server()

    class Cut(UnixDomainSocketConnection):
        left = 1

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            if Cut.left and b"WAITAOF" in b"".join([command] if isinstance(command, bytes) else command):
                Cut.left = 0
                server.kill9()
                server.cut_tail(server.log_size() - before)
                server.start()
            await super().send_packed_command(command, check_health)

    async with open_ledger(server.url, epoch_us=T0) as ledger:
        await ledger.accounts.grant("acme", 1, key="first", who="test")
        before = server.log_size()
        pool: Any = ledger.client.connection_pool
        await pool.disconnect()
        pool.connection_class = Cut
        pool.reset()
        await ledger.accounts.grant("acme", 2, key="second", who="test")
        assert not Cut.left
        assert (await ledger.accounts.balance("acme")).granted_micro == 3


# -- a full disk ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of its own with room for 2 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", where], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mount.stderr.strip()}")
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)


def fill(disk: Path) -> Path:
    """Takes all the room there is; returns what to remove to make room again."""
    balloon = disk / "balloon"
    with balloon.open("wb", buffering=0) as f, suppress(OSError):
        while True:
            f.write(bytes(4096))
    return balloon


@pytest.mark.parametrize("binary", ["valkey", pytest.param("redis", marks=pytest.mark.redis_server)])
async def test_a_full_disk_is_said_so_and_costs_nothing(
    small_disk: Path, binary: Literal["valkey", "redis"], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History.of(seed=7, polls=120)
    server = ServerProcess(small_disk / "server", binary).start()
    try:
        async with open_ledger(server.url, epoch_us=T0) as ledger:
            await ledger.rates.publish(history.plan())
            rounds = rounds_of(ledger)

            async def polls(until: int = len(history.polls)) -> None:
                while (number := history.after(since := await ledger.charging.source_mark(SOURCE))) is not None:
                    if number >= until:
                        return
                    await rounds.take(history.snapshot(number), since)

            await polls(20)
            await ledger.accounts.grant("acme", 5, key="before", who="test")
            balloon = fill(small_disk)
            monkeypatch.setattr(lua, "_WAIT_MS", 200)
            with pytest.raises(LedgerUnavailable, match="disk"):
                await polls()
            with pytest.raises(LedgerUnavailable, match="disk"):
                await ledger.accounts.grant("acme", 5, key="meanwhile", who="test")
            assert (await ledger.accounts.balance("acme")).granted_micro in (5, 10)
            assert (await verify(ledger))["ok"]

            balloon.unlink()
            deadline = time.monotonic() + 15
            while True:
                try:
                    await ledger.accounts.grant("acme", 5, key="meanwhile", who="test")
                    break
                except LedgerUnavailable:
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.05)
            await polls()
            await equals_the_model(ledger, history)
        server.kill9()
        server.start()
        async with open_ledger(server.url, epoch_us=T0) as ledger:
            await equals_the_model(ledger, history)
            assert (await ledger.accounts.balance("acme")).granted_micro == 10
    finally:
        server.kill9()
