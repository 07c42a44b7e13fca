"""Admission over HTTP against a bare aiohttp handler, in the same run: requests a second and the 99th percentile.

python bench/admission.py [SECONDS [CONNECTIONS]]

Each server is a process of its own, the clients are another. Short rounds alternate, so that what else the machine does
falls on all; the figures are medians of the rounds, a ratio is that of two that followed each other. `admission` is one
org without budgets, `spread` several with. SECONDS are those of one round.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

ROUNDS = 60
JOB = {"cluster": "c", "org": "acme", "project": "vision", "user": "ann", "kind": "job", "preset": "small"}
SPREAD = [{**JOB, "org": f"org-{number % 8}", "user": f"user-{number}"} for number in range(16)]
"""Jobs of several orgs, each under three budgets."""
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)", re.IGNORECASE)


async def bare(request: web.Request) -> web.Response:
    """What any handler costs: the body is read, a small answer is written."""
    await request.read()
    return web.Response(body=b'{"allowed":true}', content_type="application/json")


def serve_bare(pipe: Connection) -> None:
    """The bare handler, until told to stop."""

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/admission", bare)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send((runner.addresses[0][1], ""))
        await asyncio.to_thread(pipe.recv)
        await runner.cleanup()

    asyncio.run(main())


def serve_enforcer(pipe: Connection, url: str) -> None:
    """The enforcer on a ledger with orgs that have enough."""
    from config.settings import EnforcerSettings, Settings
    from config.values import Address
    from enforcer.app import build_app
    from enforcer.server import serving
    from ledger.model import RatePlan, RateTable
    from ledger.store import open_ledger

    async def main() -> None:
        async with open_ledger(url) as ledger:
            await ledger.rates.publish(RatePlan("c", ((0, RateTable({"small": 1_000_000_000})),)))

            async def set_up(org: str) -> None:
                await ledger.accounts.grant(org, 10**15, key="bench", who="bench")
                if org != JOB["org"]:
                    users = {job["user"] for job in SPREAD if job["org"] == org}
                    for user, period in (*((user, "month") for user in users), (None, "day"), (None, "total")):
                        await ledger.budgets.put(org, JOB["project"], user, 10**14, who="bench", period=period)

            # Each waits for the disk, so they do so together.
            await asyncio.gather(*(set_up(org) for org in {job["org"] for job in (JOB, *SPREAD)}))
            _, token = await ledger.tokens.create("scheduler")
            app = build_app(ledger, Settings(path=Path("settings.yaml")))
            async with serving(app, EnforcerSettings(listen=Address("127.0.0.1", 0))) as at:
                pipe.send((int(at.rpartition(":")[2]), token))
                await asyncio.to_thread(pipe.recv)

    asyncio.run(main())


class _Asker(asyncio.Protocol):
    """A connection that asks as soon as it has the last answer. It has to cost little: it shares the machine."""

    def __init__(self, requests: Iterator[bytes], until: float, latencies: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests, self._until, self._latencies = requests, until, latencies
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._start = time.perf_counter()
        if self._start >= self._until:
            self._transport.close()
        else:
            self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        data = self._data = self._data + data
        head = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data) if head > 0 else None
        if length is None or len(data) < head + 4 + int(length[1]):
            return
        if not data.startswith(b"HTTP/1.1 200") or b'"allowed":true' not in data:
            self.done.set_exception(AssertionError(data))
            self._transport.close()
            return
        self._data = b""
        self._latencies.append(time.perf_counter() - self._start)
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def _load(
    port: int, token: str, seconds: float, connections: int, jobs: Sequence[dict[str, str]] = (JOB,)
) -> tuple[float, list[float]]:
    """(answers a second, latencies) of connections that ask for one job after the other."""
    requests = itertools.cycle([_request(token, job) for job in jobs])
    latencies: list[float] = []
    start = time.perf_counter()
    loop = asyncio.get_running_loop()

    async def one() -> None:
        _, asker = await loop.create_connection(lambda: _Asker(requests, start + seconds, latencies), "127.0.0.1", port)
        await asker.done

    await asyncio.gather(*(one() for _ in range(connections)))
    return len(latencies) / (time.perf_counter() - start), latencies


def _request(token: str, job: dict[str, str]) -> bytes:
    body = json.dumps(job).encode()
    head = f"POST /v1/admission HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class _Case:
    """A server and what it is asked; its figures, round by round."""

    def __init__(self, pid: int, port: int, token: str, jobs: Sequence[dict[str, str]]) -> None:
        self.pid, self._port, self._token, self._jobs = pid, port, token, jobs
        self._rates: list[float] = []
        self._tails: list[float] = []
        self._answered = 0
        self._cpu = [0.0, 0.0]

    def warm_up(self, connections: int) -> None:
        asyncio.run(_load(self._port, self._token, 0.5, connections, self._jobs))

    def ask(self, seconds: float, connections: int, valkey: int) -> None:
        before = [_cpu_seconds(pid) for pid in (self.pid, valkey)]
        rate, latencies = asyncio.run(_load(self._port, self._token, seconds, connections, self._jobs))
        for number, pid in enumerate((self.pid, valkey)):
            self._cpu[number] += _cpu_seconds(pid) - before[number]
        self._rates.append(rate)
        self._tails.append(statistics.quantiles(latencies, n=100)[98])
        self._answered += len(latencies)

    def ratios(self, bare: _Case) -> tuple[float, float]:
        """(rate, 99th percentile) as multiples of the other's: medians over the rounds."""
        rates = [mine / theirs for mine, theirs in zip(self._rates, bare._rates, strict=True)]
        tails = [mine / theirs for mine, theirs in zip(self._tails, bare._tails, strict=True)]
        return statistics.median(rates), statistics.median(tails)

    def figures(self, name: str) -> dict[str, Any]:
        """`cpu_us` of the server and `valkey_cpu_us` are for one request."""
        rate, tail = statistics.median(self._rates), statistics.median(self._tails)
        return {
            f"{name}_per_second": round(rate), f"{name}_p99_ms": round(tail * 1000, 2),
            f"{name}_cpu_us": round(self._cpu[0] / self._answered * 1e6),
            f"{name}_valkey_cpu_us": round(self._cpu[1] / self._answered * 1e6),
        }  # fmt: skip


def measure(seconds: float, connections: int) -> dict[str, Any]:
    """Medians over the rounds, and their ratios. `load_before`: how many processes of others wanted to run."""
    from tests.servers import ServerProcess

    load = os.getloadavg()[0]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        valkey = ServerProcess(Path(directory)).start()
        started = []
        try:
            for serve, arguments in ((serve_bare, ()), (serve_enforcer, (valkey.url,))):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=serve, args=(theirs, *arguments), daemon=True)
                process.start()
                theirs.close()
                port, token = ours.recv()
                started.append((process, ours, (process.pid or 0, port, token)))
            plain, enforcer = (at for _, _, at in started)
            cases = {
                "bare": _Case(*plain, [JOB]),
                "admission": _Case(*enforcer, [JOB]),
                "spread": _Case(*enforcer, SPREAD),
            }
            for case in cases.values():
                case.warm_up(connections)
            for _ in range(ROUNDS):
                for case in cases.values():
                    case.ask(seconds, connections, valkey.pid)
        finally:
            for process, pipe, _ in started:
                pipe.send("stop")
                process.join(5)
            valkey.kill9()
    rate_ratio, p99_ratio = cases["admission"].ratios(cases["bare"])
    return {
        "connections": connections, "cores": os.cpu_count(), "load_before": round(load, 2),
        **{key: value for name, case in cases.items() for key, value in case.figures(name).items()},
        "rate_ratio": round(rate_ratio, 3),
        "p99_ratio": round(p99_ratio, 2),
    }  # fmt: skip


def _cpu_seconds(pid: int | None) -> float:
    """What a process used so far: tells what a request costs even while others use the machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0.25
    connections = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    print(json.dumps(measure(seconds, connections), indent=2))


if __name__ == "__main__":
    main()
