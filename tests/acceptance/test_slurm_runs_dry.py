"""Orgs run dry on a real Slurm: their jobs are warned, blocked, told; suspended and back with a grant, or stopped."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from ledger.money import parse_credits
from tests.slurm_lab import SbatchRefused, SlurmLab, missing_for_lab, wait_until
from tests.slurm_site import BURNER, Site, charge, micro_of, paid_site

pytestmark = [pytest.mark.slurm, pytest.mark.prometheus, pytest.mark.slow]

WINDOW_SECONDS = 12
GRACE_SECONDS = 3


@pytest.fixture(scope="module")
def site(slurm_base: Path) -> Iterator[Site]:
    """Jobs need credits for 12 s ahead; 3 s after these are not there any more they are suspended."""
    if reason := missing_for_lab():
        pytest.skip(reason)
    settings = {
        "metering": {"interval_seconds": 1},
        "admission": {"hold_minutes": WINDOW_SECONDS / 60},
        "exhaustion": {"warn_hours_left": 24, "grace_minutes": GRACE_SECONDS / 60, "then": "suspend"},
    }
    with paid_site(
        slurm_base / "dry",
        {"initech": ("lab1",), "globex": ("lab2",), "hooli": ("lab3",), "umbrella": ("lab4",)},
        **settings,
    ) as found:
        yield found


@pytest.fixture
def shared(slurm_base: Path) -> Path:
    """Where jobs write what they have."""
    directory = slurm_base / "dry" / "shared"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o777)
    return directory


def long_job(site: Site, shared: Path, name: str, *options: str, account: str = "lab1") -> int:
    """A job that writes when it was told to into a checkpoint, and goes on until a file called `NAME-over` is there."""
    script = f"trap '[ -e {shared}/{name}-checkpoint ] || date +%s > {shared}/{name}-checkpoint' CONT; "
    script += f"while ! [ -e {shared}/{name}-over ]; do sleep 0.1; done"
    return site.slurm.sbatch("bob", account, script, options)


def set_policy(site: Site, org: str, **policy: str) -> None:
    request = urllib.request.Request(f"{site.enforcer.url}/v1/orgs/{org}", method="PUT")
    request.add_header("Authorization", f"Bearer {site.admin}")
    urllib.request.urlopen(request, json.dumps({"policy": policy}).encode(), timeout=20).close()


def elapsed_charge(lab: SlurmLab, job: int, preset: str) -> int:
    """Micro-credits for the time that accounting says the job has had up to now."""
    (run,) = lab.sacct(job)
    return micro_of(preset, run.elapsed)


def said_to(lab: SlurmLab, job: int) -> str:
    lines = lab.run("scontrol", "show", "job", str(job)).splitlines()
    return next((line for line in lines if "AdminComment=" in line), "")


def test_running_jobs_are_told_suspended_and_go_on_with_a_grant(site: Site, shared: Path) -> None:
    lab = site.slurm
    site.desk.ok("grant", "initech", "220")
    site.desk.ok("grant", "globex", "1")
    other = lab.sbatch("alice", "lab2", "sleep 300")
    dear = long_job(site, shared, "dear", *BURNER, "--time=10")
    cheap = long_job(site, shared, "cheap")
    jobs = {dear: "burner", cheap: "cpu"}
    for job in jobs:
        lab.wait_state(job, "RUNNING")

    # Told in time: both have saved what they have, and the balance is not negative yet.
    for name in ("dear", "cheap"):
        wait_until(f"{name} has its checkpoint", (shared / f"{name}-checkpoint").exists, 60)
    assert site.balance("initech")["overdraft"] == "0"
    with pytest.raises(SbatchRefused, match="Org initech"):
        lab.sbatch("bob", "lab1", "sleep 1", BURNER)
    for job in jobs:
        lab.wait_state(job, "SUSPENDED")
        assert "initech" in said_to(lab, job)
    assert lab.state(other) == "RUNNING"
    wait_until("nothing burns", lambda: site.balance("initech")["burn_rate"] == "0", 20)
    rested = site.balance("initech")
    assert rested["overdraft"] == "0"
    assert parse_credits(rested["spent"]) == sum(elapsed_charge(lab, job, preset) for job, preset in jobs.items())
    assert site.desk.json("verify")["ok"]
    lab.wait_second()
    assert site.balance("initech")["spent"] == rested["spent"]

    site.desk.ok("grant", "initech", "500")
    for job in jobs:
        lab.wait_state(job, "RUNNING")
        assert "<credits:" not in said_to(lab, job)
    again = lab.sbatch("bob", "lab1", "sleep 1", BURNER)
    for name in ("dear", "cheap"):
        (shared / f"{name}-over").touch()

    runs = {job: lab.wait_recorded(job)[0] for job in (*jobs, again)}
    assert all(runs[job].state == "COMPLETED" and runs[job].suspended > 0 for job in jobs)
    presets = {**jobs, again: "burner"}
    expected = {charge("group-1", presets[job], run) for job, run in runs.items()}
    site.wait_charged("initech", expected)
    balance = site.balance("initech")
    assert (balance["granted"], balance["held"]) == ("720", "0")
    assert parse_credits(balance["spent"]) == sum(parse_credits(amount) for *_, amount in expected)
    site.wait_scraped("initech")
    stages = [entry["stage"] for entry in site.journal("initech") if entry["type"] == "stage"]
    assert stages[0] == "warn"
    assert [stage for stage in stages if stage in ("grace", "suspend")] == ["grace", "suspend"]
    assert site.desk.json("verify")["ok"]
    lab.run("scancel", str(other))


def test_where_the_org_says_so_running_jobs_are_told_and_then_stopped(site: Site, shared: Path) -> None:
    lab = site.slurm
    site.desk.ok("grant", "umbrella", "420")
    set_policy(site, "umbrella", then="stop")
    waiting = lab.sbatch("alice", "lab4", "sleep 1", [*BURNER, "--hold"])  # 120 credits are held for it
    dear = long_job(site, shared, "stopped-dear", *BURNER, "--time=10", account="lab4")
    cheap = long_job(site, shared, "stopped-cheap", account="lab4")
    jobs = {dear: ("stopped-dear", "burner"), cheap: ("stopped-cheap", "cpu")}
    for job in jobs:
        lab.wait_state(job, "RUNNING")

    wait_until("nothing is left for new work", lambda: site.balance("umbrella")["stage"] == "block", 60)
    with pytest.raises(SbatchRefused, match="Org umbrella"):
        lab.sbatch("bob", "lab4", "sleep 1", BURNER)
    for job, (name, _) in jobs.items():
        wait_until(f"{name} has its checkpoint", (shared / f"{name}-checkpoint").exists, 60)
        assert lab.state(job) == "RUNNING"
        assert "Org umbrella has too few credits for what runs since 20" in said_to(lab, job)
        assert "this will be stopped at 20" in said_to(lab, job)
    for job in jobs:
        wait_until(f"{job} says why it was stopped", lambda job=job: "So this was stopped;" in said_to(lab, job), 60)
        assert "it can be submitted again once there are credits. Ask an owner of org umbrella" in said_to(lab, job)
    runs = {job: lab.wait_recorded(job)[0] for job in jobs}
    for job, run in runs.items():
        assert run.state.startswith("CANCELLED")
        assert run.end is not None
        # Slurm's times are of whole seconds.
        assert run.end - int((shared / f"{jobs[job][0]}-checkpoint").read_text()) >= GRACE_SECONDS - 1
    assert lab.state(waiting) == "PENDING"
    lab.run("scancel", str(waiting))

    expected = {charge("group-4", jobs[job][1], run) for job, run in runs.items()}
    site.wait_charged("umbrella", expected)
    balance = site.balance("umbrella")
    assert balance["overdraft"] == "0"
    assert parse_credits(balance["spent"]) == sum(parse_credits(amount) for *_, amount in expected)
    site.wait_scraped("umbrella")
    entries = [entry for entry in site.journal("umbrella") if entry["type"] == "stage"]
    stages = [entry["stage"] for entry in sorted(entries, key=lambda entry: str(entry["at"]))]
    assert stages[:4] == ["warn", "block", "grace", "stop"]
    assert site.desk.json("verify")["ok"]


def test_a_waiting_job_keeps_its_hold_until_it_starts(site: Site) -> None:
    lab = site.slurm
    site.desk.ok("grant", "hooli", "200")
    began = time.monotonic()
    job = lab.sbatch("alice", "lab3", "sleep 1", [*BURNER, "--hold"])
    given_up = lab.sbatch("alice", "lab3", "sleep 1", ["--hold"])
    wanted = 10 * WINDOW_SECONDS
    assert wanted < Decimal(site.balance("hooli")["held"]) < wanted + 1
    lab.run("scancel", str(given_up))
    wait_until("the hold of the other one is gone", lambda: site.balance("hooli")["held"] == str(wanted), 30)
    wait_until("a hold that nobody keeps would be gone", lambda: time.monotonic() > began + WINDOW_SECONDS + 2)
    assert site.balance("hooli")["held"] == str(wanted)
    lab.run("scontrol", "release", str(job))
    (run,) = lab.wait_recorded(job)
    site.wait_charged("hooli", {charge("group-3", "burner", run)})
    assert site.balance("hooli")["held"] == "0"


def test_a_waiting_job_that_moves_to_another_org_keeps_its_hold_there(site: Site) -> None:
    """The hook, asked about a change, cannot write the new hold's id into the job's comment."""
    lab = site.slurm
    for org in ("hooli", "globex"):
        site.desk.ok("grant", org, "200")
    before = Decimal(site.balance("globex")["held"])
    job = lab.sbatch("alice", "lab3", "sleep 1", [*BURNER, "--hold"])
    lab.run("scontrol", "update", f"jobid={job}", "account=lab2")
    began = time.monotonic()
    held = before + 10 * WINDOW_SECONDS
    assert Decimal(site.balance("globex")["held"]) == held
    wait_until("the hold in the former org is gone", lambda: site.balance("hooli")["held"] == "0", 30)
    wait_until("a hold that nobody keeps would be gone", lambda: time.monotonic() > began + 2 * WINDOW_SECONDS + 2)
    assert Decimal(site.balance("globex")["held"]) == held
    lab.run("scontrol", "release", str(job))
    lab.wait_recorded(job)
    wait_until("its hold ends with it", lambda: Decimal(site.balance("globex")["held"]) == before, 30)
