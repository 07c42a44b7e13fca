"""What a payment provider has to do, and the news it brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ledger.errors import CreditsError
from ledger.purchase_step import Order, Paid


class ProviderUnavailable(CreditsError):
    """The payment provider cannot be reached, or does not do what it is asked; a retry is safe."""


class UnknownToProvider(ProviderUnavailable):
    """The payment provider knows nothing of this name: it is of another account, or of its other mode."""


class BadSignature(CreditsError):
    """A webhook that the provider did not sign, or signed too long ago."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """Where an order is paid: the provider's page, until it expires."""

    session: str
    url: str
    expires_us: int


@dataclass(frozen=True, slots=True)
class Charge:
    """A card that was charged without its owner. `state`: `paid`, `pending`, `failed` (it may be tried again, unless it
    is cancelled) or `cancelled`; `reason`: the provider's word for why. `payment` is "" where none was made."""

    payment: str
    state: str
    reason: str = ""
    amount: int = 0
    currency: str = ""


@dataclass(frozen=True, slots=True)
class SavedCard:
    """A card that may be charged again: the provider's names, and what its owner knows it by."""

    customer: str
    method: str
    brand: str
    last4: str
    expires: str


@dataclass(frozen=True, slots=True)
class Closed:
    """News: an order's page is done with: `pending`, `expired` or `failed`."""

    org: str
    order: str
    state: str


@dataclass(frozen=True, slots=True)
class Returned:
    """News: a refund or dispute of a payment, as `ledger.purchases.Reversal`; of which order, the payment says."""

    payment: str
    id: str
    kind: str
    rank: int
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class LookAt:
    """News: something was refunded of a payment, the provider says what when asked."""

    payment: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """News that cannot be read; `what` names them."""

    what: str


News = Paid | Closed | Returned | LookAt | Unusable


class Provider(Protocol):
    """Takes payments. Every call may raise ProviderUnavailable."""

    async def checkout(self, order: Order, back_url: str) -> Checkout:
        """A page to pay an order on, the same one when asked again within a day."""
        ...

    def read_webhook(self, body: bytes, signature: str) -> Sequence[News]:
        """News in a webhook, none where it is about something else. Raises: BadSignature."""
        ...

    async def news_since(self, us: int) -> Sequence[News]:
        """Everything about checkouts, refunds and disputes that were made since an instant."""
        ...

    async def returns_of(self, payment: str) -> Sequence[Returned]:
        """The refunds of a payment."""
        ...

    async def place_of(self, payment: str) -> tuple[str, str] | None:
        """(org, order) of a payment; None where it is of something else. Raises: UnknownToProvider."""
        ...

    async def charge(self, order: Order) -> Charge:
        """Charge the card of an order of auto top-up; the same charge when asked again within a day."""
        ...

    async def charge_of(self, order: Order) -> Charge | None:
        """What became of the charge of an order; None where none was made."""
        ...

    async def cancel(self, payment: str) -> Charge:
        """Have a charge that failed never succeed; what became of it, for it may have succeeded meanwhile."""
        ...

    async def card_of(self, payment: str) -> SavedCard | None:
        """The card that a payment was made with, if it may be charged again."""
        ...

    async def forget(self, method: str) -> None:
        """Have a card never be charged again; one that is gone already is no error."""
        ...

    async def close(self) -> None:
        """Ends its connections."""
        ...
