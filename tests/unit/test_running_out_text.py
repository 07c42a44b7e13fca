"""What people are told whose work runs when credits run out: why, since when, what happens, how it goes on."""

from __future__ import annotations

from ledger.clock import parse_time
from ledger.refusal_text import Circumstances, running_out

SINCE = parse_time("2026-11-22T10:00:00.5Z")
UNTIL = parse_time("2026-11-22T10:10:00.9Z")
MIDNIGHT = parse_time("2026-11-23T00:00:00Z")
OPS = Circumstances("ops@acme.example", 0, "https://credits.example/buy")


def test_an_org_that_is_to_be_stopped() -> None:
    assert running_out("org acme", SINCE, "stop", UNTIL, "acme", OPS) == (
        "Org acme has too few credits for what runs since 2026-11-22T10:00:00Z. Unless credits come, this will be"
        " stopped at 2026-11-22T10:10:00Z, so save your work; it can be submitted again once there are credits. Ask"
        " ops@acme.example for credits, or buy credits at https://credits.example/buy."
    )


def test_an_org_that_was_suspended() -> None:
    assert running_out("org acme", SINCE, "suspend", None, "acme") == (
        "Org acme has too few credits for what runs since 2026-11-22T10:00:00Z. So this was suspended; it goes on by"
        " itself once there are credits. Ask an owner of org acme or an administrator of the cluster for credits."
    )


def test_a_budget_that_starts_anew() -> None:
    said = running_out(
        "the daily budget of project p", SINCE, "suspend", None, "acme", OPS, is_budget=True, renews_us=MIDNIGHT
    )
    assert said.startswith("The daily budget of project p has too few credits for what runs since 2026-11-22T10:00:00Z")
    assert said.endswith(" It starts anew at 2026-11-23T00:00:00Z; ops@acme.example can raise it.")


def test_a_budget_for_ever() -> None:
    said = running_out("the total budget of project p", SINCE, "stop", None, "acme", is_budget=True)
    assert said.endswith("once there are credits. An owner of org acme can raise it.")
