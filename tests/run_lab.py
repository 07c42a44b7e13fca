"""A real `credits run` in a directory of its own, on free ports."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.cli_lab import Lab
from tests.servers import free_port, wait_until


class RunLab(Lab):
    """A `credits run` on free ports."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.metrics_port, self.api_port = free_port(), free_port()
        self.processes: list[subprocess.Popen[str]] = []
        self.with_sources({"type": "simulated", "cluster": "default", "orgs": ["acme", "globex"]})

    def with_sources(self, *sources: dict[str, Any]) -> None:
        self.settings(
            sources=list(sources),
            metering={"interval_seconds": 0.2},
            exporter={"listen": f"127.0.0.1:{self.metrics_port}"},
            enforcer={"listen": f"127.0.0.1:{self.api_port}"},
        )

    def up(self, *arguments: str) -> subprocess.Popen[str]:
        """A started `credits run` that serves."""
        process = self.start("run", *arguments, start_new_session=True)
        self.processes.append(process)
        wait_until(lambda: process.poll() is not None or self.answers(), 60, "the services' answer")
        if process.poll() is not None:
            output, errors = process.communicate()
            raise AssertionError(f"credits run ended with {process.returncode}\n{output}{errors}")
        return process

    def answers(self) -> bool:
        try:
            return bool(self.get(self.metrics_port, "/-/healthy") and self.get(self.api_port, "/-/healthy"))
        except OSError:
            return False

    def get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def metric(self, start: str) -> float | None:
        """The value of the first sample whose line starts like this."""
        for line in self.get(self.metrics_port, "/metrics").splitlines():
            if line.startswith(start):
                return float(line.rpartition(" ")[2])
        return None

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        token = (self.directory / "var/admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api_port}{path}", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def is_quiet(self) -> bool:
        """Whether the server of the data directory has gone."""
        return not (self.directory / "var/valkey.sock").exists()

    def end(self) -> None:
        """Kills what was started, and waits for the end of the server."""
        for process in self.processes:
            process.kill()
            with suppress(ValueError):  # was read already
                print(*process.communicate(), sep="\n")  # shown when the test failed
        wait_until(self.is_quiet, 30, "the end of the server")
