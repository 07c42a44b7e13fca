"""`demo`: a tour of two minutes on a throw-away ledger, every word of output real."""

from __future__ import annotations

import fcntl
import io
import json
import shlex
import sys
import tempfile
import time
from contextlib import ExitStack, chdir, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Final

import click

from cli.base import Command
from ledger.clock import format_time, now_us
from ledger.embedded_guard import SERVER_LOCK
from ledger.errors import CreditsError
from ledger.money import HOUR_US

_PAUSE_SECONDS: Final = 6.0
_SETTINGS: Final = """\
data_dir: var
rates: config/rates.yaml
metering: {{epoch: "{epoch}"}}
sources:
  - {{type: json, cluster: default, path: snapshot.json}}
"""
_RATES: Final = """\
clusters:
  default:
    presets:
      gpu-large: {credits_per_hour: 40.5}
    storage:
      default: {credits_per_gb_hour: 0.0001}
"""


@click.command(cls=Command)
def demo() -> None:
    """A tour: grant, job, charge, refusal, top-up. Takes two minutes, leaves nothing behind."""
    from ledger.embedded import open_embedded

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="credits-demo-")))
        stack.callback(_wait_for_end, directory / "var")
        tour = _Tour(directory, now_us() // 1_000_000 * 1_000_000)
        stack.enter_context(open_embedded(directory / "var"))  # so that the commands need not start it each time
        stack.enter_context(chdir(directory))
        tour.go()


class _Tour:
    """Runs the commands themselves in a directory of its own."""

    def __init__(self, directory: Path, now: int) -> None:
        self._directory = directory
        self._now = now
        (directory / "config").mkdir()
        (directory / "config/settings.yaml").write_text(_SETTINGS.format(epoch=format_time(now - 24 * HOUR_US)))
        (directory / "config/rates.yaml").write_text(_RATES)

    def go(self) -> None:
        """From an empty ledger to a refused job and on."""
        now = self._now
        job: dict[str, Any] = {
            "id": "job-1", "kind": "job", "org": "acme", "project": "vision", "user": "ann", "preset": "gpu-large",
            "started_at": format_time(now - HOUR_US),
        }  # fmt: skip
        volume = {"id": "data", "org": "acme", "project": "vision", "storage_class": "default", "bytes": 2 * 10**12}

        self._say("An hour on gpu-large costs 40.5 credits. Org acme has bought 50, good for 90 days.")
        expires = format_time(now + 90 * 24 * HOUR_US)
        self._run("grant", "acme", "50", "--source", "purchase", "--reason", "first order", "--expires-at", expires)

        self._say(
            "Ann's job has been running for an hour, beside 2 TB of data. Any scheduler can say so: here it is a file\n"
            "(Slurm, Apolo and Kubernetes are built in)."
        )
        self._snapshot(now - HOUR_US, [], [volume])
        self._run("exporter", "--once", quiet=True)
        self._snapshot(now, [job], [volume])
        click.echo(click.style("$ cat snapshot.json", bold=True))
        click.echo((self._directory / "snapshot.json").read_text())
        self._run("exporter", "--once")
        self._run("usage", "--group-by", "workload,kind")
        self._run("balance", "acme")

        self._say("What is left is set aside for the job that runs. Bob wants to start one more:")
        self._run("admit", "acme", "gpu-large", "--project", "vision", "--user", "bob", "--workload-id", "job-2", ok=1)

        self._say("That is what sbatch or kubectl would tell him. Before he asks for credits: what will he need?")
        self._run("quote", "acme", "gpu-large", "--project", "vision", "--user", "bob", "--max-runtime-seconds", "7200")

        self._say("A top-up, repeated by a nervous finger: the key makes it count once.")
        for _ in range(2):
            self._run("grant", "acme", "200", "--source", "purchase", "--idempotency-key", "order-4711")
        self._run("admit", "acme", "gpu-large", "--project", "vision", "--user", "bob", "--workload-id", "job-2")

        self._say("Project vision gets a budget for the month. It counts what was spent already:")
        self._run("budget", "set", "acme", "vision", "60")
        self._run("admit", "acme", "gpu-large", "--project", "vision", "--user", "eve", "--workload-id", "job-3", ok=1)

        self._say("Ann's job had ended after 30 minutes, the scheduler says now. The difference is given back:")
        ended = {**job, "ended_at": format_time(now - HOUR_US // 2)}
        self._snapshot(now + 1_000_000, [ended], [volume])
        self._run("exporter", "--once")
        self._run("balance", "acme")
        self._run("journal", "acme")

        self._say("And the books are right, to the micro-credit:")
        self._run("verify")
        self._say("That was it; nothing of it is left on the disk. `credits run` starts the real thing.")

    def _say(self, text: str) -> None:
        if sys.stdout.isatty():
            time.sleep(_PAUSE_SECONDS)
        click.echo()
        for line in text.splitlines():
            click.echo(click.style(f"# {line}", fg="cyan"))

    def _run(self, *arguments: str, ok: int = 0, quiet: bool = False) -> None:
        from cli.main import INTERRUPTED, run_command

        if not quiet:
            click.echo(click.style(f"$ credits {shlex.join(arguments)}", bold=True))
        sys.stdout.flush()
        with redirect_stdout(io.StringIO()) if quiet else nullcontext():
            code = run_command(["--config", "config/settings.yaml", *arguments])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code != ok:
            raise CreditsError(f"`credits {shlex.join(arguments)}` ended with {code}")

    def _snapshot(self, taken: int, workloads: list[dict[str, Any]], storage: list[dict[str, Any]]) -> None:
        document = {"cluster": "default", "taken_at": format_time(taken), "workloads": workloads, "storage": storage}
        (self._directory / "snapshot.json").write_text(json.dumps(document, indent=1))


def _wait_for_end(data_dir: Path) -> None:
    """Until the server has written its last file."""
    with (data_dir / SERVER_LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


COMMANDS = (demo,)
