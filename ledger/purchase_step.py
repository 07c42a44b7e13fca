"""An order, a payment, the news about them, and what each news means for them and for the credits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.accounts import PAYMENT_PREFIX, GrantRecord
from ledger.clock import format_time, from_us
from ledger.lua import text

STATES: Final = ("new", "open", "pending", "paid", "expired", "failed")
TOP_UP: Final = "top_up"
DECLINES_MAX: Final = 3
"""So many declines in a row pause an auto top-up."""
_LASTING: Final = ("authentication_required", "card_removed")
"""Another try is of no use before somebody did something about it."""


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What somebody wants to buy. `amount`: in the currency's smallest unit. `state`: one of STATES.

    `pending`: the buyer is done, the money is not there yet. `returned`: credits that refunds and disputes ask back.
    `kind`: "" for a buyer at a page, TOP_UP for a card that is charged by itself. `customer`, `method`: the provider's
    names of who pays, and of the card. `save_card`: the buyer agrees to have the card charged again.
    `session`: the provider's page; of a top-up its payment, once known. `page`: what the address of its receipt
    says, so that nobody finds it who only knows, or guesses, by which key the order was made.
    """

    id: str
    org: str
    digest: str
    credits: str
    micro: int
    amount: int
    currency: str
    who: str
    created_us: int
    state: str = "new"
    session: str = ""
    url: str = ""
    expires_us: int = 0
    payments: tuple[str, ...] = ()
    paid_us: int = 0
    returned: int = 0
    kind: str = ""
    customer: str = ""
    method: str = ""
    save_card: bool = False
    page: str = ""


class Payment(msgspec.Struct, frozen=True):
    """A payment of an order. `reversals`: refund or dispute -> [how final it is, amount it takes back now].

    `asked`, `taken`: micro-credits to be taken back, and taken (less only where they were spent and are forgiven, or
    where corrections of the payment's grant had taken them before).
    """

    id: str
    order: str
    paid: bool = False
    refused: str = ""
    reversals: dict[str, tuple[int, int]] = {}
    moves: int = 0
    asked: str = "0"
    taken: str = "0"


@dataclass(frozen=True, slots=True)
class Paid:
    """News: money came in. `amount`: in the currency's smallest unit."""

    org: str
    order: str
    payment: str
    amount: int
    currency: str
    customer: str = ""
    """The provider's name of who paid, where it is said."""


@dataclass(frozen=True, slots=True)
class Reversal:
    """News: a refund or dispute `id` takes back `amount` (0: nothing, or nothing any more) of a payment.

    `rank`: news of a higher rank is final over those of a lower one, in whatever order they come.
    """

    org: str
    order: str
    payment: str
    id: str
    kind: str
    rank: int
    amount: int
    currency: str


def month_of(us: int) -> str:
    """The calendar month (UTC) of an instant: `2026-11`."""
    return f"{from_us(us):%Y-%m}"


class Step:
    """One news merged into order and payment, and the credits that move by it."""

    def __init__(self, order: Order, payment: Payment, now: int, refunds: str) -> None:
        self.order = order
        self.payment = payment
        self.outcome = "known"
        self.entries: list[dict[str, Any]] = []
        self.moves: dict[str, list[Any]] = {}
        self._now = now
        self._refunds = refunds
        self._cause = ""

    def pay(self, news: Paid, too_large: bool) -> None:
        """Money came in: it must be what the order asked for."""
        if self.payment.paid:
            return
        wrong = "wrong_amount" if news.amount != self.order.amount else ""
        wrong = "wrong_currency" if news.currency != self.order.currency else wrong
        wrong = "too_large" if too_large else wrong
        if wrong:
            if self.payment.refused:
                return
            self.outcome = "refused"
            self._top_up("refused", f"payment {news.payment} is not what was asked for: {wrong}")
            self.payment = msgspec.structs.replace(self.payment, refused=wrong)
            self._journal("payment_refused", reason=wrong, amount=news.amount, currency=news.currency)
            return
        self.outcome = "credited"
        self._top_up("late" if self.order.state in ("failed", "expired") else "paid", "")
        self.payment = msgspec.structs.replace(self.payment, paid=True, refused="")
        payments = (*self.order.payments, news.payment)
        self.order = msgspec.structs.replace(
            self.order, state="paid", payments=payments, paid_us=self.order.paid_us or self._now
        )
        at, order = format_time(self._now), self.order
        key, reason = PAYMENT_PREFIX + news.payment, f"order {order.id}, paid by card"
        digest = hashlib.sha256(f"{order.id}{keys.US}{news.payment}".encode()).hexdigest()
        record = GrantRecord(key, digest, order.credits, "purchase", reason, at, at, None, order.who)
        self.moves["grant"] = [key, text(msgspec.json.encode(record)), str(order.micro), str(self._now)]
        self._journal(
            "grant", credits=order.credits, source="purchase", reason=reason, key=key, effective_at=at,
            expires_at=None, amount=order.amount, currency=order.currency, buyer=order.who,
        )  # fmt: skip

    def close(self, state: str, reason: str) -> None:
        """An order is `pending`, or will not be paid. `reason`: the provider's, "" where there is none."""
        self.order = msgspec.structs.replace(self.order, state=state)
        if state != "pending":
            self._top_up("failed", reason)

    def reverse(self, news: Reversal) -> None:
        """A refund or dispute: news that are not final over what is known change nothing."""
        known = self.payment.reversals.get(news.id)
        if known is not None and known[0] >= news.rank:
            return
        # Of another currency: what of the payment that is cannot be told, so it is all of it.
        amount = news.amount if news.currency == self.order.currency or news.amount == 0 else self.order.amount
        reversals = {**self.payment.reversals, news.id: (news.rank, amount)}
        self.payment = msgspec.structs.replace(self.payment, reversals=reversals)
        self.outcome, self._cause = "changed", f"{news.kind} {news.id}"

    def balance(self) -> None:
        """Have the credits follow the record."""
        if not self.payment.paid:
            return
        order, before = self.order, int(self.payment.asked)
        back = min(order.amount, sum(amount for _, amount in self.payment.reversals.values()))
        asked = order.micro * back // order.amount
        if asked == before:
            return
        move = f"{PAYMENT_PREFIX}{self.payment.id}:{self.payment.moves + 1}"
        entry: dict[str, Any] = {
            "type": "withdrawal", "at": format_time(self._now), "who": "payments", "order": order.id,
            "payment": self.payment.id, "credits": "0", "forgiven": "0", "key": move,
            "reason": self._cause or "returned before it was known to be paid",
        }  # fmt: skip
        give = int(self.payment.taken) - asked  # what was forgiven was never taken, and is not given back
        if asked > before:
            own = PAYMENT_PREFIX + self.payment.id
            packed = text(msgspec.json.encode(entry))
            self.moves["withdraw"] = [move, str(asked - before), packed, own, self._refunds, str(order.micro)]
        elif give > 0:
            entry["type"] = "restoration"
            self.moves["restore"] = [move, str(give), text(msgspec.json.encode(entry))]
        self.payment = msgspec.structs.replace(self.payment, moves=self.payment.moves + 1, asked=str(asked))
        self.order = msgspec.structs.replace(order, returned=order.returned + asked - before)

    def _top_up(self, outcome: str, reason: str) -> None:
        order = self.order
        if order.kind != TOP_UP:
            return
        declines = 0
        if outcome == "failed" and reason:
            declines = 1 if reason in _LASTING else DECLINES_MAX
        entry = {
            "type": "top_up", "at": format_time(self._now), "who": "payments", "order": order.id,
            "outcome": "done" if outcome == "paid" else "failed", "credits": order.credits, "amount": order.amount,
            "currency": order.currency, "paused": False,
            "reason": reason or ("it could not be charged in time" if outcome == "failed" else ""),
        }  # fmt: skip
        self.moves["top_up"] = [
            order.id, outcome, month_of(order.created_us), str(order.micro), str(declines),
            "1" if reason == "card_removed" else "", text(msgspec.json.encode(entry)),
        ]  # fmt: skip

    def _journal(self, kind: str, **more: Any) -> None:
        entry = {"type": kind, "at": format_time(self._now), "who": "payments"}
        self.entries.append({**entry, "order": self.order.id, "payment": self.payment.id, **more})
