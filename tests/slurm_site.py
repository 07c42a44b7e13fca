"""A real Slurm whose work is paid for in credits: submit hook, exporter, enforcer and Prometheus as processes.

Charges are compared with Slurm's own accounting times the rate, to the micro-credit.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger.clock import format_time
from ledger.money import format_micro, parse_credits, parse_rate
from tests.cli_lab import Lab
from tests.prometheus_lab import Prometheus, prometheus
from tests.slurm_lab import Run, SbatchRefused, SlurmLab, free_ports, wait_until

HOOK = Path(__file__).parents[1] / "deploy" / "slurm"
RATES = {
    "cpu": "1.234567891",
    "gpu-one": "40.5",
    "gpu-pair": "80.999999999",
    "burner": "36000",  # 10 credits a second
}
LABELS = ("cluster", "org", "project", "user", "kind", "resource", "app")
BUDGET_SECONDS = 0.15
"""How long the hook may take."""
GPU = ("-p", "gpu", "--gres=gpu:a100:1")
PAIR = ("-p", "gpu", "--gres=gpu:a100:2")
BURNER = ("-p", "gpu", "--gres=gpu:a100:4")
Charge = tuple[str, str, str, str, str, str]
"""project, preset, id, start, end, credits."""


class Service:
    """`credits exporter` or `credits enforcer` as a process of its own. `cert`: what it shows, where it speaks TLS."""

    def __init__(self, desk: Lab, command: str, port: int, cert: Path | None = None) -> None:
        self.url = f"{'https' if cert else 'http'}://127.0.0.1:{port}"
        self.trust = ssl.create_default_context(cafile=str(cert)) if cert else None
        self.log = desk.directory / f"{command}.log"
        self._desk = desk
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", self._command],
                cwd=self._desk.directory, env=self._desk.environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(f"{self._command} is ready", self._is_ready, 30)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._process.wait(20)

    @contextmanager
    def sent(self, number: signal.Signals) -> Iterator[None]:
        """Stopped or killed for as long as the block lasts."""
        self.send(number)
        try:
            yield
        finally:
            if number is signal.SIGSTOP:
                self.send(signal.SIGCONT)
            else:
                self.start()

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"{self.url}/-/ready", timeout=2, context=self.trust).close()
        except (urllib.error.URLError, OSError):
            return False
        return True


@dataclass
class Site:
    """A cluster whose work is paid for in credits."""

    slurm: SlurmLab
    desk: Lab
    """Where an administrator types `credits`."""
    exporter: Service
    enforcer: Service
    prometheus: Prometheus
    hook: dict[str, str]
    admin: str
    """A token."""

    def charges(self, org: str) -> set[Charge]:
        """What the ledger says each run of an org cost, asked over HTTP."""
        return _charges(self._usage("project,resource,workload", org))

    def charges_told(self, org: str) -> set[Charge]:
        """The same, asked on the command line."""
        report = self.desk.json("usage", "--org", org, "--group-by", "project,resource,workload")
        return _charges(report["rows"])

    def sums(self, org: str, by: str) -> dict[tuple[str, ...], str]:
        return {tuple(row[name] or "" for name in by.split(",")): row["credits"] for row in self._usage(by, org)}

    def seen_by_prometheus(self, org: str) -> dict[tuple[str, ...], str]:
        """`credits_spent_total` by its labels as Prometheus holds it, in the digits of the ledger."""
        found = self.prometheus.get("query", query=f'credits_spent_total{{org="{org}"}}')["result"]
        return {
            tuple(row["metric"].get(name, "") for name in LABELS): format_micro(parse_credits(row["value"][1]))
            for row in found
        }

    def balance(self, org: str) -> dict[str, str]:
        """Of an org, after a look at whether it adds up."""
        found: dict[str, Any] = self.ask(f"orgs/{org}/balance")
        granted, expired, spent, held = (Decimal(found[name]) for name in ("granted", "expired", "spent", "held"))
        assert Decimal(found["available"]) == granted - expired - spent - held, found
        return found

    def wait_charged(self, org: str, expected: set[Charge]) -> None:
        """Until the exporter has charged what accounting says; the difference where it never does."""
        try:
            wait_until(f"{org} is charged", lambda: self.charges(org) == expected, 30, 0.1)
        except TimeoutError:
            assert self.charges(org) == expected
            raise

    def wait_scraped(self, org: str) -> None:
        """Until Prometheus holds what the ledger says; the difference where it never does."""
        by = ",".join(LABELS)
        try:
            wait_until("scraped", lambda: self.seen_by_prometheus(org) == self.sums(org, by), 30, 0.1)
        except TimeoutError:
            assert self.seen_by_prometheus(org) == self.sums(org, by)
            raise

    def journal(self, org: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.ask(f"orgs/{org}/journal?limit=1000")["items"]
        return items

    def comment(self, job: int) -> str:
        """What the hook noted with a job."""
        jobs = json.loads(self.slurm.run("squeue", "--json"))["jobs"]
        return str(next(one["admin_comment"] for one in jobs if one["job_id"] == job))

    def ask(self, path: str) -> Any:
        """The enforcer's answer to an administrator."""
        request = urllib.request.Request(f"{self.enforcer.url}/v1/{path}")
        request.add_header("Authorization", f"Bearer {self.admin}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def _usage(self, by: str, org: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.ask(f"usage?org={org}&group_by={by}")["rows"]
        return rows


def _charges(rows: list[dict[str, Any]]) -> set[Charge]:
    assert not any(Decimal(row.get("refunded", "0")) for row in rows)
    names = ("project", "resource", "id", "started_at", "ended_at", "credits")
    return {tuple(str(row[name]) for name in names) for row in rows}  # type: ignore[misc]


def micro_of(preset: str, seconds: int) -> int:
    """Time x rate, rounded down once."""
    return seconds * parse_rate(RATES[preset]) // (3600 * 1000)


def charge(project: str, preset: str, run: Run) -> Charge:
    """Of a run that is over, for the time that Slurm's accounting says it had."""
    assert run.start is not None
    assert run.end is not None
    start, end = (format_time(second * 1_000_000) for second in (run.start, run.end))
    return project, preset, str(run.job_id), start, end, format_micro(micro_of(preset, run.elapsed))


@contextmanager
def paid_site(base: Path, orgs: Mapping[str, tuple[str, ...]], **settings: Any) -> Iterator[Site]:
    """Everything up. `orgs`: the Slurm accounts of each org, in which alice and bob work; `settings`: more of them.

    Account `lab7` is project `group-7`, others are projects of their own names.
    """
    with ExitStack() as stack:
        slurm = SlurmLab(base / "slurm", nodes=2, min_job_age=2, hook=HOOK)
        stack.callback(slurm.stop)
        slurm.start()
        for org, accounts in orgs.items():
            slurm.run("sacctmgr", "-i", "add", "account", org)
            slurm.run("sacctmgr", "-i", "add", "account", ",".join(accounts), f"parent={org}")
            slurm.run("sacctmgr", "-i", "add", "user", "alice,bob", f"account={','.join(accounts)}")
        directory = base / "credits"
        directory.mkdir()
        exporter_port, enforcer_port = free_ports(2)
        desk = Lab(directory)
        _configure(desk, slurm, exporter_port, enforcer_port, settings)
        token = slurm.conf / "token"
        token.touch(0o600)
        token.write_text(desk.json("token", "create", "--role", "scheduler")["token"] + "\n")
        admin = desk.json("token", "create", "--role", "admin")["token"]
        hook = {"address": f"127.0.0.1:{enforcer_port}", "token_file": str(token), "cluster": "hpc"}
        hook |= {"budget_seconds": str(BUDGET_SECONDS), "cooldown_seconds": "1"}
        slurm.write_hook_conf(hook)
        exporter, enforcer = Service(desk, "exporter", exporter_port), Service(desk, "enforcer", enforcer_port)
        for service in (exporter, enforcer):
            stack.callback(service.end)
            service.start()
        scraped = directory / "prometheus.yml"
        scraped.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
            f"scrape_configs: [{{job_name: credits, static_configs: [{{targets: ['127.0.0.1:{exporter_port}']}}]}}]\n"
        )
        server = stack.enter_context(prometheus(scraped, directory / "tsdb"))
        wait_until("the account tree is known", lambda: _knows_accounts(slurm), 20, 0.2)
        yield Site(slurm, desk, exporter, enforcer, server, hook, admin)


def _configure(desk: Lab, slurm: SlurmLab, exporter_port: int, enforcer_port: int, more: Mapping[str, Any]) -> None:
    source = {
        "type": "slurm",
        "cluster": "hpc",
        "slurm_conf": str(slurm.slurm_conf),
        "accounts": [
            {"account": "lab*", "org": "{top}", "project": "group-{1}"},
            {"account": "*", "org": "{top}", "project": "{account}"},
        ],
        "presets": [
            {"gres": "gpu:a100=4", "preset": "burner"},
            {"gres": "gpu:a100=2", "preset": "gpu-pair"},
            {"gres": "gpu*", "preset": "gpu-one"},
            {"partition": "*", "preset": "{partition}"},
        ],
    }
    desk.settings(
        sources=[source],
        exporter={"listen": f"127.0.0.1:{exporter_port}"},
        enforcer={"listen": f"127.0.0.1:{enforcer_port}"},
        **more,
    )
    desk.rates({"clusters": {"hpc": {"presets": {name: {"credits_per_hour": rate} for name, rate in RATES.items()}}}})


def _knows_accounts(slurm: SlurmLab) -> bool:
    """Whether the enforcer has read the account tree: it then says whose account this is, and that it has no org."""
    with pytest.raises(SbatchRefused) as refused:
        slurm.sbatch(account="proja", options=["--hold"])
    return "no org 'acme'" in str(refused.value)
