"""How fast pods become observations, what they take in memory, and what a watch of many changes costs.

python bench/kubernetes_pods.py [PODS ...]
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import sys
import time
from typing import Any
from uuid import UUID

from config.sources import KubernetesSource as KubernetesSettings
from config.sources import Labels
from exporter.sources.kubernetes import KubernetesSource
from exporter.sources.kubernetes_namespaces import Namespaces
from exporter.sources.kubernetes_pods import Pods
from exporter.sources.kubernetes_records import PodReader
from exporter.sources.preset_sizes import PresetSizes

SIZE = 2600
"""Bytes of a pod, as they are on a cluster that has init containers, probes and volumes."""
RUNNING = {"running": {"startedAt": "2025-11-24T15:01:00Z"}}
NOW = 1_764_000_000_000_000
RATE = 1000
SECONDS = 10


def make_pod(number: int, version: int = 1) -> bytes:
    """A running pod; one of four belongs to an app."""
    labels = {
        "platform.apolo.us/org": f"org-{number % 50}",
        "platform.apolo.us/project": f"project-{number % 200}",
        "platform.apolo.us/user": f"user-{number % 1000}",
        "platform.apolo.us/preset": f"preset-{number % 8}",
    }
    if number % 4 == 0:
        labels["app.kubernetes.io/instance"] = f"app-{number % 5000}"
    body: dict[str, Any] = {
        "metadata": {
            "name": f"pod-{number}", "namespace": f"ns-{number % 200}", "uid": str(UUID(int=number)), "labels": labels,
            "creationTimestamp": "2025-11-24T15:00:00Z", "resourceVersion": str(version),
            "managedFields": [],
        },
        "spec": {
            "nodeName": f"node-{number % 100}",
            "containers": [{"name": "main", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}],
        },
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2025-11-24T15:01:00Z"}],
            "containerStatuses": [{"name": "main", "restartCount": 0, "ready": True, "state": RUNNING}],
        },
    }  # fmt: skip
    body["metadata"]["managedFields"] = [{"manager": "x" * max(0, SIZE - len(json.dumps(body)))}]
    return json.dumps(body).encode()


def resident_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 1e6


def parse(pods: int) -> None:
    """Take in pods one by one, then again unchanged, then a snapshot."""
    namespaces = Namespaces(Labels(), lambda name: None)
    state = Pods(PodReader(Labels(), PresetSizes()), namespaces, ())
    before, took = resident_mb(), 0.0
    for first in range(0, pods, 500):
        page = [make_pod(number) for number in range(first, min(first + 500, pods))]
        start = time.process_time()
        for raw in page:
            state.add(raw, NOW)
        took += time.process_time() - start
    grown = resident_mb() - before
    start = time.perf_counter()
    workloads = [*state.live.values(), *state.app_runs(NOW, None)]
    first_fetch = time.perf_counter() - start
    start = time.perf_counter()
    workloads = [*state.live.values(), *state.app_runs(NOW, None)]
    fetch = time.perf_counter() - start
    print(
        f"{pods:7} pods: {took:6.2f} s of CPU, {pods / took:8,.0f} pods/s, "
        f"+ {grown:5.0f} MB ({grown * 1e6 / pods:,.0f} B a pod)\n        "
        f"snapshot of {len(workloads)}: first {first_fetch * 1000:.1f} ms, then {fetch * 1000:.1f} ms"
    )


def serve(pods: int, address: Any) -> None:
    """An API server in a process of its own: a list in chunks, then RATE changes a second for SECONDS."""
    from aiohttp import web

    async def read(request: web.Request) -> web.StreamResponse:
        is_pods = request.path.endswith("/pods")
        if "watch" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            if is_pods:
                begun = asyncio.get_running_loop().time()
                for step in range(SECONDS * 10):
                    lines = b"".join(
                        b'{"type":"MODIFIED","object":' + make_pod((step * 100 + n) % pods, 2 + step * 100 + n) + b"}\n"
                        for n in range(RATE // 10)
                    )
                    try:
                        await response.write(lines)
                    except ConnectionResetError:
                        return response  # it was measured
                    await asyncio.sleep(max(0.0, begun + (step + 1) / 10 - asyncio.get_running_loop().time()))
            await asyncio.Event().wait()
        first = int(request.query.get("continue") or 0)
        last = min(pods, first + int(request.query["limit"])) if is_pods else 0
        items = b",".join(make_pod(number) for number in range(first, last))
        meta = {"resourceVersion": "1"} | ({"continue": str(last)} if last < pods and is_pods else {})
        body = b'{"metadata":' + json.dumps(meta).encode() + b',"items":[' + items + b"]}"
        return web.Response(body=body, content_type="application/json")

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/api/v1/{plural}", read)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.put(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


async def watch(pods: int, port: int) -> None:
    """List, then follow RATE changes a second."""
    settings = KubernetesSettings(name="bench", url=f"http://127.0.0.1:{port}", volumes=False, timeout_seconds=300.0)
    source = KubernetesSource(settings, page=500)
    before, start, cpu = resident_mb(), time.perf_counter(), time.process_time()
    await source.fetch(None)
    print(
        f"{pods:7} pods: listed in {time.perf_counter() - start:5.1f} s ({time.process_time() - cpu:.1f} s of CPU), "
        f"+ {resident_mb() - before:.0f} MB"
    )
    grown, start, cpu = resident_mb(), time.perf_counter(), time.process_time()
    wanted = str(1 + RATE * SECONDS)
    fetches: list[float] = []
    async with asyncio.timeout(SECONDS * 6):
        while source.versions()["/api/v1/pods"] != wanted:
            await asyncio.sleep(0.5)
            fetching = time.perf_counter()
            await source.fetch(NOW)
            fetches.append(time.perf_counter() - fetching)
    took, used = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"        {RATE * SECONDS} changes in {took:.1f} s: {used / took:.0%} of a core, "
        f"{used / (RATE * SECONDS) * 1e6:.0f} us each, {resident_mb() - grown:+.0f} MB; "
        f"a fetch every 0.5 s took {max(fetches) * 1000:.0f} ms at most"
    )
    await source.close()


def in_process(task: Any, *arguments: Any) -> None:
    """Run in a process of its own, so that memory is only what it takes."""
    process = multiprocessing.get_context("spawn").Process(target=task, args=arguments)
    process.start()
    process.join()


def watched(pods: int, port: int) -> None:
    asyncio.run(watch(pods, port))


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or [10_000, 100_000]
    for pods in sizes:
        in_process(parse, pods)
    for pods in sizes:
        context = multiprocessing.get_context("spawn")
        address = context.Queue()
        server = context.Process(target=serve, args=(pods, address), daemon=True)
        server.start()
        in_process(watched, pods, address.get(timeout=30))
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
