"""`correct`, `transfer`, `grants`, `journal`, `audit` as they are typed."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from tests.cli_lab import Lab, job

pytestmark = pytest.mark.redis


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.ok("grant", "acme", "1000", "--idempotency-key", "order-1", "--effective-at", "2026-11-01")
    lab.ok("grant", "globex", "1")
    return lab


def test_credits_are_put_right(lab: Lab) -> None:
    said = lab.ok("correct", "acme", "-900", "--corrects", "order-1", "--reason", "1000 typed for 100")
    assert "corrected: -900 credits of acme (grant order-1); available 100" in said
    key = said.rsplit(" ", 1)[1].strip()
    again = ("correct", "acme", "-900", "--corrects", "order-1", "--reason", "1000 typed for 100")
    assert "corrected before" in lab.ok(*again, "--idempotency-key", key)
    lab.once("12:00:00", job("a", "09:00:00", "11:00:00"))
    assert lab.json("correct", "acme", "81", "--corrects", "a", "--reason", "node failed")["what"] == "workload"
    assert lab.json("balance", "acme")["available"] == "100"
    for wrong, code in (
        (("correct", "acme", "-101", "--corrects", "order-1", "--reason", "x"), 2),
        (("correct", "acme", "1", "--corrects", "nope", "--reason", "x"), 2),
        (("correct", "acme", "1", "--reason", "x"), 2),
        (("correct", "acme", "1", "--corrects", "order-1"), 2),
        (("correct", "nobody", "1", "--corrects", "order-1", "--reason", "x"), 1),
        (("correct", "acme", "1", "--corrects", "order-1", "--reson", "x"), 2),
    ):
        assert lab.run(*wrong).returncode == code
    [grant, correction] = lab.json("grants", "acme")["items"]
    assert (grant["corrected"], grant["remaining"], grant["state"]) == ("-900", "19", "in_force")
    assert (correction["credits"], correction["source"], correction["remaining"]) == ("81", "refund", "81")
    assert "CORRECTED" in lab.ok("grants", "acme")
    assert lab.ok("grants", "acme", "--csv", "--newest-first").splitlines()[1].startswith("correction:")
    assert lab.json("verify")["ok"]


def test_credits_move(lab: Lab) -> None:
    made = lab.json("transfer", "acme", "globex", "10", "--reason", "lent", "--idempotency-key", "t")
    assert (made["from"], made["to"], made["state"], made["replayed"]) == ("acme", "globex", "done", False)
    said = lab.ok("transfer", "acme", "globex", "10", "--reason", "lent", "--idempotency-key", "t")
    assert "transferred before, nothing changed: 10 credits from acme to globex" in said
    done = lab.run("transfer", "acme", "globex", "991")
    assert (done.returncode, "insufficient: org 'acme' has 990 credits" in done.stderr) == (1, True)
    assert lab.run("transfer", "acme", "nobody", "1").returncode == 1
    assert (lab.json("balance", "acme")["available"], lab.json("balance", "globex")["available"]) == ("990", "11")
    [entry] = lab.json("journal", "globex", "--type", "transfer")["items"]
    assert (entry["who"], entry["from"], entry["from_org"]) == (f"cli:{getpass.getuser()}", None, "acme")
    newest = lab.json("journal", "acme", "--newest-first", "--limit", "1")
    assert (newest["items"][0]["type"], newest["items"][0]["credits"]) == ("transfer", "-10")
    assert lab.json("journal", "acme", "--to", "2026-01-01")["items"] == []


def test_what_was_changed_without_a_reason_is_told_in_the_journal(lab: Lab) -> None:
    lab.ok("org", "set", "acme", "--credit-line", "5")
    lab.ok("budget", "set", "acme", "vision", "7", "--period", "day")
    lab.ok("grant", "acme", "1", "--preset", "gpu-large")
    told = lab.ok("journal", "acme")
    for words in ("credit line: 5\n", "period: day, timezone: UTC", "  only: presets: gpu-large\n"):
        assert words in told
    assert lab.json("journal", "acme", "--type", "budget")["items"][0].get("reason") is None


def test_a_name_that_is_probably_misspelled_is_noted(lab: Lab) -> None:
    made = lab.run("grant", "acme", "1", "--preset", "gpu-lage")
    assert (made.returncode, "rates.yaml has no rate for preset 'gpu-lage'; did you mean" in made.stderr) == (0, True)
    assert lab.run("grant", "acme", "1", "--preset", "gpu-large").stderr == ""
    made = lab.run("token", "create", "--role", "viewer", "--org", "acmee")
    assert (made.returncode, "there is no org 'acmee' yet" in made.stderr) == (0, True)
    assert "no org" not in lab.run("token", "create", "--role", "viewer", "--org", "acme").stderr


def test_what_concerns_no_org_is_audited(lab: Lab) -> None:
    made = lab.json("token", "create", "--role", "viewer", "--org", "acme")
    lab.ok("token", "revoke", made["id"])
    lab.once("12:00:00")
    entries = lab.json("audit")["items"]
    mine = [(one["type"], one["who"]) for one in entries if one.get("token") == made["id"]]
    assert mine == [("token_created", f"cli:{getpass.getuser()}"), ("token_revoked", f"cli:{getpass.getuser()}")]
    assert [one["cluster"] for one in entries if one["type"] == "rates"] == ["default"]
    assert "token_revoked" in lab.ok("audit", "--type", "token_revoked")
    assert made["token"] not in str(entries)
