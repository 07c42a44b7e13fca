"""Transfers: credits are at one org or at the other, or on their way, whoever dies when."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.books import Books
from exporter.rounds import Rounds
from ledger import keys
from ledger.admission import AdmissionRequest, Terms
from ledger.connect import Client, connect
from ledger.errors import IdempotencyConflict, Insufficient, InvalidRequest, UnknownOrg
from ledger.model import Kind, Observation, RatePlan, RateTable, Snapshot
from ledger.money import MICRO_MAX, format_micro
from ledger.statement import statement
from ledger.store import Ledger, open_ledger
from ledger.transfers import TransferReceipt
from ledger.verify import verify
from tests.servers import ServerProcess, cluster_options, form_cluster, free_port, tied
from tests.transfer_chaos import KEYS, body
from tests.transfer_worker import STEPS

REPOSITORY = Path(__file__).parents[2]
T0 = 1_795_000_000_000_000
HOUR = 3_600_000_000
CREDIT = 1_000_000
ORGS = ("acme", "globex", "initech")


class Now:
    us = T0

    def __call__(self) -> int:
        return self.us


async def move(
    ledger: Ledger, micro: int, source: str = "acme", target: str = "globex", key: str = "t1", **more: Any
) -> TransferReceipt:
    return await ledger.transfers.transfer(source, target, micro, key=key, who="test", **more)


async def give(ledger: Ledger, org: str, amount: int, key: str = "k", **more: Any) -> None:
    await ledger.accounts.grant(org, amount * CREDIT, key=key, who="test", **more)


async def left(ledger: Ledger, *orgs: str) -> list[int]:
    return [(await ledger.accounts.balance(org)).left_micro for org in orgs or ORGS[:2]]


async def agrees(ledger: Ledger) -> None:
    report = await verify(ledger)
    assert report["ok"], report["differences"]


async def test_credits_keep_their_expiry_and_the_soonest_go_first(any_client: Client) -> None:
    now = Now()
    ledger = Ledger(any_client, T0, now)
    await give(ledger, "acme", 10)
    await give(ledger, "acme", 3, "soon", expires_us=T0 + HOUR)
    await give(ledger, "acme", 3, "later", expires_us=T0 + 2 * HOUR)
    await give(ledger, "acme", 90, "not yet", effective_us=T0 + HOUR)
    await give(ledger, "globex", 1)
    receipt = await move(ledger, 5 * CREDIT, reason="lent", address="192.0.2.7")
    assert (receipt.record.state, receipt.replayed) == ("done", False)
    assert [(part.micro, part.expires) for part in receipt.record.parts] == [
        (str(3 * CREDIT), str(T0 + HOUR)), (str(2 * CREDIT), str(T0 + 2 * HOUR)),
    ]  # fmt: skip
    assert await left(ledger) == [11 * CREDIT, 6 * CREDIT]
    now.us = T0 + HOUR
    assert await left(ledger) == [101 * CREDIT, 3 * CREDIT]
    now.us = T0 + 2 * HOUR
    assert await left(ledger) == [100 * CREDIT, CREDIT]
    for org, moved in (("acme", "-5"), ("globex", "5")):
        entry = (await ledger.accounts.journal(org))[0][-1]
        assert (entry["type"], entry["credits"], entry["from_org"], entry["to_org"]) == (
            "transfer", moved, "acme", "globex",
        )  # fmt: skip
        assert (entry["who"], entry["from"], entry["reason"], entry["key"]) == ("test", "192.0.2.7", "lent", "t1")
    by_source = (await ledger.accounts.balance("globex")).granted_by_source
    assert by_source == {"provision": CREDIT, "transfer": 5 * CREDIT}
    for org, moved, expired in (("acme", "-5", "1"), ("globex", "5", "5")):
        shape = (await statement(ledger, org, "2026-11")).shape()
        assert (shape["transferred"], shape["expired"], shape["corrections"]) == (moved, expired, "0")
        assert shape["closing"] == format_micro((await left(ledger, org))[0])
    await agrees(ledger)


async def test_only_what_is_available_moves(client: Client) -> None:
    ledger = Ledger(client, T0, Now())
    await ledger.rates.publish(RatePlan("c", ((0, RateTable({"cpu": 1_000_000_000})),)))
    await give(ledger, "acme", 10)
    await give(ledger, "acme", 10, "restricted", presets=["small"])
    await give(ledger, "globex", 1)
    await ledger.accounts.upsert("acme", who="test", unlimited=True)
    asked = AdmissionRequest(cluster="c", org="acme", project="p", user="u", preset="cpu", count=3)
    assert (await ledger.admissions.admit(asked, Terms(HOUR, "deny"))).allowed
    with pytest.raises(Insufficient, match=r"has 7 credits that can be transferred, and not 7\.000001"):
        await move(ledger, 7 * CREDIT + 1)
    assert await left(ledger) == [20 * CREDIT, CREDIT]
    assert (await move(ledger, 7 * CREDIT, key="t2")).record.state == "done"
    await agrees(ledger)


async def test_a_key_moves_once_whatever_it_names(client: Client) -> None:
    ledger = Ledger(client, T0, Now())
    for org in ORGS:
        await give(ledger, org, 10)
    with pytest.raises(Insufficient):
        await move(ledger, 11 * CREDIT)
    await give(ledger, "acme", 10, "more")
    first = await move(ledger, 11 * CREDIT)  # the same request, once there is enough
    again = await move(ledger, 11 * CREDIT)
    assert (first.replayed, again.replayed, again.record) == (False, True, first.record)
    for other in ({"micro": 1}, {"micro": 11 * CREDIT, "source": "initech"}, {"micro": 11 * CREDIT, "reason": "x"}):
        with pytest.raises(IdempotencyConflict, match="t1"):
            await move(ledger, **other)
    assert await left(ledger, *ORGS) == [9 * CREDIT, 21 * CREDIT, 10 * CREDIT]
    with pytest.raises(InvalidRequest, match="of transfers"):
        await give(ledger, "globex", 1, "transfer:t1:0")


@pytest.mark.parametrize(
    "wrong", [{"micro": 0}, {"micro": -1}, {"micro": 2**60}, {"target": "acme"}, {"key": ""}, {"reason": "x" * 1001}]
)
async def test_what_makes_no_sense_is_refused(client: Client, wrong: dict[str, Any]) -> None:
    ledger = Ledger(client, T0, Now())
    await give(ledger, "acme", 10)
    await give(ledger, "globex", 10)
    with pytest.raises(InvalidRequest):
        await move(ledger, **{"micro": CREDIT, **wrong})
    assert not await client.hlen(keys.TRANSFERS)  # type: ignore[misc]


async def test_an_org_that_is_not_there_neither_gives_nor_gets(client: Client) -> None:
    ledger = Ledger(client, T0, Now())
    await give(ledger, "acme", 10)
    for pair in (("acme", "nobody"), ("nobody", "acme")):
        with pytest.raises(UnknownOrg):
            await move(ledger, CREDIT, *pair)
    assert await ledger.accounts.orgs() == ["acme"]


async def test_what_the_other_org_cannot_count_goes_back(client: Client) -> None:
    now = Now()
    ledger = Ledger(client, T0, now)
    await give(ledger, "acme", 10, expires_us=T0 + HOUR)
    await ledger.accounts.grant("globex", MICRO_MAX, key="k", who="test")
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="back at org 'acme'"):
            await move(ledger, CREDIT)
    assert await left(ledger) == [10 * CREDIT, MICRO_MAX]
    await agrees(ledger)
    now.us = T0 + HOUR
    assert (await left(ledger))[0] == 0


async def test_what_went_back_is_not_mixed_up_with_a_transfer_whose_key_looks_like_it(client: Client) -> None:
    ledger = Ledger(client, T0, Now())
    await give(ledger, "acme", 10)
    await ledger.accounts.grant("globex", MICRO_MAX, key="k", who="test")
    with pytest.raises(InvalidRequest, match="back at org 'acme'"):
        await move(ledger, 4 * CREDIT, key="t")
    for key in ("t:back", "t:0", "t:0:back"):
        await move(ledger, CREDIT, "globex", "acme", key)
    assert (await left(ledger))[0] == 13 * CREDIT
    await give(ledger, "initech", 1)
    await move(ledger, 13 * CREDIT, target="initech", key="all")  # they are there to be moved, too
    await agrees(ledger)


class Worker:
    """A transfer in another process, which stands still at a step."""

    def __init__(self, url: str, step: str, when: str, micro: int = 4 * CREDIT, key: str = "t1") -> None:
        command = tied(
            sys.executable, "-m", "tests.transfer_worker", url, step, when, "acme", "globex", str(micro), key
        )
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._output = self._process.stdout

    async def kill_there(self) -> None:
        said = await asyncio.get_running_loop().run_in_executor(None, self._output.readline)
        assert said == "here\n"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)
        self._output.close()


PLACES = [("claim", "before"), *((step, "after") for step in STEPS)]


@pytest.mark.parametrize("finisher", ["retry", "sweep"])
@pytest.mark.parametrize(("step", "when"), PLACES)
async def test_killed_at_any_step_it_is_finished_by_a_retry_or_the_sweep(
    valkey_url: str, client: Client, step: str, when: str, finisher: str
) -> None:
    ledger = Ledger(client, 0)
    await give(ledger, "acme", 10)
    await give(ledger, "globex", 1)
    await Worker(valkey_url, step, when).kill_there()
    is_taken = step != "claim"
    is_given = step in ("give", "end")
    assert await left(ledger) == [(6 if is_taken else 10) * CREDIT, (5 if is_given else 1) * CREDIT]
    await agrees(ledger)
    if finisher == "retry":
        receipt = await move(ledger, 4 * CREDIT)
        assert (receipt.record.state, receipt.replayed) == ("done", is_taken)
        is_taken = True
        with pytest.raises(IdempotencyConflict):
            await move(ledger, 4 * CREDIT, target="acme", source="globex")
    else:
        assert await ledger.transfers.sweep() == (1 if step in ("take", "give") else 0)
    assert await left(ledger) == ([6 * CREDIT, 5 * CREDIT] if is_taken else [10 * CREDIT, CREDIT])
    assert await ledger.transfers.sweep() == 0
    await agrees(ledger)


async def test_several_who_finish_the_same_transfer_move_it_once(valkey_url: str, client: Client) -> None:
    ledger = Ledger(client, 0)
    await give(ledger, "acme", 10)
    await give(ledger, "globex", 1)
    await Worker(valkey_url, "take", "after").kill_there()
    others = [Ledger(client, 0) for _ in range(6)]
    await asyncio.gather(*(one.transfers.sweep() for one in others), *(move(one, 4 * CREDIT) for one in others))
    assert await left(ledger) == [6 * CREDIT, 5 * CREDIT]
    await agrees(ledger)


async def test_the_server_may_be_killed_in_between(make_server: Callable[..., ServerProcess]) -> None:
    server = make_server(appendfsync="always")
    async with open_ledger(server.url, epoch_us=0) as ledger:
        await give(ledger, "acme", 10)
        await give(ledger, "globex", 1)
    await Worker(server.url, "take", "after").kill_there()
    server.kill9()
    server.start()
    async with open_ledger(server.url, epoch_us=0) as ledger:
        assert await left(ledger) == [6 * CREDIT, CREDIT]
        assert await ledger.transfers.sweep() == 1
        assert await left(ledger) == [6 * CREDIT, 5 * CREDIT]
        await agrees(ledger)


async def test_verify_tells_of_a_transfer_that_one_of_the_two_orgs_forgot(client: Client) -> None:
    ledger = Ledger(client, T0, Now())
    raw: Any = client
    for org in ORGS:
        await give(ledger, org, 10)
    await move(ledger, CREDIT)
    await move(ledger, CREDIT, "initech", key="t2")
    await raw.hdel(keys.of_org("globex").received, "it1")  # as a server that lost the end of what it wrote
    await raw.hdel(keys.of_org("initech").transfers, "t2")
    told = [(one["org"], one["what"]) for one in (await verify(ledger))["differences"]]
    assert told == [("acme", "transfer 't1' to org 'globex'"), ("globex", "transfer 't2'")]


async def test_orgs_on_different_nodes_of_a_cluster(make_server: Callable[..., ServerProcess]) -> None:
    nodes = [make_server(port=free_port(), options=cluster_options()) for _ in range(2)]
    await form_cluster(nodes)
    async with open_ledger(f"redis+cluster://127.0.0.1:{nodes[0].port}", epoch_us=0) as ledger:
        raw: Any = ledger.client
        slots = {org: raw.keyslot(keys.of_org(org).org) // 8192 for org in map(str, range(20))}
        source, target = (next(org for org, half in slots.items() if half == number) for number in (0, 1))
        for org in (source, target):
            await give(ledger, org, 10)
        first = await move(ledger, 4 * CREDIT, source, target)
        assert not first.replayed
        assert (await move(ledger, 4 * CREDIT, source, target)).record == first.record
        await ledger.corrections.correct(source, -CREDIT, corrects="k", key="c", reason="r", who="test")
        assert await left(ledger, source, target) == [5 * CREDIT, 14 * CREDIT]
        assert await ledger.transfers.sweep() == 0
        await agrees(ledger)


@pytest.fixture(scope="module")
def quick_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that is never waited for: what it writes is on disk at once."""
    server = ServerProcess(tmp_path_factory.mktemp("quick"), appendfsync="always").start()
    yield server.url
    server.kill9()


MOVES = st.tuples(
    st.permutations(ORGS), st.integers(1, 12 * CREDIT), st.integers(0, 5), st.sampled_from([None, *STEPS])
)


class Dies(Exception):
    """In place of a process that ends."""


@settings(max_examples=20)
@given(st.lists(MOVES, max_size=10), st.integers(0, 3))
async def test_no_credit_is_made_or_lost(quick_url: str, moves: list[Any], expiring: int) -> None:
    """Random transfers, each dying after a step or not; keys come again with the same body and with others."""
    async with connect(quick_url, None) as client:
        await client.flushall()
        ledger = Ledger(client, T0, Now())
        for number, org in enumerate(ORGS):
            await give(ledger, org, 10)
            await give(ledger, org, 5, "e", expires_us=T0 + (number % (expiring + 1) + 1) * HOUR)
        bodies: dict[int, tuple[Any, ...]] = {}
        for (source, target, _), micro, key, dies in moves:
            transfers = Ledger(client, T0, Now()).transfers
            if dies is not None:
                _die_after(transfers, dies)
            body = (source, target, micro)
            try:
                await transfers.transfer(source, target, micro, key=str(key), who="test")
                assert bodies.setdefault(key, body) == body
            except Insufficient:
                assert bodies.setdefault(key, body) == body
            except IdempotencyConflict:
                assert bodies.setdefault(key, body) != body
            except Dies:  # with the answer of the claim, what it was is lost as well
                assert bodies.setdefault(key, body) == body or dies == "claim"
        await ledger.transfers.sweep()
        assert sum(await left(ledger, *ORGS)) == 45 * CREDIT
        moved = dict.fromkeys(ORGS, 15 * CREDIT)
        for key, (source, target, micro) in bodies.items():
            if await ledger.transfers.get(source, str(key)) is not None:
                moved[source] -= micro
                moved[target] += micro
        assert await left(ledger, *ORGS) == list(moved.values())
        await agrees(ledger)


def _die_after(transfers: Any, step: str) -> None:
    script = getattr(transfers, f"_{step}")

    class Dying:
        async def durably(self, *arguments: Any) -> Any:
            await script.durably(*arguments)
            raise Dies

        async def __call__(self, *arguments: Any) -> Any:
            await script(*arguments)
            raise Dies

    setattr(transfers, f"_{step}", Dying())


class NoSource:
    name, cluster = "s", "c"

    async def fetch(self, since_us: int | None) -> Snapshot:
        raise AssertionError

    async def close(self) -> None: ...


MINUTE = 60_000_000
ACTS = st.one_of(
    st.tuples(st.just("give"), st.sampled_from(ORGS), st.integers(1, 9 * CREDIT), st.integers(0, 400)),
    st.tuples(st.just("correct"), st.sampled_from(ORGS), st.integers(-9 * CREDIT, 9 * CREDIT), st.integers(0, 5)),
    st.tuples(st.just("move"), st.sampled_from(ORGS), st.integers(1, 9 * CREDIT), st.sampled_from(ORGS)),
    st.tuples(st.just("run"), st.sampled_from(ORGS), st.integers(1, 90), st.integers(0, 3)),
)


@settings(max_examples=25)
@given(st.lists(ACTS, max_size=16))
async def test_with_charges_corrections_and_expiry_beside_nothing_is_made_or_lost(
    quick_url: str, acts: list[Any]
) -> None:
    """Over all orgs: given + corrected = left + spent + expired, whatever moved between them."""
    async with connect(quick_url, None) as client:
        await client.flushall()
        now = Now()
        now.us = T0
        ledger = Ledger(client, T0, now)
        await ledger.rates.publish(RatePlan("c", ((0, RateTable({"cpu": 7_000_000_000})),)))
        rounds = Rounds(Books(ledger), NoSource(), HOUR)
        jobs: list[Observation] = []
        given_micro = 0
        grants: list[tuple[str, str]] = []
        for org in ORGS:
            await give(ledger, org, 5)
            given_micro += 5 * CREDIT
        for number, (act, org, size, other) in enumerate(acts):
            key = str(number)
            if act == "give":
                expires = now.us + other * MINUTE if other else None
                await ledger.accounts.grant(org, size, key=key, who="test", expires_us=expires)
                grants.append((org, key))
                given_micro += size
            elif act == "correct" and grants and size:
                org, corrects = grants[other % len(grants)]
                with suppress(InvalidRequest):
                    await ledger.corrections.correct(org, size, corrects=corrects, key=key, reason="r", who="test")
                    given_micro += size
            elif act == "move" and org != other:
                with suppress(Insufficient):
                    await move(ledger, size, org, other, key)
            elif act == "run":
                since, now.us = now.us, now.us + size * MINUTE
                ended = None if other else now.us - 1
                jobs.append(Observation(key, Kind.JOB, org, "p", "u", "cpu", "", since, ended))
                await rounds.take(Snapshot("s", "c", now.us, jobs), None)
            balances = await ledger.accounts.balances()
            assert given_micro == sum(b.left_micro + b.spent_micro + b.expired_micro for b in balances)
        await agrees(ledger)


class Movers:
    """Processes that move credits without end; what they acknowledged is in a file, as they die without a word."""

    def __init__(self, url: str, log: Path) -> None:
        self._url = url
        self._log = log
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, seed: int) -> None:
        with self._log.open("ab") as log:
            command = tied(sys.executable, "-m", "tests.transfer_chaos", self._url, str(seed), *ORGS)
            self._processes.append(subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=subprocess.DEVNULL))

    def kill(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
        self._processes = []

    def said(self) -> list[str]:
        # Of somebody who died while writing there may be half a line.
        return [line for line in self._log.read_text().splitlines() if len(line.split()) == 4]


async def test_killed_at_random_moments_nothing_is_made_or_lost(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = make_server(appendfsync="always")
    movers = Movers(server.url, tmp_path / "moved")
    async with open_ledger(server.url, epoch_us=0) as ledger:
        for org in ORGS:
            await give(ledger, org, 20)
    chance = random.Random(7)
    for number in range(6):
        before = len(movers.said()) if number else 0
        for seed in (number, number + 100):
            movers.start(seed)
        async with asyncio.timeout(30):
            while len(movers.said() if (tmp_path / "moved").exists() else []) < before + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(chance.random() * 0.05)  # some moment: no condition is waited for
        if number % 3 == 2:
            server.kill9()
        movers.kill()
        if number % 3 == 2:
            server.start()
        async with open_ledger(server.url, epoch_us=0) as ledger:
            report = await verify(ledger)
            assert report["ok"], report["differences"]
    acknowledged = {line.split()[0]: line.split()[1:] for line in movers.said()}
    async with open_ledger(server.url, epoch_us=0) as ledger:
        await ledger.transfers.sweep()
        assert sum(await left(ledger, *ORGS)) == 60 * CREDIT
        expected = dict.fromkeys(ORGS, 20 * CREDIT)
        for key in range(KEYS):
            source, target, micro = body(key, list(ORGS))
            record = await ledger.transfers.get(source, str(key))
            if record is not None:
                assert record.state == "done"
                expected[source] -= micro
                expected[target] += micro
            if str(key) in acknowledged:
                assert acknowledged[str(key)] == [source, target, str(micro)]
                assert record is not None
        assert await left(ledger, *ORGS) == list(expected.values())
        await agrees(ledger)
    assert len(acknowledged) > 5
    assert "twice" not in (tmp_path / "moved").read_text()
