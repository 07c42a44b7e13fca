"""Entries of the journal in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ledger.money import AmountError, parse_credits

TITLES: Final = {
    "grant": "Credits granted",
    "correction": "Correction",
    "transfer": "Transfer",
    "org": "Org created or edited",
    "budget": "Budget set",
    "budget_removed": "Budget removed",
    "order": "Order placed",
    "payment_refused": "Payment not credited",
    "withdrawal": "Payment returned, credits taken back",
    "restoration": "Credits given again",
    "stage": "Stage changed",
    "refusal": "Refused",
    "shadow": "Let through, would be refused",
    "exception": "Let through, ledger was away",
    "top_up": "Automatic top-up",
    "top_up_terms": "Automatic top-up settings",
    "card": "Card saved",
    "notices": "Notices changed",
    "rates": "Rates put into force",
    "token_created": "Token created",
    "token_revoked": "Token revoked",
    "token_kept": "Token not revoked: the last of role admin",
    "signed_in": "Signed in",
    "signed_out": "Signed out",
    "signed_out_everywhere": "Signed out everywhere",
    "everybody_signed_out": "Signed everybody out",
    "role_chosen": "Role chosen",
}
"""Of all types of entries, of journals and of the audit."""
_SOURCES: Final = {"provision": "provisioned", "purchase": "bought", "refund": "given back", "gift": "a gift"}
_TAKES: Final = frozenset({"withdrawal"})
_MOVES: Final = frozenset({"grant", "correction", "restoration", "transfer", *_TAKES})
_LABELS: Final = {"from": "address", "what": "of a", "differs_from": "differ from"}
_NOTHING: Final[tuple[Any, ...]] = (None, "", [], {}, False)
_SHOWN: Final = frozenset({"id", "at", "type", "who", "credits", "reason", "project", "user", "org"})


@dataclass(frozen=True, slots=True)
class Words:
    """`credits`: a decimal string, with a minus where they are taken; `about`: project and user; `more`: the rest."""

    title: str
    at: str
    who: str
    credits: str | None
    reason: str
    about: list[str]
    more: list[tuple[str, str]]
    tone: str


def in_words(entry: Mapping[str, Any]) -> Words:
    """An entry of any type, also of one that this page has not heard of."""
    kind = str(entry.get("type", "entry"))
    source = entry.get("source")
    title = TITLES.get(kind, kind.replace("_", " ").capitalize())
    if kind == "grant" and source in _SOURCES:
        title = f"{title}, {_SOURCES[source]}"
    told = {"stage": "stage", "top_up": "outcome"}.get(kind)
    if told is not None and entry.get(told):
        title = f"{title}: {entry[told]}"
    credits_ = _signed(kind, entry.get("credits"))
    takes = kind in _MOVES and credits_ is not None and credits_.startswith("-")
    if kind == "transfer":
        title = f"Transfer to {entry.get('to_org')}" if takes else f"Transfer from {entry.get('from_org')}"
    refused = kind in ("refusal", "shadow", "exception")
    return Words(
        title=title,
        at=str(entry.get("at", "")),
        who=str(entry.get("who", "")),
        credits=credits_,
        reason=str(entry.get("reason") or ""),
        about=[str(entry[name]) for name in ("project", "user") if entry.get(name)],
        more=[
            (_LABELS.get(name, name.replace("_", " ")), _text(value))
            for name, value in entry.items()
            if _is_told(name, value)
        ],
        tone="bad" if refused or takes else "good" if kind in _MOVES else "",
    )


def _is_told(name: str, value: Any) -> bool:
    return name not in _SHOWN and value not in _NOTHING


def _signed(kind: str, credits_: Any) -> str | None:
    if not isinstance(credits_, str):
        return None
    try:
        micro = parse_credits(credits_)
    except AmountError:
        return None
    return f"-{credits_}" if kind in _TAKES and micro > 0 else credits_


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(part)}" for name, part in value.items() if part not in _NOTHING)
    if isinstance(value, list):
        return ", ".join(_text(part) for part in value)
    return str(value)
