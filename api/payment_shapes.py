"""The JSON that calls about payments answer with; see `api.shapes`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from api.types import Credits, Decimals, Name, Time


class Order(Struct, forbid_unknown_fields=True):
    """A purchase; `amount` in the currency, `returned`: credits taken back by refunds and disputes."""

    id: str
    org: Name
    credits: Credits
    amount: Decimals
    currency: str
    state: Literal["new", "open", "pending", "paid", "expired", "failed"]
    checkout_url: str | None
    expires_at: Time | None
    created_at: Time
    paid_at: Time | None
    payments: list[str]
    returned: Credits
    who: str


class Card(Struct, forbid_unknown_fields=True):
    """A card that its owner agreed to have charged again; `expires`: the last month, `2030-04`."""

    brand: str
    last4: str
    expires: str
    agreed_at: Time
    agreed_by: str


class AutoTopUp(Struct, forbid_unknown_fields=True):
    """Below `threshold` available credits, `credits` are bought. The terms are null where there are none.

    `order`: the one in flight. `ordered`: in the calendar month (UTC) `month`, of at most `monthly_cap`.
    """

    org: Name
    enabled: bool
    threshold: Credits | None
    credits: Credits | None
    monthly_cap: Credits | None
    cool_down_minutes: float | None
    state: Literal["off", "ready", "in_flight", "cooling", "capped", "no_card", "paused"]
    paused_reason: str | None
    declines: int
    order: str | None
    cools_until: Time | None
    month: str
    ordered: Credits
    card: Card | None


class Package(Struct, forbid_unknown_fields=True):
    """Credits that are sold together."""

    credits: Credits
    price: Decimals


class Offer(Struct, forbid_unknown_fields=True):
    """What is sold; prices are in the currency."""

    currency: str
    price_per_credit: Decimals
    minimum_credits: Credits
    maximum_credits: Credits
    packages: list[Package]


class Received(Struct, forbid_unknown_fields=True):
    """News of payments were taken."""

    received: bool
    results: list[str]
