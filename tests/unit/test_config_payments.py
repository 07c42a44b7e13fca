"""The section `payments`: prices are exact, and what cannot be sold is refused when the settings are read."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.payments import Payments
from config.problems import ConfigError
from config.settings import load_settings
from config.values import Secret

BASE = """payments:
  secret_key_env: STRIPE_KEY
  webhook_secret: whsec_x
  public_url: https://credits.example.com
"""


def read(tmp_path: Path, text: str) -> Payments:
    path = tmp_path / "settings.yaml"
    path.write_text(BASE + text)
    payments = load_settings(path, {"STRIPE_KEY": "sk_test_1"}).payments
    assert payments is not None
    return payments


def test_without_the_section_nothing_is_sold(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("data_dir: var\n")
    assert load_settings(path, {}).payments is None


def test_prices_are_whole_smallest_units(tmp_path: Path) -> None:
    payments = read(tmp_path, "  price_per_credit: 0.015\n  packages: [{credits: 1000, price: 12.50}]\n")
    assert payments.secret_key.read() == "sk_test_1"
    assert payments.price_of(10_000_000) == 15
    assert payments.price_of(11_000_000) == 17  # 16.5 cents: rounded up
    assert payments.price_of(1_000_000_000) == 1250
    assert payments.sells(1_000_000_000)
    assert not payments.sells(9_999_999)
    yen = read(tmp_path, "  price_per_credit: 1.5\n  currency: JPY\n")
    assert (yen.currency, yen.price_of(11_000_000)) == ("jpy", 17)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  price_per_credit: 0\n", "not more than 0"),
        ("  price_per_credit: 1\n  currency: kwd\n", "three digits after the point"),
        ("  price_per_credit: 1\n  currency: euro\n", "three letters"),
        ("  price_per_credit: 1\n  minimum_credits: 50\n  maximum_credits: 20\n", "above maximum_credits"),
        ("  price_per_credit: 1000\n", "the most a card can be asked"),
        ("  price_per_credit: 1\n  packages: [{credits: 5, price: 1}, {credits: 5.0, price: 2}]\n", "two packages"),
        ("  currency: usd\n", "lacks the key price_per_credit"),
    ],
)
def test_what_cannot_be_sold_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, text)


@given(nano=st.integers(1, 10**9), micro=st.integers(1, 10**10))
def test_a_price_is_never_too_low_and_less_than_one_unit_too_high(nano: int, micro: int) -> None:
    payments = Payments(
        secret_key=Secret("k"),
        webhook_secret=Secret("w"),
        public_url="https://x",
        price_per_credit=Decimal(nano).scaleb(-9),
        minimum_micro=1,
        maximum_micro=micro,
    )
    exact = Fraction(nano * micro, 10**13)  # in cents
    assert 0 <= payments.price_of(micro) - exact < 1
