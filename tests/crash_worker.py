"""Processes to be killed: exporters and customers of a ledger, forked from one that has imported everything.

`python -m tests.crash_worker` reads one command (JSON) a line: {"start": role, ...arguments} answers the child's
pid, {"kill": pid} and {"status": pid} its wait status (null: it still runs). It ends its children and itself when
its input ends.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

from redis.asyncio import UnixDomainSocketConnection

from exporter.books import Books
from exporter.rounds import Rounds
from ledger.admission import AdmissionRequest, Terms
from ledger.errors import LedgerUnavailable
from ledger.store import Ledger, open_ledger
from tests.crash_history import CLUSTER, SOURCE, History
from tests.histories import ORGS, T0
from tests.servers import newest_log

HOLD_US = 1_000_000
"""How long holds of admission live in these tests."""


class NoSource:
    name = SOURCE
    cluster = CLUSTER


def rounds_of(ledger: Ledger) -> Rounds:
    return Rounds(Books(ledger), NoSource(), hold_us=HOLD_US)  # type: ignore[arg-type]


async def take(rounds: Rounds, history: History, poll: int, since: int | None) -> None:
    await rounds.take(history.snapshot(poll), since)


# -- what runs in the children ---------------------------------------------------------------------------


async def export(url: str, history: dict[str, Any]) -> None:
    """An exporter: every poll of the history that the ledger does not have, as fast as it can."""
    told = History.of(**history)

    async def work(ledger: Ledger) -> bool:
        rounds = rounds_of(ledger)
        while True:
            try:
                since = await ledger.charging.source_mark(SOURCE)
                poll = told.after(since)
                if poll is None:
                    return True
                await take(rounds, told, poll, since)
            except LedgerUnavailable:
                continue

    await _with_ledger(url, work)


async def spend(url: str, seed: int, log: str, directory: str) -> None:
    """A customer: grants, admissions and releases, some of them again; writes down what it asks for and is told."""
    rng = random.Random(seed)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    asked: list[dict[str, Any]] = []
    held: list[tuple[str, str]] = []

    def note(**what: Any) -> None:
        os.write(out, json.dumps(what).encode() + b"\n")

    async def grant(ledger: Ledger) -> None:
        if asked and rng.random() < 0.3:
            body = rng.choice(asked)
        else:
            starts, source = rng.choice([None, T0]), rng.choice(["purchase", "gift"])
            name = f"{os.getpid()}-{seed}-{len(asked)}"
            body = {
                "org": rng.choice(ORGS),
                "micro": rng.randrange(1, 10**9),
                "key": name,
                "source": source,
                "effective_us": starts,
            }
            asked.append(body)
            note(asked=body)
        began = time.monotonic_ns()
        await give(ledger, body)
        note(acknowledged=body["key"], log_size=newest_log(Path(directory)).stat().st_size, since=began)

    async def admit(ledger: Ledger) -> None:
        org = rng.choice(ORGS)
        workload = rng.choice([None, f"job-{rng.randrange(20)}"])
        request = AdmissionRequest(
            cluster=CLUSTER, org=org, project="vision", user="ann", preset="cpu-small", workload_id=workload
        )
        decision = await ledger.admissions.admit(request, Terms(hold_us=HOLD_US, unknown_org="allow"))
        if decision.hold_id:
            held.append((org, decision.hold_id))

    async def release(ledger: Ledger) -> None:
        if held:
            await ledger.admissions.release(*held.pop(rng.randrange(len(held))))

    async def one(ledger: Ledger, acts: list[Callable[[Ledger], Awaitable[None]]]) -> None:
        while True:
            try:
                await rng.choice(acts)(ledger)
                await asyncio.sleep(rng.random() * 0.01)
            except LedgerUnavailable:
                continue

    async def work(ledger: Ledger) -> bool:
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(one(ledger, [grant]))
            group.create_task(one(ledger, [admit, release]))
        return True

    await _with_ledger(url, work)


async def give(ledger: Ledger, body: dict[str, Any]) -> bool:
    """A grant as a customer wrote it down; whether it was known already."""
    arguments = {k: v for k, v in body.items() if k not in ("org", "micro")}
    return (await ledger.accounts.grant(body["org"], body["micro"], who="customer", **arguments)).replayed


class DoomedConnection(UnixDomainSocketConnection):
    """Kills its own process at a given call: before it is sent, or after, without reading the answer."""

    left: ClassVar[int] = 0
    sends_first: ClassVar[bool] = False
    sent: ClassVar[int] = 0

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        cls = DoomedConnection
        cls.sent += 1
        if cls.sent == cls.left and not cls.sends_first:
            os.kill(os.getpid(), signal.SIGKILL)
        await super().send_packed_command(command, check_health)
        if cls.sent == cls.left:
            os.kill(os.getpid(), signal.SIGKILL)


async def doom(ledger: Ledger, call: int, sends_first: bool) -> None:
    """From here on calls are counted, and `call` (from 1; 0: none) is the last one."""
    pool: Any = ledger.client.connection_pool
    await pool.disconnect()
    pool.connection_class = DoomedConnection
    pool.reset()
    connection = await pool.get_connection()  # its own first commands are not calls of a round
    await pool.release(connection)
    DoomedConnection.left, DoomedConnection.sends_first, DoomedConnection.sent = call, sends_first, 0


async def die(url: str, history: dict[str, Any], poll: int, call: int, sends_first: bool) -> None:
    """An exporter that starts, and dies at a given call of a given poll's round."""
    told = History.of(**history)
    async with open_ledger(url, epoch_us=T0) as ledger:
        rounds = rounds_of(ledger)
        since = await ledger.charging.source_mark(SOURCE)
        await doom(ledger, call, sends_first)
        await take(rounds, told, poll, since)


async def _with_ledger(url: str, work: Callable[[Ledger], Awaitable[bool]]) -> None:
    while True:
        try:
            async with open_ledger(url, epoch_us=T0) as ledger:
                if await work(ledger):
                    return
        except LedgerUnavailable:
            await asyncio.sleep(0.005)


ROLES: dict[str, Callable[..., Any]] = {"export": export, "spend": spend, "die": die}


# -- the process that forks them ----------------------------------------------------------------------------


def main() -> None:
    children: set[int] = set()
    for line in sys.stdin:
        command = json.loads(line)
        answer: int | None
        if "start" in command:
            answer = _fork(command.pop("start"), command)
            children.add(answer)
        else:
            pid = command.get("kill") or command["status"]
            if "kill" in command:
                os.kill(pid, signal.SIGKILL)  # not waited for yet, so it is that very child
            ended, status = os.waitpid(pid, 0 if "kill" in command else os.WNOHANG)
            answer = status if ended else None
            if ended:
                children.discard(pid)
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _fork(role: str, arguments: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # ends with its parent, however that comes about
        if os.getppid() == parent:
            asyncio.run(ROLES[role](**arguments))
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


# -- the test's end of it ---------------------------------------------------------------------------------


class Nursery:
    """Starts and kills children through the process above; what they say on stderr is in `log`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._ended: dict[int, int | None] = {}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.crash_worker"],
                cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True,
            )  # fmt: skip

    def start(self, role: str, **arguments: Any) -> int:
        pid = self._ask(start=role, **arguments)
        assert pid is not None
        return pid

    def kill9(self, pid: int) -> bool:
        """Whether it still ran."""
        if self.status(pid) is None:
            self._ended[pid] = self._ask(kill=pid)
        return self.status(pid) == signal.SIGKILL

    def status(self, pid: int) -> int | None:
        """How it ended, None while it runs; one that ended badly by itself fails the test."""
        if self._ended.get(pid) is None:
            self._ended[pid] = self._ask(status=pid)
        status = self._ended[pid]
        assert status in (None, 0, signal.SIGKILL), f"ended with {status}:\n{self.log.read_text()[-4000:]}"
        return status

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _ask(self, **command: Any) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(self._process.stdout.readline())
        return answer


if __name__ == "__main__":
    main()
