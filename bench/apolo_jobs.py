"""How fast the platform's list of jobs becomes observations.

python bench/apolo_jobs.py [JOBS ...]
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from config.preset_sizes import Size
from exporter.sources.apolo_records import read_job
from exporter.sources.preset_sizes import PresetSizes

SIZE = 3000
"""Bytes of a job, with its environment and volumes."""
SIZES = PresetSizes((f"preset-{number}", Size(1000 << number, 2**30 << number)) for number in range(8))


def make_job(number: int) -> bytes:
    """A job that was preempted once; one of two has ended."""
    steps = ["pending", "running", "suspended", "running", *(["succeeded"] if number % 2 else [])]
    body: dict[str, Any] = {
        "id": f"job-{number:032x}",
        "owner": f"user-{number % 1000}",
        "cluster_name": "c1",
        "org_name": f"org-{number % 50}",
        "project_name": f"project-{number % 200}",
        "preset_name": f"preset-{number % 8}",
        "status": steps[-1],
        "statuses": [
            {"status": step, "transition_time": f"2025-11-24T15:{at:02}:00.123456+00:00", "reason": None}
            for at, step in enumerate(steps)
        ],
        "container": {"resources": {"cpu": 1.0, "memory": 2**30}, "env": {}},
    }
    body["container"]["env"]["X"] = "x" * max(0, SIZE - len(json.dumps(body)))
    return json.dumps(body).encode()


def main() -> None:
    for jobs in [int(text) for text in sys.argv[1:]] or [10_000, 100_000]:
        took = 0.0
        for first in range(0, jobs, 1000):
            lines = [make_job(number) for number in range(first, min(first + 1000, jobs))]
            start = time.process_time()
            for line in lines:
                assert read_job(line, "c1", SIZES).observation is not None
            took += time.process_time() - start
        print(f"{jobs:7} jobs of {SIZE} bytes: {took:5.2f} s of CPU, {jobs / took:,.0f} jobs/s")


if __name__ == "__main__":
    main()
