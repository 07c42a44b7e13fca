"""Kubernetes quantities: `500m`, `1.5Gi`, `12e6`, exactly."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from typing import Final

# Every suffix the API server writes or takes, as powers: (base, exponent).
_SUFFIXES: Final = {
    "n": (10, -9), "u": (10, -6), "m": (10, -3), "": (10, 0), "k": (10, 3), "M": (10, 6), "G": (10, 9),
    "T": (10, 12), "P": (10, 15), "E": (10, 18),
    "Ki": (2, 10), "Mi": (2, 20), "Gi": (2, 30), "Ti": (2, 40), "Pi": (2, 50), "Ei": (2, 60),
}  # fmt: skip
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))(?:[eE](?P<exponent>[+-]?\d{1,3})|(?P<suffix>[A-Za-z]{0,2}))", re.ASCII
)
_DIGITS_MAX: Final = 64


@lru_cache(maxsize=4096)
def parse_quantity(text: str) -> int:
    """A quantity in units of 1/1000, rounded up as Kubernetes does: `1` is 1000, `500m` 500, `1Ki` 1024000.

    Raises: ValueError with the text, for what is not a quantity or not a possible one.
    """
    match = _QUANTITY.fullmatch(text) if len(text) <= _DIGITS_MAX else None
    if match is None:
        raise ValueError(f"{text[:_DIGITS_MAX]!r} is not a quantity like 500m, 2 or 1.5Gi")
    if match["exponent"] is not None:
        base, power = 10, int(match["exponent"])
    elif match["suffix"] in _SUFFIXES:
        base, power = _SUFFIXES[match["suffix"]]
    else:
        raise ValueError(f"{text!r} ends with {match['suffix']!r}, which is no suffix of a quantity")
    if abs(power) > 60:
        raise ValueError(f"{text!r} is out of range")
    numerator, denominator = Decimal(match["number"]).as_integer_ratio()
    numerator *= 1000
    if power < 0:
        denominator *= base**-power
    else:
        numerator *= base**power
    return -(-numerator // denominator)


def parse_bytes(text: str) -> int:
    """A quantity of bytes, rounded up. Raises: ValueError."""
    return -(-parse_quantity(text) // 1000)
