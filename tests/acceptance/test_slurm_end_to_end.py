"""From a real scheduler to a refused job: Slurm, exporter, enforcer, Prometheus and command line, all of them real.

Each test has an org of its own.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from ledger.money import format_micro, parse_credits
from tests.slurm_lab import Run, SbatchRefused, SlurmLab, missing_for_lab, wait_until
from tests.slurm_site import BUDGET_SECONDS, BURNER, GPU, PAIR, Charge, Site, charge, paid_site

pytestmark = [pytest.mark.slurm, pytest.mark.prometheus, pytest.mark.slow]

ORGS = {"initech": ("vision", "speech"), "globex": ("lab1",), "hooli": ("lab2",)}
MINUTE = (*BURNER, "--time=1")


@pytest.fixture(scope="module")
def site(slurm_base: Path) -> Iterator[Site]:
    if reason := missing_for_lab():
        pytest.skip(reason)
    with paid_site(slurm_base / "paid", ORGS, metering={"interval_seconds": 1}) as found:
        yield found


@dataclass
class History:
    """What happened to which job of initech: (project, preset) and runs by accounting."""

    jobs: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    recorded: dict[str, list[Run]] = field(default_factory=dict)

    def charges(self) -> set[Charge]:
        return {
            charge(*self.jobs[name][1:], run) for name, runs in self.recorded.items() for run in runs if run.elapsed > 0
        }


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
    assert site.charges_told("initech") == history.charges()


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
    job = lab.sbatch("bob", "lab1", "sleep 300", MINUTE)
    with pytest.raises(SbatchRefused, match=r"Org globex has 50 credits left.*this needs 600 credits to start"):
        lab.sbatch("bob", "lab1", "sleep 300", MINUTE)
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
        lab.sbatch("bob", "lab1", "sleep 1", MINUTE)
    said = str(refused.value)
    for words in ("Org globex", f"{left} credits left", "needs 600 credits", "Ask Gavin (gavin@globex.example)"):
        assert words in said
    assert "Traceback" not in said
    # What is cheap enough still starts, and is not held up by what is not.
    cheap = lab.sbatch("bob", "lab1", "sleep 1", ["--time=1"])

    desk.ok("grant", "globex", "100", "--source", "purchase")
    again = lab.sbatch("bob", "lab1", "sleep 2", MINUTE)
    runs = [lab.wait_recorded(number)[0] for number in (cheap, again)]
    expected = {first, charge("group-1", "cpu", runs[0]), charge("group-1", "burner", runs[1])}
    site.wait_charged("globex", expected)
    balance = site.balance("globex")
    assert (balance["granted"], balance["held"]) == ("750", "0")
    assert parse_credits(balance["spent"]) == sum(parse_credits(amount) for *_, amount in expected)
    site.wait_scraped("globex")
    wait_until("refusals are journaled", lambda: refusals(site) == [("no_credits", "slurm")] * 2, 10)
    assert desk.json("verify")["ok"]


def refusals(site: Site) -> list[tuple[str, str]]:
    """(code, how it was asked) of what the journal says globex was refused."""
    return [(entry["code"], entry["via"]) for entry in site.journal("globex") if entry["type"] == "refusal"]


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
