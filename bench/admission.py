"""Admission over HTTP against a bare aiohttp handler, in the same run: requests a second and the 99th percentile.

python bench/admission.py [SECONDS [CONNECTIONS]]

Each server is a process of its own, the clients are another. Rounds of both alternate, so that what else the machine
does falls on both; the figures are medians of the rounds.
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

ROUNDS = 5
JOB = {"cluster": "c", "org": "acme", "project": "vision", "user": "ann", "kind": "job", "preset": "small"}
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
    """The enforcer on a ledger with one org that has enough."""
    from config.settings import EnforcerSettings, Settings
    from config.values import Address
    from enforcer.app import build_app
    from enforcer.server import serving
    from ledger.model import RatePlan, RateTable
    from ledger.store import open_ledger

    async def main() -> None:
        async with open_ledger(url) as ledger:
            await ledger.rates.publish(RatePlan("c", ((0, RateTable({"small": 1_000_000_000})),)))
            await ledger.accounts.grant("acme", 10**15, key="bench", who="bench")
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


def measure(seconds: float, connections: int) -> dict[str, Any]:
    """Medians over the rounds, and their ratios."""
    from tests.servers import ServerProcess

    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        valkey = ServerProcess(Path(directory)).start()
        servers = []
        try:
            for serve, arguments in ((serve_bare, ()), (serve_enforcer, (valkey.url,))):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=serve, args=(theirs, *arguments), daemon=True)
                process.start()
                servers.append((process, ours, *ours.recv()))
            figures: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
            cpu = [0.0, 0.0, 0.0]
            answered = [0, 0]
            for _, _, port, token in servers:
                asyncio.run(_load(port, token, 0.5, connections))
            for _ in range(ROUNDS):
                for number, (process, _, port, token) in enumerate(servers):
                    before = _cpu_seconds(process.pid), _cpu_seconds(valkey.pid)
                    rate, latencies = asyncio.run(_load(port, token, seconds, connections))
                    cpu[number] += _cpu_seconds(process.pid) - before[0]
                    cpu[2] += (_cpu_seconds(valkey.pid) - before[1]) * number
                    answered[number] += len(latencies)
                    figures[number].append((rate, statistics.quantiles(latencies, n=100)[98]))
        finally:
            for process, pipe, *_ in servers:
                pipe.send("stop")
                process.join(5)
            valkey.kill9()
    rates = [statistics.median(rate for rate, _ in figures[number]) for number in (0, 1)]
    tails = [statistics.median(tail for _, tail in figures[number]) for number in (0, 1)]
    return {
        "connections": connections, "cores": os.cpu_count(),
        "bare_per_second": round(rates[0]), "admission_per_second": round(rates[1]),
        "rate_ratio": round(rates[1] / rates[0], 3),
        "bare_p99_ms": round(tails[0] * 1000, 2), "admission_p99_ms": round(tails[1] * 1000, 2),
        "p99_ratio": round(tails[1] / tails[0], 2),
        "bare_cpu_us": round(cpu[0] / answered[0] * 1e6),
        "admission_cpu_us": round(cpu[1] / answered[1] * 1e6), "valkey_cpu_us": round(cpu[2] / answered[1] * 1e6),
    }  # fmt: skip


def _cpu_seconds(pid: int | None) -> float:
    """What a process used so far: tells what a request costs even while others use the machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3.0
    connections = int(sys.argv[2]) if len(sys.argv) > 2 else 32
    print(json.dumps(measure(seconds, connections), indent=2))


if __name__ == "__main__":
    main()
