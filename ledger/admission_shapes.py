"""Decisions, quotes and budgets as programs get them, over HTTP and on the command line alike."""

from __future__ import annotations

from typing import Any

from ledger.admission import Decision, Quote
from ledger.budget_store import BudgetState
from ledger.clock import format_time
from ledger.money import HOUR_US, format_decimal, format_micro


def decision_shape(decision: Decision) -> dict[str, Any]:
    """The answer to an admission."""
    return {
        "allowed": decision.allowed,
        "code": decision.code,
        "reason": decision.reason,
        "tier": decision.tier,
        "available": _credits(decision.available_micro),
        "required": format_micro(decision.required_micro),
        "hold_id": decision.hold_id,
        "hold_expires_at": _time(decision.hold_expires_us),
    }


def quote_shape(quote: Quote) -> dict[str, Any]:
    """What work would cost; `lasts_hours`: how long credits last once it runs, `first_out`: what runs out first."""
    decision, balance = quote.decision, quote.balance
    return {
        "allowed": decision.allowed,
        "code": decision.code,
        "reason": decision.reason,
        "tier": decision.tier,
        "per_hour": _credits(quote.hour_micro),
        "total": _credits(quote.total_micro),
        "required": format_micro(decision.required_micro),
        "available": _credits(quote.available_micro),
        "left": _credits(quote.left_micro),
        "burn_rate": _credits(None if balance is None else balance.burn_micro),
        "lasts_hours": None if quote.lasts_us is None else format_decimal(quote.lasts_us * 100 // HOUR_US, 2),
        "first_out": quote.first_out,
    }


def budget_shape(org: str, state: BudgetState) -> dict[str, Any]:
    """A budget and what its current period has left."""
    budget = state.budget
    return {
        "org": org,
        "project": budget.project,
        "user": budget.user,
        "credits": format_micro(budget.limit_micro),
        "period": budget.period,
        "timezone": budget.timezone,
        "week_start": WEEKDAYS[budget.week_start],
        "spent": format_micro(state.spent_micro),
        "held": format_micro(state.held_micro),
        "remaining": format_micro(state.remaining_micro),
        "starts_at": _time(state.starts_us if budget.period != "total" else None),
        "ends_at": _time(state.ends_us),
    }


WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _credits(micro: int | None) -> str | None:
    return None if micro is None else format_micro(micro)


def _time(us: int | None) -> str | None:
    return None if us is None else format_time(us)
