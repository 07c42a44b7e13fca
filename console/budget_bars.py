"""Budgets as bars with their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from console import texts
from ledger.budget_store import BudgetState
from ledger.money import format_micro

_WIDTH = 1000
PERIOD_WORDS = {"day": "a day", "week": "a week", "month": "a month", "total": "in all"}


@dataclass(frozen=True, slots=True)
class BudgetBar:
    """`used`, `held`: widths of 1000. `look`: low (a tenth or less is left), out, or nothing."""

    state: BudgetState
    used: int
    held: int
    look: str
    percent: str
    label: str
    period: str


def budget_bars(states: Sequence[BudgetState]) -> list[BudgetBar]:
    """One for each, those with the least left first."""
    return sorted(
        (_bar(state) for state in states),
        key=lambda bar: (-(bar.used + bar.held), bar.state.budget.project, bar.state.budget.user or ""),
    )


def _bar(state: BudgetState) -> BudgetBar:
    limit, spent, held = state.budget.limit_micro, state.spent_micro, state.held_micro
    used = texts.share(spent, limit, _WIDTH) if limit else _WIDTH
    look = "out" if state.remaining_micro <= 0 else "low" if state.remaining_micro * 10 <= limit else ""
    percent = texts.percent(spent, limit)
    whose = state.budget.project if state.budget.user is None else f"{state.budget.user} in {state.budget.project}"
    label = f"{whose}: {percent} of {format_micro(limit)} credits spent, {format_micro(held)} held"
    room = _WIDTH - used
    return BudgetBar(
        state, used, min(room, texts.share(held, limit, _WIDTH)), look, percent, label,
        PERIOD_WORDS[state.budget.period],
    )  # fmt: skip
