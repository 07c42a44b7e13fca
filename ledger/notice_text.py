"""The words of notices: a line for the subject, and sentences for each event. The same for e-mail and pages."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ledger.money import AmountError, parse_credits
from ledger.refusal_text import budget_text, credits_text

_LINE_MAX: Final = 500
_STAGES: Final = {
    "ok": "has credits again",
    "warn": "runs out of credits soon",
    "block": "has nothing left for new work",
    "grace": "is running out of credits while work runs",
    "suspend": "ran out of credits, and its work is suspended",
    "stop": "ran out of credits, and its work is stopped",
}
_REASONS: Final = {
    "insufficient_funds": "the card has not enough funds",
    "authentication_required": "the bank wants the card's owner to confirm it",
    "card_removed": "the saved card is gone",
    "expired_card": "the card has expired",
    "card_declined": "the card was declined",
    "payment_unknown": "the payment provider does not know the payment any more",
}


class Words(NamedTuple):
    """A notice for people: `text` is plain, `page` simple HTML of the same."""

    subject: str
    text: str
    page: str


def kind_of(event: Mapping[str, Any]) -> str:
    """Which kind of notice tells of an event: one of KINDS, or `test`."""
    return str(event.get("type"))


def words(org: str, events: Sequence[Mapping[str, Any]], more: int, hint: str) -> Words:
    """What is written about these events, the last of which is what counts now. `hint`: why this is sent to you."""
    hint = one_line(hint)
    told = [(_to_the_second(one_line(str(event.get("at", "")))), sentence(event)) for event in events]
    subject = one_line(subject_of(org, events[-1]))
    lines = [f"{at}  {said}" for at, said in told]
    items = [f"<li><time>{html.escape(at)}</time> {html.escape(said)}</li>" for at, said in told]
    if more:
        lines.append(f"... and {more} more")
        items.append(f"<li>... and {more} more</li>")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(subject)}</title></head><body>'
        f"<h1>{html.escape(subject)}</h1><ul>{''.join(items)}</ul><p><small>{html.escape(hint)}</small></p>"
        "</body></html>"
    )
    return Words(subject, "\n".join([*lines, "", "-- ", hint, ""]), page)


def subject_of(org: str, event: Mapping[str, Any]) -> str:
    """What happened, in a few words."""
    kind = kind_of(event)
    if kind == "stage":
        return f"{_whose(org, event)} {_STAGES.get(str(event.get('stage')), 'changed its stage')}"
    if kind == "top_up":
        said = {"done": "bought credits", "capped": "reached its monthly cap"}.get(str(event.get("outcome")), "failed")
        return f"Org {org}: auto top-up {said}" + (" and is paused" if event.get("paused") else "")
    return {
        "runway": f"Org {org} runs out of credits soon",
        "purchase": f"Org {org}: {_credits(event)} bought",
        "refund": f"Org {org}: a payment was {'restored' if event.get('restored') else 'returned'}",
        "budget": f"Org {org}: {event.get('percent')} % of a budget is used",
        "test": f"Org {org}: a test of notices",
    }.get(kind, f"Org {org}: news")


def sentence(event: Mapping[str, Any]) -> str:
    """What happened, in a sentence or two."""
    return one_line(_SENTENCES.get(kind_of(event), _other)(event))


def reason_text(reason: str) -> str:
    """Why a card was not charged, for people."""
    return _REASONS.get(reason, reason)


def one_line(said: str) -> str:
    """Without line breaks and control characters, for headers and lists; what is long is cut."""
    clean = " ".join("".join(letter if letter.isprintable() else " " for letter in said).split())
    return clean if len(clean) <= _LINE_MAX else clean[: _LINE_MAX - 3] + "..."


def _stage(event: Mapping[str, Any]) -> str:
    whose = _whose(str(event.get("org")), event)
    left = f" {_amount(event.get('left'))} are left." if event.get("left") is not None else ""
    until = f" Without new credits it ends at {event['until']}." if event.get("until") else ""
    return f"{whose} {_STAGES.get(str(event.get('stage')), 'changed its stage')}.{left}{until}"


def _runway(event: Mapping[str, Any]) -> str:
    return (
        f"Org {event.get('org')} has {_amount(event.get('left'))} left; what runs uses "
        f"{_amount(event.get('burn_rate'))} an hour, and all of it is paid for until {event.get('exhausted_at')}."
    )


def _purchase(event: Mapping[str, Any]) -> str:
    return (
        f"{_credits(event)} were bought for org {event.get('org')} by {event.get('buyer')}: "
        f"order {event.get('order')}, payment {event.get('payment')}."
    )


def _refund(event: Mapping[str, Any]) -> str:
    what = "given back to" if event.get("restored") else "taken back from"
    forgiven = event.get("forgiven")
    rest = f" {_amount(forgiven)} were spent already and are forgiven." if forgiven not in (None, "0") else ""
    return (
        f"{_credits(event)} were {what} org {event.get('org')}: {event.get('reason')}, "
        f"payment {event.get('payment')}.{rest}"
    )


def _top_up(event: Mapping[str, Any]) -> str:
    outcome, reason = event.get("outcome"), str(event.get("reason") or "")
    if outcome == "done":
        return f"Auto top-up bought {_credits(event)} for org {event.get('org')}: order {event.get('order')}."
    if outcome == "capped":
        return f"Auto top-up of org {event.get('org')} buys nothing more this month: {reason}."
    paused = " It is paused until an owner switches it on again." if event.get("paused") else ""
    why = reason_text(reason)
    return f"Auto top-up of {_credits(event)} for org {event.get('org')} failed: {why}.{paused}"


def _budget(event: Mapping[str, Any]) -> str:
    budget = budget_text(str(event.get("project")), event.get("user") or None, str(event.get("period")))
    ends = f" It starts anew at {event['ends_at']}." if event.get("ends_at") else ""
    return f"The {budget} has {event.get('left')} of {_amount(event.get('credits'))} left.{ends}"


def _test(event: Mapping[str, Any]) -> str:
    return f"This is a test of notices of org {event.get('org')}, asked for by {event.get('who')}."


def _other(event: Mapping[str, Any]) -> str:
    return f"{kind_of(event)}: {event.get('reason') or ''}"


_SENTENCES: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "stage": _stage,
    "runway": _runway,
    "purchase": _purchase,
    "refund": _refund,
    "top_up": _top_up,
    "budget": _budget,
    "test": _test,
}


def _to_the_second(at: str) -> str:
    whole, point, _ = at.partition(".")
    return f"{whole}Z" if point else at


def _whose(org: str, event: Mapping[str, Any]) -> str:
    if event.get("user"):
        return f"Org {org}: user {event['user']} in project {event.get('project')}"
    return f"Org {org}: project {event['project']}" if event.get("project") else f"Org {org}"


def _credits(event: Mapping[str, Any]) -> str:
    return _amount(event.get("credits"))


def _amount(value: object) -> str:
    try:
        return credits_text(parse_credits(str(value)))
    except AmountError:
        return "some credits"
