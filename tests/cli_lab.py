"""The real `credits` command in a directory of its own, with files that the tests write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[1]
T = "2026-11-22T"
RATES: dict[str, Any] = {
    "clusters": {
        "default": {
            "presets": {
                "cpu-small": {"credits_per_hour": "1"},
                "gpu-large": {"credits_per_hour": "40.5"},
                "odd": {"credits_per_hour": "0.000001001"},
            },
            "apps": {"vllm": {"credits_per_hour": "2.5"}},
            "storage": {"default": {"credits_per_gb_hour": "0.0001"}},
        }
    }
}


def job(name: str, started: str | None, ended: str | None = None, **facts: Any) -> dict[str, Any]:
    """A job of ann in acme/vision on gpu-large; times are of 22 November 2026, like `09:00:00`."""
    return {
        "id": name,
        "kind": "job",
        "org": "acme",
        "project": "vision",
        "user": "ann",
        "preset": "gpu-large",
        "started_at": started and f"{T}{started}Z",
        "ended_at": ended and f"{T}{ended}Z",
        **facts,
    }


def volume(name: str, size: int, **facts: Any) -> dict[str, Any]:
    """A volume of acme/vision."""
    return {
        "id": name,
        "org": "acme",
        "project": "vision",
        "user": None,
        "storage_class": "default",
        "bytes": size,
        **facts,
    }


class Lab:
    """A working directory with settings, rates and a snapshot for the `json` source."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "config").mkdir(parents=True)
        self.settings(sources=[{"type": "json", "cluster": "default", "path": "snapshot.json"}])
        self.rates(RATES)

    def settings(self, **changes: Any) -> None:
        """Writes the settings: the ledger begins on 1 November 2026."""
        content = {"data_dir": "var", "metering": {"epoch": "2026-11-01T00:00:00Z"}, **changes}
        (self.directory / "config/settings.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def rates(self, content: dict[str, Any]) -> None:
        (self.directory / "config/rates.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def snapshot(self, taken: str, *workloads: dict[str, Any], storage: Any = (), **more: Any) -> None:
        """Writes what the scheduler says; `taken` like `10:00:00` on 22 November 2026."""
        taken_at = taken if "T" in taken else f"{T}{taken}Z"
        document = {
            "cluster": "default",
            "taken_at": taken_at,
            "workloads": list(workloads),
            "storage": list(storage),
            **more,
        }
        (self.directory / "snapshot.json").write_text(json.dumps(document))

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """A command that goes on; its output is piped."""
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=self.directory,
            env=self.environment(),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **more,
        )

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CREDITS_")}
        return {**kept, "PYTHONPATH": str(REPOSITORY)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command and how it ended."""
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            cwd=self.directory,
            env=self.environment(),
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )

    def ok(self, *arguments: str) -> str:
        """The output of a command that has to succeed."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"credits {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What a command says with `--json`."""
        return json.loads(self.ok(*arguments, "--json"))

    def once(self, taken: str, *workloads: dict[str, Any], storage: Any = (), **more: Any) -> None:
        """One round over one snapshot."""
        self.snapshot(taken, *workloads, storage=storage, **more)
        self.ok("exporter", "--once")

    def used(self, group: str = "workload", *arguments: str) -> dict[str, tuple[str, str]]:
        """Credits and hours by what `usage` is grouped by; runs of one id are told apart by `@start`."""
        report = self.json("usage", "--group-by", group, *arguments)
        found: dict[str, tuple[str, str]] = {}
        for row in report["rows"]:
            name = row[group] or "-"
            if name in found or f"{name}@" in "".join(found):
                name = f"{name}@{row['started_at']}"
            found[name] = row["credits"], row["hours"]
        return found

    def spent(self, org: str = "acme") -> str:
        spent: str = self.json("balance", org)["spent"]
        return spent
