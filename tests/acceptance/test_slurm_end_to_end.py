"""From a real scheduler to a refused job: Slurm, exporter, enforcer, Prometheus and command line, all of them real.

Charges are compared with Slurm's own accounting times the rate, to the micro-credit. Each test has an org of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger.clock import format_time
from ledger.money import format_micro, parse_credits, parse_rate
from tests.cli_lab import Lab
from tests.prometheus_lab import Prometheus, prometheus
from tests.slurm_lab import Run, SbatchRefused, SlurmLab, free_ports, missing_for_lab, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.prometheus, pytest.mark.slow]

HOOK = Path(__file__).parents[2] / "deploy" / "slurm"
RATES = {
    "cpu": "1.234567891",
    "gpu-one": "40.5",
    "gpu-pair": "80.999999999",
    "burner": "36000",  # 10 credits a second
}
LABELS = ("cluster", "org", "project", "user", "kind", "resource", "app")
BUDGET_SECONDS = 0.15
Charge = tuple[str, str, str, str, str, str]
"""project, preset, id, start, end, credits."""


class Service:
    """`credits exporter` or `credits enforcer` as a process of its own."""

    def __init__(self, desk: Lab, command: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
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
            urllib.request.urlopen(f"{self.url}/-/ready", timeout=2).close()
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
        """What the ledger says each run of an org cost."""
        rows = self._usage("project,resource,workload", org)
        names = ("project", "resource", "id", "started_at", "ended_at", "credits")
        assert not any(Decimal(row.get("refunded", "0")) for row in rows)
        return {tuple(str(row[name]) for name in names) for row in rows}  # type: ignore[misc]

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
        found: dict[str, Any] = self.desk.json("balance", org)
        amounts = {name: Decimal(found[name]) for name in ("granted", "expired", "spent", "held", "available")}
        assert amounts["available"] == (amounts["granted"] - amounts["expired"] - amounts["spent"] - amounts["held"]), (
            found
        )
        return found

    def wait_charged(self, org: str, expected: set[Charge]) -> None:
        """Until the exporter has charged what accounting says; the difference where it never does."""
        try:
            wait_until(f"{org} is charged", lambda: self.charges(org) == expected, 20, 0.2)
        except TimeoutError:
            assert self.charges(org) == expected
            raise

    def wait_scraped(self, org: str) -> None:
        by = ",".join(LABELS)
        try:
            wait_until("scraped", lambda: self.seen_by_prometheus(org) == self.sums(org, by), 20, 0.2)
        except TimeoutError:
            assert self.seen_by_prometheus(org) == self.sums(org, by)
            raise

    def refusals(self, org: str) -> list[tuple[str, str]]:
        """(code, how it was asked) of what the journal says was refused."""
        request = urllib.request.Request(f"{self.enforcer.url}/v1/orgs/{org}/journal")
        request.add_header("Authorization", f"Bearer {self.admin}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            items = json.load(answer)["items"]
        return [(entry["code"], entry["via"]) for entry in items if entry["type"] == "refusal"]

    def comment(self, job: int) -> str:
        """What the hook noted with a job."""
        jobs = json.loads(self.slurm.run("squeue", "--json"))["jobs"]
        return str(next(one["admin_comment"] for one in jobs if one["job_id"] == job))

    def _usage(self, by: str, org: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.desk.json("usage", "--org", org, "--group-by", by)["rows"]
        return rows


def charge(project: str, preset: str, run: Run) -> Charge:
    """Slurm's elapsed time x rate, rounded down once."""
    assert run.start is not None
    assert run.end is not None
    micro = run.elapsed * parse_rate(RATES[preset]) // (3600 * 1000)
    start, end = (format_time(second * 1_000_000) for second in (run.start, run.end))
    return project, preset, str(run.job_id), start, end, format_micro(micro)


@pytest.fixture(scope="module")
def site(slurm_base: Path) -> Iterator[Site]:
    if reason := missing_for_lab():
        pytest.skip(reason)
    with ExitStack() as stack:
        slurm = SlurmLab(slurm_base / "paid", nodes=2, min_job_age=2, hook=HOOK)
        stack.callback(slurm.stop)
        slurm.start()
        make_accounts(slurm)
        directory = slurm_base / "credits"
        directory.mkdir()
        exporter_port, enforcer_port = free_ports(2)
        desk = Lab(directory)
        configure(desk, slurm, exporter_port, enforcer_port)
        token = slurm.conf / "token"
        token.touch(0o600)
        token.write_text(desk.json("token", "create", "--role", "scheduler")["token"] + "\n")
        admin = desk.json("token", "create", "--role", "admin")["token"]
        exporter, enforcer = Service(desk, "exporter", exporter_port), Service(desk, "enforcer", enforcer_port)
        for service in (exporter, enforcer):
            stack.callback(service.end)
            service.start()
        scraped = directory / "prometheus.yml"
        scraped.write_text(
            "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
            f"scrape_configs: [{{job_name: credits, static_configs: [{{targets: ['127.0.0.1:{exporter_port}']}}]}}]\n"
        )
        hook = {"address": f"127.0.0.1:{enforcer_port}", "token_file": str(token), "cluster": "hpc"}
        hook |= {"budget_seconds": str(BUDGET_SECONDS), "cooldown_seconds": "1"}
        slurm.write_hook_conf(hook)
        server = stack.enter_context(prometheus(scraped, directory / "tsdb"))
        found = Site(slurm, desk, exporter, enforcer, server, hook, admin)
        wait_until("the account tree is known", lambda: is_admitting(found), 20, 0.2)
        yield found


def make_accounts(slurm: SlurmLab) -> None:
    """Orgs initech (vision, speech), globex (lab1) and hooli (lab2), below which alice and bob work."""
    for org, accounts in {"initech": ("vision", "speech"), "globex": ("lab1",), "hooli": ("lab2",)}.items():
        slurm.run("sacctmgr", "-i", "add", "account", org)
        slurm.run("sacctmgr", "-i", "add", "account", *[",".join(accounts)], f"parent={org}")
        slurm.run("sacctmgr", "-i", "add", "user", "alice,bob", f"account={','.join(accounts)}")


def configure(desk: Lab, slurm: SlurmLab, exporter_port: int, enforcer_port: int) -> None:
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
        metering={"interval_seconds": 1},
        sources=[source],
        exporter={"listen": f"127.0.0.1:{exporter_port}"},
        enforcer={"listen": f"127.0.0.1:{enforcer_port}"},
    )
    desk.rates({"clusters": {"hpc": {"presets": {name: {"credits_per_hour": rate} for name, rate in RATES.items()}}}})


def is_admitting(site: Site) -> bool:
    """Whether the enforcer has read the account tree: it then knows that nobody has set up this org."""
    with pytest.raises(SbatchRefused) as refused:
        site.slurm.sbatch(account="proja", options=["--hold"])
    return "no org 'acme'" in str(refused.value)


@dataclass
class History:
    """What happened to which job of initech: (project, preset) and runs by accounting."""

    jobs: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    recorded: dict[str, list[Run]] = field(default_factory=dict)

    def charges(self) -> set[Charge]:
        return {
            charge(*self.jobs[name][1:], run) for name, runs in self.recorded.items() for run in runs if run.elapsed > 0
        }


GPU = ("-p", "gpu", "--gres=gpu:a100:1")
PAIR = ("-p", "gpu", "--gres=gpu:a100:2")
BURNER = ("-p", "gpu", "--gres=gpu:a100:4", "--time=1")


@pytest.fixture(scope="module")
def history(site: Site) -> History:
    """All that can happen to a job, in a site that looks on most of the time."""
    site.desk.ok("grant", "initech", "1000", "--reason", "first month")
    lab, seen = site.slurm, History()

    def submit(name: str, project: str, preset: str, script: str, *options: str, user: str = "alice") -> int:
        job = lab.sbatch(user, project, script, options)
        seen.jobs[name] = job, project, preset
        return job

    submit("array", "vision", "cpu", "sleep 2", "--array=0-2")
    suspended = submit("suspended", "vision", "gpu-one", "sleep 300", *GPU)
    cancelled = submit("cancelled", "speech", "gpu-pair", "sleep 300", *PAIR, "--time=30", user="bob")
    requeued = submit("requeued", "speech", "cpu", "sleep 3", "--requeue")
    submit("failed", "speech", "gpu-one", "sleep 1; exit 3", *GPU, user="bob")
    for job in (suspended, cancelled, requeued):
        lab.wait_state(job, "RUNNING")
    assert site.comment(suspended).startswith("credits:hold=initech.")
    assert Decimal(site.balance("initech")["held"]) > 0
    lab.wait_second()
    lab.run("scontrol", "requeue", str(requeued))
    lab.run("scontrol", "suspend", str(suspended))
    with site.exporter.sent(signal.SIGSTOP):
        between = submit("between two polls", "vision", "gpu-pair", "sleep 1", *PAIR)
        lab.wait_state(between, "COMPLETED", "GONE")
    lab.run("scontrol", "resume", str(suspended))
    lab.wait_second()
    with site.exporter.sent(signal.SIGKILL):
        away = submit("while the exporter was dead", "speech", "gpu-one", "sleep 1", *GPU)
        lab.run("scancel", str(cancelled))
        lab.wait_state(away, "GONE")
    lab.run("scancel", str(suspended))
    for name, (job, _, _) in seen.jobs.items():
        seen.recorded[name] = lab.wait_recorded(job, {"array": 3, "requeued": 2}.get(name, 1))
    site.wait_charged("initech", seen.charges())
    return seen


def test_all_of_it_happened(history: History) -> None:
    states = {name: [run.state.split()[0] for run in runs] for name, runs in history.recorded.items()}
    assert states == {
        "array": ["COMPLETED"] * 3,
        "suspended": ["CANCELLED"],
        "cancelled": ["CANCELLED"],
        "requeued": ["REQUEUED", "COMPLETED"],
        "failed": ["FAILED"],
        "between two polls": ["COMPLETED"],
        "while the exporter was dead": ["COMPLETED"],
    }
    (suspended,) = history.recorded["suspended"]
    assert suspended.start is not None
    assert suspended.end is not None
    assert 0 < suspended.suspended == suspended.end - suspended.start - suspended.elapsed
    assert len(history.charges()) >= 9


def test_every_run_is_charged_what_accounting_says_times_rate(site: Site, history: History) -> None:
    assert site.charges("initech") == history.charges()


def test_the_sums_of_every_tier_are_those_of_the_runs(site: Site, history: History) -> None:
    by_preset: Counter[tuple[str, ...]] = Counter()
    by_project: Counter[tuple[str, ...]] = Counter()
    for project, preset, *_, amount in history.charges():
        by_preset[project, preset] += parse_credits(amount)
        by_project[project,] += parse_credits(amount)
    assert site.sums("initech", "project,resource") == {key: format_micro(micro) for key, micro in by_preset.items()}
    assert site.sums("initech", "project") == {key: format_micro(micro) for key, micro in by_project.items()}
    total = format_micro(by_project.total())
    assert site.sums("initech", "org") == {("initech",): total}
    assert site.balance("initech")["spent"] == total


def test_prometheus_holds_the_ledgers_totals(site: Site, history: History) -> None:
    site.wait_scraped("initech")
    found = site.seen_by_prometheus("initech")
    assert sum(map(parse_credits, found.values())) == parse_credits(site.balance("initech")["spent"])


def test_nothing_stays_set_aside_for_jobs_that_are_over(site: Site, history: History) -> None:
    balance = site.balance("initech")
    assert (balance["granted"], balance["held"]) == ("1000", "0")
    verified = site.desk.json("verify")
    assert (verified["ok"], verified["differences"]) == (True, [])


def test_an_org_without_credits_is_refused_with_the_reason_until_there_is_a_grant(site: Site) -> None:
    lab, desk = site.slurm, site.desk
    desk.ok("grant", "globex", "650")
    desk.ok("org", "set", "globex", "--contact", "Gavin (gavin@globex.example)")

    # A minute of it is 600 credits: they are set aside, and a second one finds 50.
    job = lab.sbatch("bob", "lab1", "sleep 300", BURNER)
    with pytest.raises(SbatchRefused, match=r"Org globex has 50 credits left.*this needs 600 credits to start"):
        lab.sbatch("bob", "lab1", "sleep 300", BURNER)
    lab.wait_state(job, "RUNNING")
    wait_until("some of it is spent", lambda: Decimal(site.balance("globex")["spent"]) >= 60, 30, 0.1)
    lab.run("scancel", str(job))
    (run,) = lab.wait_recorded(job)
    first = charge("group-1", "burner", run)
    site.wait_charged("globex", {first})
    balance = site.balance("globex")
    left = 650 - 10 * run.elapsed
    assert (balance["spent"], balance["held"], balance["available"]) == (str(10 * run.elapsed), "0", str(left))

    with pytest.raises(SbatchRefused) as refused:
        lab.sbatch("bob", "lab1", "sleep 1", BURNER)
    said = str(refused.value)
    for words in ("Org globex", f"{left} credits left", "needs 600 credits", "Ask Gavin (gavin@globex.example)"):
        assert words in said
    assert "Traceback" not in said
    # What is cheap enough still starts, and is not held up by what is not.
    cheap = lab.sbatch("bob", "lab1", "sleep 1", ["--time=1"])

    desk.ok("grant", "globex", "100", "--source", "purchase")
    again = lab.sbatch("bob", "lab1", "sleep 2", BURNER)
    runs = [lab.wait_recorded(number)[0] for number in (cheap, again)]
    expected = {first, charge("group-1", "cpu", runs[0]), charge("group-1", "burner", runs[1])}
    site.wait_charged("globex", expected)
    balance = site.balance("globex")
    assert (balance["granted"], balance["held"]) == ("750", "0")
    assert parse_credits(balance["spent"]) == sum(parse_credits(amount) for *_, amount in expected)
    site.wait_scraped("globex")
    wait_until("refusals are journaled", lambda: site.refusals("globex") == [("no_credits", "slurm")] * 2, 10)
    assert desk.json("verify")["ok"]


def test_without_an_enforcer_the_hook_answers_at_once_as_it_is_told(site: Site) -> None:
    lab = site.slurm
    site.desk.ok("grant", "hooli", "100")
    with site.enforcer.sent(signal.SIGSTOP):  # it takes connections, and never answers
        lab.write_hook_conf(site.hook | {"cooldown_seconds": "0"})
        assert BUDGET_SECONDS <= fastest_refusal(lab) < BUDGET_SECONDS + 0.5
    with site.enforcer.sent(signal.SIGKILL):
        lab.write_hook_conf(site.hook)
        assert fastest_refusal(lab) < 0.5
        lab.write_hook_conf(site.hook | {"on_unreachable": "allow"})
        job = lab.sbatch("bob", "lab2", "sleep 1")
        assert site.comment(job) == "credits:unchecked"
    lab.write_hook_conf(site.hook)
    back: list[int] = []
    wait_until("jobs are let in again", lambda: is_let_in(lab, back), 20, 0.1)
    assert site.comment(back[0]).startswith("credits:hold=hooli.")
    runs = [lab.wait_recorded(number)[0] for number in (job, *back)]
    site.wait_charged("hooli", {charge("group-2", "cpu", run) for run in runs})
    assert site.balance("hooli")["held"] == "0"


def fastest_refusal(lab: SlurmLab) -> float:
    """Seconds that the fastest of three submissions took to be refused for want of an enforcer."""
    taken = []
    for _ in range(3):
        start = time.monotonic()
        with pytest.raises(SbatchRefused, match="Credits cannot be checked right now"):
            lab.sbatch("bob", "lab2", "sleep 1")
        taken.append(time.monotonic() - start)
    return min(taken)


def is_let_in(lab: SlurmLab, jobs: list[int]) -> bool:
    try:
        jobs.append(lab.sbatch("bob", "lab2", "sleep 1"))
    except SbatchRefused:
        return False
    return True
