"""The shapes of answers, the same for `--json` and HTTP: amounts are decimal strings, times RFC 3339 in UTC."""

from __future__ import annotations

from typing import Any

from ledger.accounts import GrantReceipt
from ledger.balances import Balance
from ledger.clock import format_time
from ledger.money import format_micro
from ledger.scopes import Scope


def time_or_none(us: int | None) -> str | None:
    """An instant as text, None where there is none."""
    return None if us is None else format_time(us)


def balance_shape(balance: Balance) -> dict[str, Any]:
    """What an org has; `burn_rate` is in credits an hour. A credit line, and what is restricted, where there is any."""
    shape = {
        "org": balance.org,
        "granted": format_micro(balance.granted_micro),
        "expired": format_micro(balance.expired_micro),
        "spent": format_micro(balance.spent_micro),
        "held": format_micro(balance.held_micro),
        "available": format_micro(balance.available_micro),
        "overdraft": format_micro(balance.overdraft_micro),
        "unlimited": balance.unlimited,
        "burn_rate": format_micro(balance.burn_micro),
        "exhausted_at": time_or_none(balance.exhausted_us),
        "stage": balance.stage,
    }
    if balance.credit_line_micro:
        shape["credit_line"] = format_micro(balance.credit_line_micro)
    if balance.restricted:
        left = sorted(balance.restricted.items())
        shape["restricted"] = [{**only_shape(scope), "left": format_micro(micro)} for scope, micro in left]
    return shape


def org_shape(balance: Balance) -> dict[str, Any]:
    """What is set for an org; its revision is `balance.revision`."""
    return {
        "org": balance.org,
        "unlimited": balance.unlimited,
        "credit_line": format_micro(balance.credit_line_micro),
        "contact": balance.contact or None,
        "policy": dict(balance.policy),
    }


def only_shape(scope: Scope) -> dict[str, list[str]]:
    """For which work a restricted grant pays; an empty list: any."""
    return {"presets": list(scope.presets), "clusters": list(scope.clusters)}


def grant_shape(org: str, receipt: GrantReceipt) -> dict[str, Any]:
    """A grant as it was acknowledged; `replayed`: it was there already, and nothing was granted again.

    `new_org`, only where it is so: nothing was known of the org before.
    """
    record = receipt.record
    return {
        "org": org,
        "idempotency_key": record.key,
        "credits": record.credits,
        "source": record.source,
        "reason": record.reason,
        "purpose": record.purpose,
        "only": only_shape(Scope(record.presets, record.clusters)) if record.presets or record.clusters else None,
        "granted_at": record.granted_at,
        "effective_at": record.effective_at,
        "expires_at": record.expires_at,
        **({"new_org": True} if record.new_org else {}),
        "replayed": receipt.replayed,
    }
