"""The `credits` command: what it prints, its exit codes, and commands that share one embedded server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest

from ledger.embedded import open_embedded
from tests.cli_lab import Lab, job
from tests.servers import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A ledger whose embedded server runs through the test."""
    lab = Lab(tmp_path)
    with open_embedded(tmp_path / "var"):
        yield lab


def test_help_is_there_at_once_and_names_every_command(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    seconds = []
    for _ in range(5):
        before = getrusage(RUSAGE_CHILDREN)
        text = lab.ok("--help")
        after = getrusage(RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    for name in (
        *("run", "exporter", "enforcer", "grant", "balance", "budget", "usage", "quote", "admit", "rates", "token"),
        *("dashboards", "verify", "demo", "journal", "org"),
    ):
        assert f"\n  {name} " in text
    assert min(seconds) < 0.3


def test_a_command_starts_the_server_for_as_long_as_it_needs_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.ok("grant", "acme", "12.5")
    wait_until(lambda: not (tmp_path / "var/valkey.sock").exists(), what="the end of the server")
    assert lab.json("balance", "acme")["granted"] == "12.5"


def test_several_commands_at_once_share_one_server(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    many = [lab.start("grant", "acme", "1", "--idempotency-key", f"key-{n % 5}", "--json") for n in range(10)]
    answers = []
    for process in many:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        answers.append(json.loads(output))
    assert sum(not answer["replayed"] for answer in answers) == 5
    assert lab.json("balance", "acme")["granted"] == "5"
    assert lab.json("verify")["ok"] is True


def test_a_balance_has_the_shape_of_the_contract(lab: Lab) -> None:
    lab.ok("grant", "acme", "100")
    lab.ok("grant", "globex", "0.000001", "--source", "gift")
    everything = lab.json("balance")
    assert (
        everything[0]
        == lab.json("balance", "acme")
        == {
            "org": "acme",
            "granted": "100",
            "expired": "0",
            "spent": "0",
            "held": "0",
            "available": "100",
            "overdraft": "0",
            "unlimited": False,
            "burn_rate": "0",
            "exhausted_at": None,
            "stage": "ok",
        }
    )
    assert [row["available"] for row in everything] == ["100", "0.000001"]
    lines = lab.ok("balance", "--csv").splitlines()
    assert lines[0].startswith("org,granted,expired,spent,held,available,overdraft,burn_rate,exhausted_at,stage")
    assert lines[1].startswith("acme,100,0,0,0,100,0,0,,ok")


def test_a_grant_counts_once_for_its_key_and_another_body_is_refused(lab: Lab) -> None:
    first = lab.json("grant", "acme", "10", "--idempotency-key", "k", "--reason", "r", "--expires-at", "2027-01-01")
    assert (first["replayed"], first["credits"], first["idempotency_key"]) == (False, "10", "k")
    assert (first["source"], first["reason"], first["expires_at"]) == ("provision", "r", "2027-01-01T00:00:00Z")
    again = lab.json("grant", "acme", "10", "--idempotency-key", "k", "--reason", "r", "--expires-at", "2027-01-01")
    assert again == {**first, "replayed": True}
    other = lab.run("grant", "acme", "11", "--idempotency-key", "k", "--reason", "r", "--expires-at", "2027-01-01")
    assert (other.returncode, other.stdout) == (1, "")
    assert "'k'" in other.stderr
    assert "use a new key" in other.stderr
    assert lab.json("balance", "acme")["granted"] == "10"
    entries = lab.json("journal", "acme")["items"]
    assert [(e["type"], e["credits"], e["reason"]) for e in entries] == [("grant", "10", "r")]
    assert entries[0]["who"].startswith("cli:")


def test_a_grant_says_that_the_org_is_new_and_which_one_it_may_have_been_meant_for(lab: Lab) -> None:
    first = lab.run("grant", "acme", "10", "--idempotency-key", "k", "--json")
    assert (json.loads(first.stdout)["new_org"], first.stderr) == (True, "note: org 'acme' is new\n")
    again = lab.run("grant", "acme", "10", "--idempotency-key", "k", "--json")
    assert json.loads(again.stdout) == {**json.loads(first.stdout), "replayed": True}
    more = lab.run("grant", "acme", "10", "--json")
    assert ("new_org" in json.loads(more.stdout), more.stderr, again.stderr) == (False, "", "")
    typo = lab.run("grant", "amce", "10", "--idempotency-key", "t", "--source", "gift")
    assert typo.returncode == 0
    assert typo.stdout == "granted: 10 credits to amce (gift); available 10\nidempotency key: t\n"
    note, remedy = typo.stderr.splitlines()
    assert note == "note: org 'amce' is new; did you mean 'acme'?"
    lab.ok(*remedy.partition("credits ")[2].split())
    assert lab.json("balance", "amce")["available"] == "0"
    for command in (("balance", "acmee"), ("budget", "set", "acmee", "vision", "5"), ("usage", "--org", "acmee")):
        done = lab.run(*command)
        assert (done.returncode, done.stderr) == (1, "credits: no org 'acmee'; did you mean 'acme'?\n")
    assert lab.run("org", "set", "acmee").stderr == "note: org 'acmee' is new; did you mean 'acme'?\n"
    assert lab.run("org", "set", "acme2").stderr == ""  # siblings have numbers


def test_a_grant_that_starts_later_or_has_expired_does_not_count(lab: Lab) -> None:
    lab.ok("grant", "acme", "10", "--effective-at", "2100-01-01")
    lab.ok("grant", "acme", "3", "--effective-at", "2020-01-01", "--expires-at", "2021-01-01T00:00:00+02:00")
    balance = lab.json("balance", "acme")
    assert (balance["granted"], balance["expired"], balance["available"]) == ("3", "3", "0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grnat", "acme", "1"], "did you mean 'grant'?"),
        (["grant", "acme"], "missing argument 'CREDITS'"),
        (["token", "create"], "missing option '--role'. Choose from: admin, owner, viewer, scheduler; see"),
        (["grant", "acme", "1.0000001"], "more than 6 digits"),
        (["grant", "acme", "1e3"], "'1e3' is not a decimal number like 1500 or 0.25"),
        (["grant", "acme", "1_000"], "'1_000' is not a decimal number"),
        (["grant", "acme", "9" * 70], "out of range"),
        (["grant", "acme", "ten"], "'ten' is not a decimal number"),
        (["grant", "acme", "0"], "more than 0"),
        (["grant", "acme", "-5"], "below 0 here; to take some back: credits correct ORG -5 --corrects KEY"),
        (["grant", "acme", "-.5", "--reason", "r"], "not below 0 here; to take some back"),
        (["transfer", "acme", "globex", "-5"], "name the orgs the other way round"),
        (["budget", "set", "acme", "vision", "-5"], "credits are not below 0 here"),
        (["grant", "acme", "5", "--reson", "r"], "no such option '--reson'"),
        (["journal", "acme", "--type", "typo"], "type: 'typo' is none of grant, correction, transfer, "),
        (["audit", "--type", "grant"], "type: 'grant' is none of token_created, token_revoked, "),
        (["grant", "acme", "9999999999"], "larger than"),
        (["grant", "acme", "1", "--source", "magic"], "'provision', 'purchase', 'refund', 'gift'"),
        (["grant", "acme", "1", "--expires-at", "2027-13-01"], "2026-11-22T10:00:00Z"),
        (["grant", "acme", "1", "--expires-at", "2027-01-01T00:00:00"], "no time zone"),
        (["grant", "a\nb", "1"], "without control characters"),
        (["usage", "--group-by", "porject"], "did you mean 'project'?"),
        (["usage", "--from", "2026-11-22", "--to", "2026-11-21"], "before"),
        (["token", "create", "--role", "owner"], "name it"),
        (["admit", "acme"], "name a PRESET"),
        (["admit", "", "gpu-large"], "org ''"),
        (["admit", "acme", "gpu-large", "--count", "10000001"], "10000001 is not in the range 1<=x<=10000000"),
        (["admit", "acme", "gpu-large", "--count", "x"], "'x' is not a whole number; see `credits admit --help`"),
        (["org", "set", "acme", "--contact"], "see `credits org set --help`"),
        (["budget", "set", "acme", "vision", "1", "--timezone", "Europe/Berln"], "did you mean 'Europe/Berlin'?"),
        (["--config", "nowhere.yaml", "balance"], "nowhere.yaml: no such file"),
        (["balance", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_wrong_use_is_said_in_one_line_with_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = Lab(tmp_path).run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert done.stderr.startswith("credits: ")
    assert len(done.stderr.splitlines()) == 1


def test_no_is_exit_code_1(lab: Lab) -> None:
    for arguments, words in (
        (["balance", "nobody"], "'nobody'"),
        (["journal", "nobody"], "'nobody'"),
        (["verify", "--org", "nobody"], "'nobody'"),
        (["token", "revoke", "0123"], "'0123'"),
        (["budget", "rm", "acme", "vision"], "budget list"),
    ):
        done = lab.run(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr


def test_settings_are_found_by_option_environment_and_default(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    shutil.copy(tmp_path / "config/settings.yaml", tmp_path / "other.yaml")
    with (tmp_path / "other.yaml").open("a") as f:
        f.write("rtaes: x\n")
    for arguments in (["--config", "other.yaml", "balance"], ["balance", "--config", "other.yaml"]):
        done = lab.run(*arguments)
        assert done.returncode == 2
        assert "other.yaml:" in done.stderr
        assert "did you mean 'rates'?" in done.stderr
    environ = {**lab.environment(), "CREDITS_CONFIG": "other.yaml"}
    command = [sys.executable, "-m", "cli.main", "balance"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert "other.yaml:" in done.stderr


def test_every_problem_of_a_file_of_rates_is_told(lab: Lab) -> None:
    assert lab.ok("rates", "check").endswith("ok\n")
    bad = lab.directory / "bad.yaml"
    bad.write_text(
        "clusters:\n  default:\n    presets:\n      a: {credits_per_hour: -1}\n      b: {credit_per_hour: 1}\n"
    )
    done = lab.run("rates", "check", "bad.yaml")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0].startswith("bad.yaml:4: ")
    assert "negative" in lines[0]
    assert any(line.startswith("bad.yaml:5: ") and "credits_per_hour" in line for line in lines)
    told = json.loads(lab.run("rates", "check", "bad.yaml", "--json").stdout)
    assert (told["ok"], told["problems"][0]["line"], told["problems"][0]["file"]) == (False, 4, "bad.yaml")


def test_rates_are_shown_as_they_are_in_force(lab: Lab) -> None:
    row = {"cluster": "default", "kind": "preset", "resource": "gpu-large", "unit": "credits/hour"}
    assert {**row, "rate": None, "in_file": "40.5"} in lab.json("rates", "show")["rates"]
    lab.once("10:00:00")
    assert {**row, "rate": "40.5", "in_file": "40.5"} in lab.json("rates", "show")["rates"]


def test_admission_holds_and_refuses(lab: Lab) -> None:
    lab.once("10:00:00")
    request = ["admit", "acme", "gpu-large", "--project", "vision", "--user", "ann", "--json"]
    done = lab.run(*request)
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == "unknown_org"
    lab.ok("grant", "acme", "15")
    # A dry run holds nothing.
    assert lab.json(*request[:-1], "--dry-run")["hold_id"] is None
    first = lab.json(*request[:-1], "--workload-id", "job-1")
    assert (first["allowed"], first["code"], first["required"], first["tier"]) == (True, "ok", "10.125", None)
    assert lab.json("balance", "acme")["held"] == "10.125"
    second = lab.run(*request)
    assert second.returncode == 1
    refusal = json.loads(second.stdout)
    assert (refusal["allowed"], refusal["code"], refusal["tier"]) == (False, "no_credits", "org")
    assert (refusal["available"], refusal["required"], refusal["hold_id"]) == ("4.875", "10.125", None)
    assert "10.125" in refusal["reason"]
    assert "4.875" in refusal["reason"]
    short = lab.json(*request[:-1], "--max-runtime-seconds", "60")
    assert short["required"] == "0.675"
    # Refusals stand in the journal, dry runs do not.
    types = [(entry["type"], entry.get("code")) for entry in lab.json("journal", "acme")["items"]]
    assert types == [("grant", None), ("refusal", "no_credits")]
    many = json.loads(lab.run(*request[:-1], "--count", "10000000", "--json").stdout)  # as many as over HTTP
    assert (many["code"], many["required"]) == ("no_credits", "101250000")
    unpriced = json.loads(lab.run("admit", "acme", "gpu-lagre", "--json").stdout)
    assert unpriced["code"] == "unpriced"
    assert "gpu-large" in unpriced["reason"]
    quote = lab.json("quote", "acme", "gpu-large", "--max-runtime-seconds", "7200")
    assert (quote["per_hour"], quote["total"]) == ("40.5", "81")


def test_admission_goes_by_modes_as_the_enforcer_does(lab: Lab) -> None:
    lab.settings(admission={"mode": "shadow", "clusters": {"tried": "enforce", "free": "off"}})
    lab.once("10:00:00")
    lab.ok("org", "set", "acme")
    asked = ("admit", "acme", "gpu-large")
    passed = lab.json(*asked)
    assert (passed["allowed"], passed["code"], passed["hold_id"]) == (True, "no_credits", None)
    assert passed["reason"].startswith("This starts, since refusals are only tried out here; it would be refused: Org")
    assert [row["code"] for row in lab.json("shadow", "report")] == ["no_credits"]
    assert lab.run(*asked, "--cluster", "tried").returncode == 1
    assert lab.json("admit", "acme", "no-such", "--cluster", "free")["code"] == "ok"
    assert [entry["type"] for entry in lab.json("journal", "acme")["items"]] == ["org", "shadow", "refusal"]


def test_budgets_are_set_listed_and_removed(lab: Lab) -> None:
    lab.ok("grant", "acme", "1000")
    lab.once("10:00:00", job("job-1", "09:00:00", "09:40:00"))
    made = lab.json("budget", "set", "acme", "vision", "30", "--period", "total")
    assert (made["credits"], made["spent"], made["remaining"], made["period"]) == ("30", "27", "3", "total")
    refused = lab.run("admit", "acme", "gpu-large", "--project", "vision", "--user", "ann", "--json")
    assert json.loads(refused.stdout)["code"] == "budget_exhausted"
    lab.ok("budget", "set", "acme", "vision", "5", "--user", "ann", "--period", "day", "--timezone", "Europe/Berlin")
    listed = lab.json("budget", "list", "acme")
    assert [(row["user"], row["period"], row["credits"]) for row in listed] == [
        (None, "total", "30"),
        ("ann", "day", "5"),
    ]
    # Another amount leaves what else is set.
    week = ("budget", "set", "acme", "vision", "70", "--period", "week")
    said = lab.ok(*week, "--timezone", "Asia/Tokyo", "--week-start", "sunday")
    assert said.endswith(" of 70 credits left this week\n")
    again = lab.json(*week[:4], "80", "--period", "week")
    assert (again["credits"], again["timezone"], again["week_start"]) == ("80", "Asia/Tokyo", "sunday")
    lab.ok("budget", "rm", "acme", "vision")
    assert [row["user"] for row in lab.json("budget", "list", "acme")] == ["ann"]


def test_a_token_is_shown_once(lab: Lab) -> None:
    made = lab.json("token", "create", "--role", "viewer", "--org", "acme")
    assert set(made) == {"id", "role", "org", "token", "expires_at"}
    listed = lab.ok("token", "list", "--json")
    assert made["id"] in listed
    assert made["token"] not in listed
    printed = lab.run("token", "create", "--role", "admin")
    assert len(printed.stdout.splitlines()) == 1  # TOKEN=$(credits token create --role admin)
    lab.ok("token", "revoke", made["id"])
    assert made["id"] not in lab.ok("token", "list")


def test_dashboards_are_built(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    files = lab.json("dashboards", "build", "out")["files"]
    assert files
    assert all((tmp_path / file).stat().st_size for file in files)
    lab.ok("dashboards", "build", "out", "--runbook", "https://wiki/credits", "--prometheus", "http://prom:9090")
    assert "https://wiki/credits#creditsoverdraft" in (tmp_path / "out/prometheus/rules/credits-alerts.yml").read_text()
    assert "http://prom:9090" in (tmp_path / "out/grafana/provisioning/datasources/credits.yaml").read_text()


def test_verify_says_what_differs(lab: Lab) -> None:
    from redis import Redis

    lab.once("10:00:00", job("job-1", "09:00:00"))
    assert lab.json("verify")["ok"] is True
    with Redis(unix_socket_path=str(lab.directory / "var/valkey.sock")) as redis:
        redis.hincrby("credits:{acme}:org", "spent", 1)
    done = lab.run("verify", "--json")
    assert done.returncode == 1
    result = json.loads(done.stdout)
    assert result["ok"] is False
    assert result["differences"][0]["org"] == "acme"
    assert "0.000001" in result["differences"][0]["difference"]


def test_a_reader_that_leaves_early_is_no_error(lab: Lab) -> None:
    for n in range(3):
        lab.ok("grant", f"org-{n}", "1")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "cli.main", "balance"]
    done = subprocess.run(
        command, cwd=lab.directory, env=lab.environment(), stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr == b""


def test_ctrl_c_ends_a_command_without_a_traceback(lab: Lab) -> None:
    lab.settings(sources=[{"type": "json", "cluster": "default", "command": ["sleep", "60"], "timeout_seconds": 60}])
    process = lab.start("exporter", "--once")
    wait_until(lambda: _has_child(process.pid), 30, "the source's command")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


def _has_child(pid: int) -> bool:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any(b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)
    except OSError:
        return False


def test_the_demo_runs_by_itself(tmp_path: Path) -> None:
    done = Lab(tmp_path).ok("demo")
    for words in (
        "refused (no_credits)",
        "granted before",
        "allowed (ok)",
        "refused (budget_exhausted)",
        "ok: checked",
    ):
        assert words in done
