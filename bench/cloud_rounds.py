"""Jobs of Apolo and pods of Kubernetes, from the HTTP answer to the commit, on a server of its own.

python -m bench.cloud_rounds [WORKLOADS ...]
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import apolo_jobs, kubernetes_pods
from config.sources import ApoloSource as ApoloSettings
from config.sources import KubernetesSource as KubernetesSettings
from config.values import Secret
from exporter.books import Books
from exporter.rounds import Rounds
from exporter.sources.apolo import ApoloSource
from exporter.sources.base import Source
from exporter.sources.kubernetes import KubernetesSource
from ledger.model import RatePlan, RateTable
from ledger.store import open_ledger
from tests.servers import ServerProcess

START = kubernetes_pods.NOW
SECOND = 1_000_000
MINUTE = 60 * SECOND
TOKEN = "x.eyJpZGVudGl0eSI6ICJtIn0.x"
"""Says that it is the token of `m`."""


def serve_jobs(jobs: int, address: Any) -> None:
    """A platform in a process of its own; one of two jobs runs, the others are over."""
    from aiohttp import web

    async def listed(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        over = "succeeded" in request.query.getall("status")
        for first in range(0, jobs, 500):
            numbers = (n for n in range(first, min(first + 500, jobs)) if (n % 2 == 1) == over)
            await response.write(b"".join(apolo_jobs.make_job(n) + b"\n" for n in numbers))
        await response.write_eof()
        return response

    async def config(request: web.Request) -> web.Response:
        return web.json_response({"clusters": [{"name": "c1", "resource_presets": [], "storage_volumes": []}]})

    async def allowed(request: web.Request) -> web.Response:
        return web.json_response([])

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/api/v1/jobs", listed)
        app.router.add_get("/api/v1/config", config)
        app.router.add_post("/apis/admin/v1/users/m/permissions/check", allowed)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.put(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


async def meter(kind: str, count: int, port: int, redis_url: str) -> None:
    """A first round of everything, and the next ones, in which all of it goes on."""
    now = START + 45 * MINUTE

    def clock() -> int:
        return now

    url = f"http://127.0.0.1:{port}"
    source: Source
    if kind == "jobs":
        source = ApoloSource(
            ApoloSettings(name="bench", cluster="c1", url=f"{url}/api/v1", token=Secret(TOKEN), disks=False), clock
        )
    else:
        pods = KubernetesSettings(name="bench", cluster="c1", url=url, volumes=False, timeout_seconds=300.0)
        source = KubernetesSource(pods, clock, settle_us=0, stale_us=1 << 60)
    async with open_ledger(redis_url, epoch_us=START - 1440 * MINUTE, clock=clock) as ledger:
        table = RateTable({f"preset-{n}": 1_000_000_007 * (n + 1) for n in range(8)})
        await ledger.rates.publish(RatePlan("c1", ((0, table),)))
        rounds = Rounds(Books(ledger), source, hold_us=15 * MINUTE)
        for name in ("first", "next", "next"):
            wall, cpu = time.perf_counter(), time.process_time()
            report = await rounds.round()
            print(
                f"{count:7} {kind}: {name:5} round {time.perf_counter() - wall:6.2f} s, "
                f"{time.process_time() - cpu:6.2f} s of CPU, {report.workloads} workloads, {report.records} records, "
                f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB",
                flush=True,
            )
            now += 15 * SECOND
        spent = sum(balance.spent_micro for balance in await ledger.accounts.balances())
        assert spent > 0, "it was charged"
    await source.close()


def metered(kind: str, count: int, port: int, redis_url: str) -> None:
    asyncio.run(meter(kind, count, port, redis_url))


def main() -> None:
    context = multiprocessing.get_context("spawn")
    for kind, serve in (("jobs", serve_jobs), ("pods", kubernetes_pods.serve)):
        for count in [int(text) for text in sys.argv[1:]] or [10_000, 100_000]:
            with tempfile.TemporaryDirectory() as directory:
                server = ServerProcess(Path(directory)).start()
                address = context.Queue()
                api = context.Process(target=serve, args=(count, address), daemon=True)
                api.start()
                try:
                    kubernetes_pods.in_process(metered, kind, count, address.get(timeout=30), server.url)
                finally:
                    api.terminate()
                    api.join()
                    server.kill9()


if __name__ == "__main__":
    main()
