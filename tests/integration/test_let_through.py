"""What is let through while the ledger is away is on disk before anybody is told yes, and gets to the ledger."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import AdmissionSettings
from enforcer.admission.desk import Desk
from enforcer.metrics import EnforcerMetrics
from enforcer.spool import LetThrough, Spool, SpoolError
from ledger import keys
from ledger.admission import AdmissionRequest, Decision, Terms
from ledger.connect import Client, connect
from ledger.errors import InvalidRequest, LedgerUnavailable
from ledger.model import Code, RatePlan, RateTable
from ledger.store import Ledger
from ledger.verify import verify
from tests.integration.test_admission_crashes import CREDIT, prepared, start
from tests.servers import ServerProcess, free_port

JOB = {"cluster": "c", "org": "acme", "project": "vision", "user": "ann", "preset": "small"}


def item(number: int, org: str = "acme") -> LetThrough:
    request = AdmissionRequest(cluster="c", org=org, preset="small", hold_id=f"{org}.{number}")
    return LetThrough(request, Terms(), CREDIT, {"type": "exception", "event": str(number), "text": "zwölf"})


async def journaled(ledger: Ledger, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found = await ledger.refusals.read("acme", None, 100)
    return found


async def test_what_a_killed_enforcer_let_through_is_held_and_journaled_by_the_next(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server, port = make_server(), free_port()
    settings = tmp_path / "settings.yaml"
    settings.write_text(
        f"redis: {{url: '{server.url}'}}\nenforcer: {{listen: '127.0.0.1:{port}'}}\ndata_dir: {tmp_path / 'data'}\n"
        "sources: [{type: json, cluster: c, path: x.json}]\n"
        "admission: {on_ledger_down: allow, allow_cap_credits: 3, decision_seconds: 0.5}\n"
    )
    spool = tmp_path / "data" / f"let-through-127.0.0.1-{port}.jsonl"
    async with connect(server.url, None) as client:
        ledger = await prepared(client, 500 * CREDIT)
        _, token = await ledger.tokens.create("scheduler")
        process = await start("tests.enforcer_worker", str(settings))
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"http")
        url = f"http://127.0.0.1:{port}/v1/admission"
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:

            async def ask(**more: Any) -> dict[str, Any]:
                async with session.post(url, json={**JOB, **more}) as answer:
                    told: dict[str, Any] = await answer.json()
                    return told

            assert (await ask(dry_run=True))["code"] == "ok"
            server.kill9()
            told = [await ask() for _ in range(5)]
            process.send_signal(signal.SIGKILL)
        await process.wait()
        assert [one["allowed"] for one in told] == [True, True, True, False, False]
        with spool.open("ab") as file:
            file.write(b'{"kept":{"request":{"clus')  # killed while it wrote
        server.start()
        process = await start("tests.enforcer_worker", str(settings))
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"http")
        entries = await journaled(ledger, 3)
        assert [(entry["type"], entry["code"], entry["required"]) for entry in entries] == [
            ("exception", "ledger_unavailable", "1")
        ] * 3
        holds: Any = await client.hkeys(keys.of_org("acme").holds)
        assert {name.decode() for name in holds} == {one["hold_id"] for one in told[:3]}
        async with asyncio.timeout(10):
            while spool.stat().st_size:  # noqa: ASYNC110 - another process empties it
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert (await ledger.accounts.balance("acme")).held_micro == 3 * CREDIT
        assert (await verify(ledger))["ok"]


@asynccontextmanager
async def a_desk(client: Client, spool: Path | None, **admission: Any) -> AsyncIterator[Desk]:
    ledger = Ledger(client, 0)
    await ledger.rates.publish(RatePlan("c", ((0, RateTable({"small": 4_000_000_000})),)))
    await ledger.admissions.prepare("c")
    settings = AdmissionSettings(**{"on_ledger_down": "allow", "allow_cap_micro": 3 * CREDIT, **admission})
    desk = Desk(ledger, settings, EnforcerMetrics("test"), ledger.clock, spool=spool)
    try:
        yield desk
    finally:
        await desk.aftermath.stop()
        await desk.aftermath._spool.close()


async def ask(desk: Desk, org: str = "acme") -> Decision:
    request = AdmissionRequest(cluster="c", org=org, project="p", user="u", preset="small")
    return await desk.decide(request, who="test", via="test")


async def test_the_cap_of_an_org_holds_over_a_restart(client: Client, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    async with a_desk(client, spool) as desk:
        await desk.ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="test")
        desk.aftermath.is_away = True
        assert [(await ask(desk)).allowed for _ in range(2)] == [True, True]
    async with a_desk(client, spool) as desk:
        desk.aftermath.is_away = True
        assert [(await ask(desk)).allowed for _ in range(2)] == [True, False]
        assert (await ask(desk, "globex")).allowed
    async with a_desk(client, spool) as desk:
        desk.aftermath.start()
        await journaled(desk.ledger, 3)
        async with asyncio.timeout(10):
            while spool.stat().st_size:  # noqa: ASYNC110 - another task empties it
                await asyncio.sleep(0.01)
        assert (await desk.ledger.accounts.balance("acme")).held_micro == 3 * CREDIT
        desk.aftermath.is_away = True
        assert (await ask(desk)).allowed  # what the ledger has is no part of the cap


async def test_what_cannot_be_kept_is_not_let_through(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_desk(client, tmp_path / "spool") as desk:
        desk.aftermath.is_away = True
        real = os.fsync

        def full(file: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        refused = await ask(desk)
        assert (refused.allowed, refused.code) == (False, Code.LEDGER_UNAVAILABLE)
        monkeypatch.setattr(os, "fsync", real)
        answers = await asyncio.gather(*(ask(desk) for _ in range(5)))
        assert sum(answer.allowed for answer in answers) == 3  # the one that was not kept takes no room
    again = Spool(tmp_path / "spool")
    assert len(again.waiting) == 3
    await again.close()


async def test_a_disk_that_hangs_keeps_nobody_longer_than_the_time_set(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    def hang(what: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            assert goes_on.wait(20)
            return what(*arguments)

        return call

    loop = asyncio.get_running_loop()
    async with a_desk(client, tmp_path / "spool", decision_seconds=0.3) as desk:
        desk.aftermath.is_away = True
        resolving = [loop.run_in_executor(None, goes_on.wait, 20) for _ in range(40)]
        assert (await ask(desk)).allowed
        for name in ("fsync", "write", "ftruncate"):
            monkeypatch.setattr(os, name, hang(getattr(os, name)))
        start = loop.time()
        answers = await asyncio.gather(*(ask(desk) for _ in range(5)))
        assert loop.time() - start < 0.6
        assert {(answer.allowed, answer.code) for answer in answers} == {(False, Code.LEDGER_UNAVAILABLE)}
        start = loop.time()
        desk.aftermath._spool.done()  # the ledger has the first one
        await asyncio.sleep(0)
        assert loop.time() - start < 0.3
        goes_on.set()
        await asyncio.gather(*resolving)
    again = Spool(tmp_path / "spool")
    assert not again.waiting
    await again.close()


async def test_two_enforcers_do_not_share_a_file(tmp_path: Path) -> None:
    one = Spool(tmp_path / "spool")
    with pytest.raises(InvalidRequest, match="another enforcer"):
        Spool(tmp_path / "spool")
    await one.close()


@given(st.lists(st.sampled_from(["keep", "done"]), max_size=12), st.floats(0, 1))
def test_after_a_cut_anywhere_what_was_written_whole_is_there(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], part: float
) -> None:
    path = tmp_path_factory.mktemp("spool") / "x" / "spool"

    async def run() -> None:
        spool = Spool(path)
        states: list[tuple[int, list[str]]] = [(0, [])]
        for number, step in enumerate(steps):
            if step == "keep":
                await spool.keep(item(number))
            elif len(spool.waiting) > 1:  # with the last one the file is emptied
                spool.done()
                assert spool._writer is not None
                await spool._writer
            states.append((path.stat().st_size, [one.id for one in spool.waiting]))
        await spool.close()
        size = int(path.stat().st_size * part)
        with path.open("r+b") as file:
            file.truncate(size)
        expected = [ids for length, ids in states if length <= size][-1]
        for _ in range(2):
            again = Spool(path)
            assert [one.id for one in again.waiting] == expected
            assert all(one.entry["text"] == "zwölf" for one in again.waiting)
            await again.close()

    asyncio.run(run())


async def test_a_line_that_cannot_be_read_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "spool"
    spool = Spool(path)
    await spool.keep(item(1))
    await spool.close()
    path.write_bytes(b"\xff\x00garbage\n" + path.read_bytes() + b'{"kept": 5}\n')
    again = Spool(path)
    await again.keep(item(2))
    await again.close()
    last = Spool(path)
    assert [one.id for one in last.waiting] == ["acme.1", "acme.2"]
    await last.close()


async def test_a_mark_that_a_full_disk_cut_short_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, write = Spool(tmp_path / "spool"), os.write
    for number in (1, 2):
        await spool.keep(item(number))
    cut_short = [False]

    def fill(file: int, data: bytes) -> int:
        if cut_short[0]:
            raise OSError(28, "No space left on device")
        cut_short[0] = True
        return write(file, data[:9])

    def fail(file: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.write", fill)
    monkeypatch.setattr("os.ftruncate", fail)
    spool.done()
    assert spool._writer is not None
    await spool._writer
    monkeypatch.undo()
    await spool.keep(item(3))  # there is room again
    await spool.close()
    again = Spool(tmp_path / "spool")
    assert [one.id for one in again.waiting] == ["acme.1", "acme.2", "acme.3"]
    await again.close()


async def test_no_more_is_kept_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enforcer.spool.KEPT_MAX", 2)
    spool = Spool(None)
    for number in range(2):
        await spool.keep(item(number))
    with pytest.raises(SpoolError):
        await spool.keep(item(3))


async def test_a_quote_has_the_time_of_a_decision_and_the_same_breaker(client: Client) -> None:
    async with a_desk(client, None, decision_seconds=0.3) as desk:
        await desk.ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="test")
        request = AdmissionRequest(cluster="c", org="acme", preset="small")
        assert (await desk.quote(request)).hour_micro == 4 * CREDIT
        await client.execute_command("CLIENT", "PAUSE", "1500", "ALL")
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(LedgerUnavailable, match="Credits cannot be checked right now"):
            await desk.quote(request)
        assert 0.2 < loop.time() - start < 1
        assert desk.aftermath.is_away
        start = loop.time()
        with pytest.raises(LedgerUnavailable, match="Credits cannot be checked right now"):
            await desk.quote(request)
        assert loop.time() - start < 0.1


def test_the_file_is_of_lines_that_people_can_read(tmp_path: Path) -> None:
    async def run() -> None:
        spool = Spool(tmp_path / "spool")
        await spool.keep(item(1))
        await spool.close()

    asyncio.run(run())
    (line,) = (tmp_path / "spool").read_text().splitlines()
    assert json.loads(line)["kept"]["request"]["org"] == "acme"
