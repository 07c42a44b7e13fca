"""Amounts that come from outside: one strict way to write them, whatever the door."""

from __future__ import annotations

import json
from decimal import Decimal

import msgspec
import pytest

from api.types import is_given
from ledger.money import MICRO_MAX, AmountError, format_micro, parse_credits, parse_decimal, parse_rate, read_credits

LOOSE = (
    "1_000", "１２", "١٢", "1e3", "1E3", "+5", ".5", "5.", "007", " 5", "5 ", "5\n", "1,5", "0x10", "NaN", "Infinity",
    "", "-", "--5", "1.2.3", "½",
)  # fmt: skip


def quoted(text: str) -> int:
    return read_credits(json.dumps(text).encode(), "credits")


@pytest.mark.parametrize("text", LOOSE)
def test_what_is_no_plain_decimal_is_refused_at_every_door(text: str) -> None:
    for parse in (parse_credits, parse_rate, quoted):
        with pytest.raises(AmountError, match=r"is not a decimal number like 1500 or 0\.25"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "micro"),
    [("0", 0), ("-0", 0), ("12.5", 12_500_000), ("-900", -900_000_000), ("0.000001", 1), ("1.500000", 1_500_000),
     (format_micro(MICRO_MAX), MICRO_MAX)],
)  # fmt: skip
def test_a_plain_decimal_is_that_amount(text: str, micro: int) -> None:
    assert micro == parse_credits(text)
    assert micro == read_credits(f'"{text}"'.encode(), "credits")
    assert micro == read_credits(text.encode(), "credits")


@pytest.mark.parametrize(("text", "micro"), [(b"1e3", 10**9), (b"1.5E-3", 1500), (b"9007199254.740991", MICRO_MAX)])
def test_a_number_of_json_is_what_json_says_exactly(text: bytes, micro: int) -> None:
    assert micro == read_credits(text, "credits")


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"true", "credits: expected a decimal like"), (b"[1]", "credits: expected"), (b"{}", "credits: expected"),
     (b"null", "credits: expected"), (b"1e400", "is out of range"), (b"0.0000001", "more than 6 digits"),
     (b'"1.0000000"', "more than 6 digits"), (b'"99999999999"', "is larger than 9007199254.740991"),
     (b'"' + b"9" * 500 + b'"', "is out of range")],
)  # fmt: skip
def test_an_amount_that_makes_no_sense_is_named(text: bytes, said: str) -> None:
    with pytest.raises(AmountError, match=said) as caught:
        read_credits(text, "credits")
    assert len(str(caught.value)) < 200


def test_what_is_left_out_or_null_is_not_given() -> None:
    assert [is_given(msgspec.Raw(text)) for text in (b"", b"null", b"0", b'""')] == [False, False, True, True]


def test_a_decimal_may_be_written_as_yaml_and_json_have_it() -> None:
    assert parse_decimal(Decimal("1.5e3"), 6) == 1_500_000_000
    with pytest.raises(AmountError, match="is not finite"):
        parse_decimal(Decimal("NaN"), 6)
