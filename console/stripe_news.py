"""What Stripe's objects mean: checkout sessions, refunds, disputes and the events about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from console.provider import Closed, LookAt, News, Returned, Unusable
from ledger.purchase_step import Paid

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
    metadata: dict[str, str] | None = None


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


class Charge(msgspec.Struct):
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
        if about.startswith("refund.") or about == "charge.refund.updated":
            return refund_news(msgspec.json.decode(given, type=Refund))
        if about.startswith("charge.dispute."):
            return dispute_news(msgspec.json.decode(given, type=Dispute))
        if about == "charge.refunded":
            payment = _id(msgspec.json.decode(given, type=Charge).payment_intent)
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
    return [Paid(*place, payment, session.amount_total, session.currency)]


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
