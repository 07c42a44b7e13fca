"""`credits run`: everything on one machine, however it is ended."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli_lab import job
from tests.run_lab import RunLab
from tests.servers import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RunLab]:
    lab = RunLab(tmp_path)
    yield lab
    lab.end()


def test_a_first_run_has_something_to_see_and_ctrl_c_ends_it(lab: RunLab) -> None:
    process = lab.up()
    wait_until(lambda: (lab.metric("credits_spent_total{") or 0) > 0, 30, "a first charge")
    balances = {row["org"]: row for row in lab.json("balance")}
    assert set(balances) == {"acme", "globex"}
    assert (balances["acme"]["granted"], balances["globex"]["granted"]) == ("2000", "5000")
    assert lab.metric('credits_granted_total{org="acme",source="provision"}') == 2000
    request = {"cluster": "default", "org": "acme", "kind": "job", "preset": "gpu-large", "dry_run": True}
    decision = lab.post("/v1/admission", request)
    assert (decision["allowed"], decision["required"]) == (True, "10.125")
    assert (lab.directory / "var/admin.token").stat().st_mode & 0o777 == 0o600
    assert lab.json("verify")["ok"] is True
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    for words in (f":{lab.metrics_port}/metrics", "balance", "var/admin.token", "grant acme", "verify", "Ctrl-C"):
        assert words in output
    assert "Traceback" not in errors
    assert "error" not in errors
    wait_until(lab.is_quiet, 30, "the end of the server")


def test_data_survives_kill_9_and_the_next_run_goes_on(lab: RunLab) -> None:
    first = lab.up()
    lab.ok("grant", "acme", "7", "--idempotency-key", "mine")
    wait_until(lambda: (lab.metric("credits_spent_total{") or 0) > 0, 30, "a first charge")
    spent = float(lab.json("balance", "acme")["spent"])
    token = (lab.directory / "var/admin.token").read_text()
    first.kill()
    first.wait(30)
    second = lab.up()
    balance = lab.json("balance", "acme")
    assert balance["granted"] == "2007"  # what orgs begin with is granted once for ever
    assert float(balance["spent"]) >= spent
    assert (lab.directory / "var/admin.token").read_text() == token
    assert lab.json("verify")["ok"] is True
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0


def test_a_second_run_on_the_same_data_is_refused(lab: RunLab) -> None:
    first = lab.up()
    second = lab.run("run")
    assert (second.returncode, second.stdout) == (1, "")
    assert f"process {first.pid}" in second.stderr
    assert str(lab.directory / "var") in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert first.poll() is None
    assert lab.answers()


@pytest.mark.parametrize("port", ["metrics_port", "api_port"])
def test_a_port_in_use_is_said_clearly(lab: RunLab, port: str) -> None:
    with socket.create_server(("127.0.0.1", getattr(lab, port))):
        done = lab.run("run")
    assert done.returncode == 1
    problem = done.stderr.splitlines()[-1]
    assert problem.startswith("credits: ")
    assert str(getattr(lab, port)) in problem
    assert "config/settings.yaml" in problem
    assert "Traceback" not in done.stderr
    if port == "api_port":
        with socket.create_server(("127.0.0.1", lab.api_port)):
            alone = lab.run("enforcer")
        assert (alone.returncode, alone.stderr.splitlines()[-1]) == (1, problem)
    lab.up()


def test_the_source_can_be_chosen(lab: RunLab) -> None:
    lab.with_sources({"type": "simulated", "cluster": "default"}, {"type": "json", "path": "snapshot.json"})
    lab.snapshot("2026-11-22T10:00:00Z", job("job-1", "09:00:00"))
    process = lab.up("--source", "json")
    wait_until(lambda: lab.metric('credits_source_up{source="json-default"}') == 1, 30, "a round")
    assert 'source="simulated' not in lab.get(lab.metrics_port, "/metrics")
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    refused = lab.run("run", "--source", "apolo")
    assert refused.returncode == 2
    assert "config/settings.yaml" in refused.stderr
    assert "type: apolo" in refused.stderr


def test_the_services_run_on_their_own_and_share_the_server(lab: RunLab) -> None:
    exporter = lab.start("exporter")
    enforcer = lab.start("enforcer")
    lab.processes += [exporter, enforcer]
    wait_until(lab.answers, 60, "the services' answer")
    lab.ok("grant", "acme", "5")
    wait_until(lambda: lab.metric('credits_granted_total{org="acme"') == 5, 30, "the grant's sample")
    for process in (exporter, enforcer):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def test_edited_rates_are_in_force_at_once_and_a_bad_file_is_not(lab: RunLab) -> None:
    process = lab.up()
    sample = 'credits_rate{cluster="default",kind="job",resource="gpu-large"}'
    wait_until(lambda: lab.metric('credits_rate{cluster="default"') is not None, 30, "the rates")
    text = (lab.directory / "config/rates.yaml").read_text()
    (lab.directory / "config/rates.yaml").write_text(text.replace("40.5", "50"))
    wait_until(lambda: " 50" in _line(lab, "gpu-large"), 30, f"the new rate in {sample}")
    (lab.directory / "config/rates.yaml").write_text(text.replace("40.5", "-1"))
    wait_until(lambda: lab.metric("credits_config_last_reload_successful") == 0, 30, "the refusal")
    assert " 50" in _line(lab, "gpu-large")
    (lab.directory / "config/rates.yaml").write_text(text)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: " 40.5" in _line(lab, "gpu-large"), 30, "the old rate")
    assert lab.metric("credits_config_last_reload_successful") == 1


def _line(lab: RunLab, resource: str) -> str:
    lines = lab.get(lab.metrics_port, "/metrics").splitlines()
    return next((line for line in lines if line.startswith("credits_rate{") and f'"{resource}"' in line), "")
