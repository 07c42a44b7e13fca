"""What is said to who submits work that may not start: the tier, what is left, what it needs, when, and whom to ask."""

from __future__ import annotations

from ledger.budgets import Budget
from ledger.clock import parse_time
from ledger.refusal_text import Circumstances, budget_exhausted, unpriced

NOW = parse_time("2026-11-23T10:00:00Z")
CREDIT = 1_000_000


def test_a_budget_says_all_in_two_sentences() -> None:
    budget = Budget("b", "vision", "ann", 10 * CREDIT, "day", "Europe/Berlin")
    about = Circumstances("ops@acme.example", 40_500_000)
    assert budget_exhausted(budget, NOW, 2_500_000, 3 * CREDIT, about, "acme") == (
        "The daily budget of user ann in project vision has 2.5 of 10 credits left and org acme's running work uses "
        "40.5 credits an hour; this needs 3 credits to start. The budget starts anew on 2026-11-24 00:00 "
        "(Europe/Berlin); ops@acme.example can raise it."
    )


def test_a_budget_that_never_starts_anew_and_is_overdrawn() -> None:
    budget = Budget("b", "vision", None, CREDIT, "total")
    assert budget_exhausted(budget, NOW, -CREDIT, 500_000, org="acme") == (
        "The total budget of project vision has 0 of 1 credit left; this needs 0.5 credits to start. An owner of org "
        "acme can raise it."
    )


def test_a_cluster_without_rates_may_be_a_misspelled_one() -> None:
    assert unpriced("defualt", "preset", "gpu", ()).endswith(
        "'gpu', so it cannot be charged. It has none for any preset: check the cluster's name, or ask an administrator "
        "to set them."
    )
