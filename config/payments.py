"""Selling credits by card: the section `payments`. Without it nothing is sold."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from config import values
from config.fields import At, Reader, Refused, choice, list_of, section, setting
from config.values import Secret
from ledger.money import AmountError, format_micro, parse_credits, parse_decimal

_WITHOUT_CENTS: Final = frozenset(
    ["bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf"]
)
_WITH_THOUSANDTHS: Final = frozenset(["bhd", "iqd", "jod", "kwd", "lyd", "omr", "tnd"])
_CURRENCY = re.compile(r"[a-z]{3}")
PRICE_DIGITS: Final = 9
MINOR_MAX: Final = 99_999_999
"""The largest payment that Stripe takes, in the currency's smallest unit."""


def minor_digits(currency: str) -> int:
    """Digits after the point of an amount in a currency, as the provider counts: 2 for `usd`, 0 for `jpy`."""
    return 0 if currency in _WITHOUT_CENTS else 2


def _positive_credits(text: str) -> int:
    micro = parse_credits(text)
    if micro <= 0:
        raise AmountError(f"amount {text!r} is not more than 0")
    return micro


def _positive_price(text: str) -> Decimal:
    if parse_decimal(text, PRICE_DIGITS, "price") <= 0:
        raise AmountError(f"price {text!r} is not more than 0")
    return Decimal(text)


def _read_currency(at: At) -> str:
    text = values.text.read(at).lower()
    if not _CURRENCY.fullmatch(text):
        raise Refused("is not a currency of three letters like usd")
    if text in _WITH_THOUSANDTHS:
        raise Refused("is a currency with three digits after the point, which is not supported; use another one")
    return text


_credits = Reader("credits", lambda at: values.decimal_text(at, "100")).then(_positive_credits)
_price = Reader("decimal number", lambda at: values.decimal_text(at, "0.05")).then(_positive_price)


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """So many credits at a price of their own."""

    credits_micro: int = field(metadata=setting(_credits, "How many.", name="credits"))
    price: Decimal = field(metadata=setting(_price, "What they cost together, in the currency."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Payments:
    """How credits are sold by card. Leave the section out, and nothing is sold."""

    provider: str = field(default="stripe", metadata=setting(choice("stripe"), "Who takes the payments."))
    secret_key: Secret = field(
        metadata=setting(values.secret, "The provider's key for its API: `sk_...`, or a restricted one, `rk_...`.")
    )
    webhook_secret: Secret = field(
        metadata=setting(
            values.secret, "The secret `whsec_...` that webhooks to `/v1/payments/stripe` are signed with."
        )
    )
    public_url: str = field(
        metadata=setting(values.url("http", "https"), "Where buyers reach this service; they come back to it.")
    )
    price_per_credit: Decimal = field(
        metadata=setting(_price, "Of a free amount; a payment is rounded up to the currency's smallest unit.")
    )
    currency: str = field(
        default="usd", metadata=setting(Reader("currency", _read_currency), "Three letters, like `usd` or `jpy`.")
    )
    minimum_micro: int = field(
        default=10_000_000,
        metadata=setting(_credits, "The smallest free amount.", name="minimum_credits", absent="10"),
    )
    maximum_micro: int = field(
        default=10_000_000_000,
        metadata=setting(_credits, "The largest free amount.", name="maximum_credits", absent="10000"),
    )
    packages: tuple[Package, ...] = field(
        default=(),
        metadata=setting(list_of(section(Package)), "Amounts with a price of their own.", absent="none"),
    )
    refunds: str = field(
        default="overdraft",
        metadata=setting(
            choice("overdraft", "forgive"),
            "When a payment is refunded or disputed and its credits are spent: `overdraft` takes them all the same, "
            "so that the next credits pay for them; `forgive` takes what is left.",
        ),
    )
    api_base: str = field(
        default="https://api.stripe.com",
        metadata=setting(values.url("http", "https"), "The provider's API; another one is for tests."),
    )
    timeout_seconds: float = field(
        default=10.0, metadata=setting(values.seconds, "How long the provider has for an answer.")
    )
    tolerance_seconds: float = field(
        default=300.0, metadata=setting(values.seconds, "How old a webhook may be: an older one is taken for a replay.")
    )
    reconcile_seconds: float = field(
        default=300.0,
        metadata=setting(values.seconds, "How often the provider is asked for payments whose webhook never came."),
    )

    def __post_init__(self) -> None:
        if self.minimum_micro > self.maximum_micro:
            least, most = format_micro(self.minimum_micro), format_micro(self.maximum_micro)
            raise Refused(f"has minimum_credits {least} above maximum_credits {most}; change one of them")
        offers = [(self.maximum_micro, self.price_of(self.maximum_micro))]
        offers += [(package.credits_micro, self.price_of(package.credits_micro)) for package in self.packages]
        for micro, minor in offers:
            if minor > MINOR_MAX:
                limit = f"{MINOR_MAX} of the smallest unit of {self.currency}"
                raise Refused(
                    f"sells {format_micro(micro)} credits for more than {limit}, the most a card can be asked"
                )
        if len({package.credits_micro for package in self.packages}) < len(self.packages):
            raise Refused("has two packages of the same number of credits")

    def price_of(self, credits_micro: int) -> int:
        """What so many credits cost, in the currency's smallest unit, rounded up to it."""
        scale: int = 10 ** minor_digits(self.currency)
        for package in self.packages:
            if package.credits_micro == credits_micro:
                return -(-int(package.price.scaleb(PRICE_DIGITS)) * scale // 10**PRICE_DIGITS)
        nano = int(self.price_per_credit.scaleb(PRICE_DIGITS))
        return -(-nano * credits_micro * scale // (10**PRICE_DIGITS * 1_000_000))

    def sells(self, credits_micro: int) -> bool:
        """Whether so many credits may be bought at once."""
        in_package = any(package.credits_micro == credits_micro for package in self.packages)
        return in_package or self.minimum_micro <= credits_micro <= self.maximum_micro
