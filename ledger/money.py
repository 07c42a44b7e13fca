"""Exact amounts: integers of micro-credits inside, decimal strings outside.

Rates are integers of nano-credits an hour. The cost of a workload over an interval is kept as an exact
integer numerator over `COST_DENOMINATOR`, and becomes micro-credits only in a floor.
"""

from __future__ import annotations

import re
from decimal import Decimal, localcontext
from typing import Final

import msgspec

MICRO: Final = 1_000_000
NANO: Final = 1_000_000_000
GB: Final = 1_000_000_000
"""Bytes of one GB, and the units of a workload that is not billed by size (see `UNIT`)."""
UNIT: Final = GB
"""Units of a job or an app: rate (nano-credits/h) x units (1e-9) x time (us) is its cost numerator."""
HOUR_US: Final = 3_600_000_000
MICRO_MAX: Final = 2**53 - 1
"""Largest amount: Redis' Lua numbers are doubles, exact up to here (about 9.007e9 credits)."""
COST_DENOMINATOR: Final = HOUR_US * GB * (NANO // MICRO)
"""numerator / COST_DENOMINATOR = micro-credits, where numerator = sum of rate_nano x units x microseconds."""
_PLAIN: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")


class AmountError(ValueError):
    """Not an exact, finite, non-negative amount within bounds."""


def parse_decimal(given: str | Decimal, digits: int, what: str = "amount") -> int:
    """As an integer of 10**-digits units, refusing what would have to be rounded.

    Text is digits with a point before a fraction, nothing else: no `1e3`, `1_000`, `+1` or `.5`. A `Decimal` is for
    numbers of JSON, which may be written in any way that it has.

    Raises: AmountError with a sentence that names the value and what is expected.
    """
    shown = f"{what} {str(given)[:60]!r}"
    if isinstance(given, str):
        plain = _PLAIN.fullmatch(given)
        if plain is None:
            raise AmountError(f"{shown} is not a decimal number like 1500 or 0.25: only digits, and a point in them")
        if len(plain[2] or "") > digits + 1:
            raise AmountError(f"{shown} has more than {digits} digits after the point")
    value = Decimal(given)
    if not value.is_finite():
        raise AmountError(f"{shown} is not finite")
    if value and not -30 < value.adjusted() < 30:
        raise AmountError(f"{shown} is out of range")
    with localcontext() as context:
        context.prec = 80
        scaled = value.scaleb(digits)
        if scaled != scaled.to_integral_value():
            raise AmountError(f"{shown} has more than {digits} digits after the point")
        return int(scaled)


def parse_credits(given: str | Decimal, what: str = "amount") -> int:
    """Credits as micro-credits (see `parse_decimal`); negative amounts are the caller's to refuse."""
    micro = parse_decimal(given, 6, what)
    if abs(micro) > MICRO_MAX:
        raise AmountError(f"{what} {str(given)!r} is larger than {format_micro(MICRO_MAX)} credits")
    return micro


def read_credits(text: bytes, what: str) -> int:
    """An amount in a JSON document, as text or as a number, in micro-credits. Decoders of decimals, which would do it
    by themselves, take `1_000` and the like as well.

    Raises: AmountError.
    """
    kind: type[str | Decimal] = str if text.startswith(b'"') else Decimal
    try:
        given = msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError:
        raise AmountError(f'{what}: expected a decimal like "12.5", not {text.decode()[:40]}') from None
    return parse_credits(given, what)


def parse_rate(given: str | Decimal, what: str = "rate") -> int:
    """Credits an hour (or a GB-hour) as nano-credits, at most 9 digits after the point (see `parse_decimal`)."""
    nano = parse_decimal(given, 9, what)
    if nano < 0:
        raise AmountError(f"{what} {str(given)!r} is negative")
    if nano > MICRO_MAX:
        raise AmountError(f"{what} {str(given)!r} is larger than {format_decimal(MICRO_MAX, 9)} credits")
    return nano


def format_decimal(value: int, digits: int) -> str:
    """An integer of 10**-digits units as a plain decimal string without trailing zeros."""
    whole, part = divmod(abs(value), 10**digits)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}.{str(part).zfill(digits).rstrip('0')}" if part else f"{sign}{whole}"


def format_micro(micro: int) -> str:
    """Micro-credits as a decimal string of credits: 1234567 -> '1.234567', 500000 -> '0.5'."""
    if micro < 0:
        return f"-{format_micro(-micro)}"
    digits = str(micro).zfill(7)
    return f"{digits[:-6]}.{digits[-6:]}".rstrip("0").rstrip(".")


def format_rate(nano: int) -> str:
    """Nano-credits an hour as a decimal string of credits an hour."""
    return format_decimal(nano, 9)


def format_hours(us: int) -> str:
    """Microseconds as a decimal string of hours, floored to 6 digits after the point."""
    return format_decimal(us * MICRO // HOUR_US, 6)
