"""How fast a `json` document becomes a snapshot: first reading, and again with 1 % of it changed.

python bench/json_parse.py [WORKLOADS]
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

from exporter.sources.json_document import Cache, parse


def document(workloads: int, taken: int, ended_every: int = 0) -> bytes:
    """A document of running jobs; with `ended_every` n, each n-th of them has ended."""
    jobs = [
        {
            "id": f"job-{number}",
            "kind": "job",
            "org": f"org-{number % 50}",
            "project": f"project-{number % 200}",
            "user": f"user-{number % 1000}",
            "preset": f"preset-{number % 8}",
            "app": None,
            "started_at": f"2026-11-22T{number % 10:02}:{number // 10 % 60:02}:{number // 600 % 60:02}Z",
            "ended_at": "2026-11-22T11:00:00Z" if ended_every and number % ended_every == 0 else None,
            "suspended": [["2026-11-22T10:10:00Z", "2026-11-22T10:20:00Z"]] if number % 100 == 1 else [],
        }
        for number in range(workloads)
    ]
    return json.dumps(
        {"cluster": "c", "taken_at": f"2026-11-22T12:00:{taken:02}Z", "workloads": jobs, "storage": []}
    ).encode()


def write(path: str, workloads: int, taken: int, ended_every: int) -> None:
    """Make a document; in a process of its own, so that its memory does not count."""
    Path(path).write_bytes(document(workloads, taken, ended_every))


def main() -> None:
    workloads = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    cache = Cache()
    with tempfile.TemporaryDirectory() as directory:
        for what, taken, ended_every in (("first", 0, 0), ("same again", 15, 0), ("1 % ended", 30, 100)):
            path = f"{directory}/{taken}.json"
            maker = multiprocessing.get_context("spawn").Process(
                target=write, args=(path, workloads, taken, ended_every)
            )
            maker.start()
            maker.join()
            data = Path(path).read_bytes()
            start = time.perf_counter()
            snapshot = parse(data, "bench", "c", cache)
            took = time.perf_counter() - start
            assert len(snapshot.workloads) == workloads
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{what:12} {len(data) / 1e6:5.1f} MB  {took:6.3f} s  {workloads / took:12,.0f} workloads/s"
                f"  resident at most {resident:4.0f} MB"
            )


if __name__ == "__main__":
    main()
