"""What Stripe's objects mean: checkout sessions, refunds, disputes and the events about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from console.provider import Charge, Closed, LookAt, News, Returned, SavedCard, Unusable
from ledger.purchase_step import TOP_UP, Paid

# How final a state is, and whether its amount is taken back.
_REFUNDS: Final = {
    "pending": (1, True),
    "requires_action": (1, True),
    "succeeded": (1, True),
    "failed": (2, False),
    "canceled": (2, False),
}
_DISPUTES: Final = {
    "warning_needs_response": (0, False),
    "warning_under_review": (0, False),
    "warning_closed": (0, False),
    "needs_response": (1, True),
    "under_review": (1, True),
    "lost": (2, True),
    "won": (3, False),
    "prevented": (3, False),
}


class _Id(msgspec.Struct):
    id: str


Reference = str | _Id | None
"""An object of Stripe's: its id, or the whole of it where it was asked for."""


class Session(msgspec.Struct):
    """A checkout session: https://docs.stripe.com/api/checkout/sessions/object."""

    id: str
    status: str | None = None
    payment_status: str | None = None
    client_reference_id: str | None = None
    amount_total: int | None = None
    currency: str | None = None
    payment_intent: Reference = None
    customer: Reference = None
    metadata: dict[str, str] | None = None


class _Error(msgspec.Struct):
    code: str | None = None
    decline_code: str | None = None


class Intent(msgspec.Struct):
    """A payment: https://docs.stripe.com/api/payment_intents/object."""

    id: str
    amount: int
    currency: str
    status: str
    amount_received: int = 0
    last_payment_error: _Error | None = None
    metadata: dict[str, str] | None = None


class _Brand(msgspec.Struct):
    brand: str = "card"
    last4: str = "????"
    exp_month: int = 0
    exp_year: int = 0


class _Method(msgspec.Struct):
    id: str
    customer: Reference = None
    card: _Brand | None = None


class PaidBy(msgspec.Struct):
    """A payment with the card that made it."""

    payment_method: _Method | None = None
    setup_future_usage: str | None = None


class Refund(msgspec.Struct):
    """A refund: https://docs.stripe.com/api/refunds/object."""

    id: str
    amount: int
    currency: str
    status: str | None = None
    payment_intent: Reference = None


class Dispute(msgspec.Struct):
    """A dispute: https://docs.stripe.com/api/disputes/object."""

    id: str
    amount: int
    currency: str
    status: str
    payment_intent: Reference = None


class Refunded(msgspec.Struct):
    """A charge, of which something was refunded."""

    id: str
    payment_intent: Reference = None


class _Data(msgspec.Struct):
    object: msgspec.Raw


class _Event(msgspec.Struct):
    id: str
    type: str
    data: _Data


def event_news(body: bytes) -> Sequence[News]:
    """News in an event's JSON; none where it is about something else."""
    try:
        event = msgspec.json.decode(body, type=_Event)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return [Unusable("an event that is none")]
    about, given = event.type, event.data.object
    try:
        if about == "checkout.session.async_payment_failed":
            session = msgspec.json.decode(given, type=Session)
            return [Closed(*place, "failed")] if (place := _place(session)) else []
        if about.startswith("checkout.session."):
            return session_news(msgspec.json.decode(given, type=Session))
        if about == "payment_intent.succeeded":
            return intent_news(msgspec.json.decode(given, type=Intent))
        if about.startswith("refund.") or about == "charge.refund.updated":
            return refund_news(msgspec.json.decode(given, type=Refund))
        if about.startswith("charge.dispute."):
            return dispute_news(msgspec.json.decode(given, type=Dispute))
        if about == "charge.refunded":
            payment = _id(msgspec.json.decode(given, type=Refunded).payment_intent)
            return [LookAt(payment)] if payment else []
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return [Unusable(f"event {event.id[:80]} of type {about[:80]}: {error}")]
    return []


def session_news(session: Session) -> Sequence[News]:
    """What a checkout session says of its order; nothing where it is not one of ours, or is still open."""
    place = _place(session)
    if place is None:
        return []
    if session.status == "expired":
        return [Closed(*place, "expired")]
    if session.status != "complete":
        return []
    payment = _id(session.payment_intent)
    if session.payment_status != "paid":
        return [Closed(*place, "pending")]
    if not payment or session.amount_total is None or session.currency is None:
        return [Unusable(f"session {session.id[:80]} is paid, but not by a payment")]
    return [Paid(*place, payment, session.amount_total, session.currency, _id(session.customer))]


def intent_news(intent: Intent) -> Sequence[News]:
    """That a top-up was paid; payments of checkout sessions are told of by these."""
    place = place_in(intent.metadata)
    if place is None or intent.status != "succeeded" or (intent.metadata or {}).get("kind") != TOP_UP:
        return []
    return [Paid(*place, intent.id, intent.amount_received, intent.currency)]


def charge_of(intent: Intent) -> Charge:
    """How a card's charge stands."""
    if intent.status == "succeeded":
        return Charge(intent.id, "paid", "", intent.amount_received, intent.currency)
    if intent.status == "processing":
        return Charge(intent.id, "pending")
    why = intent.last_payment_error
    reason = "" if why is None else reason_of(why.code, why.decline_code)
    if intent.status == "requires_action":
        reason = "authentication_required"
    return Charge(intent.id, "cancelled" if intent.status == "canceled" else "failed", reason or intent.status)


def card_of(paid: PaidBy) -> SavedCard | None:
    """The card, if it may be charged again."""
    method, agreed = paid.payment_method, paid.setup_future_usage == "off_session"
    customer = "" if method is None else _id(method.customer)  # nobody's: it was removed since
    if method is None or method.card is None or not customer or not agreed:
        return None
    card = method.card
    return SavedCard(customer, method.id, card.brand, card.last4, f"{card.exp_year:04}-{card.exp_month:02}")


def reason_of(code: str | None, decline_code: str | None) -> str:
    """The provider's word for a card that was not charged."""
    if "authentication_required" in (code, decline_code):
        return "authentication_required"
    return decline_code or code or "card_declined"


def refund_news(refund: Refund) -> Sequence[News]:
    """What a refund takes back; an unknown state is taken for one that takes its amount."""
    payment = _id(refund.payment_intent)
    if not payment:
        return []
    rank, counts = _REFUNDS.get(refund.status or "pending", (1, True))
    return [Returned(payment, refund.id, "refund", rank, refund.amount if counts else 0, refund.currency)]


def dispute_news(dispute: Dispute) -> Sequence[News]:
    """What a dispute takes back: nothing while the bank only inquires, and nothing once it is won."""
    payment = _id(dispute.payment_intent)
    if not payment:
        return []
    rank, counts = _DISPUTES.get(dispute.status, (1, True))
    return [Returned(payment, dispute.id, "dispute", rank, dispute.amount if counts else 0, dispute.currency)]


def place_in(metadata: Any) -> tuple[str, str] | None:
    """(org, order) in the metadata of one of our objects."""
    if not isinstance(metadata, dict):
        return None
    org, order = metadata.get("org"), metadata.get("order")
    return (org, order) if isinstance(org, str) and isinstance(order, str) and org and order else None


def _place(session: Session) -> tuple[str, str] | None:
    place = place_in(session.metadata)
    return place if place is not None and session.client_reference_id == place[1] else None


def _id(reference: Reference) -> str:
    return reference.id if isinstance(reference, _Id) else reference or ""
