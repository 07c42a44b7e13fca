"""Amounts as people type them into forms."""

from __future__ import annotations

import re
from typing import Final

from ledger.money import AmountError, parse_credits

_AMOUNT: Final = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)


def typed_credits(text: str) -> int:
    """Micro-credits. A comma is refused: to some it parts thousands, to others it is the point.

    Raises: AmountError, with what would be right.
    """
    text = text.strip()
    if not text:
        raise AmountError("How many credits?")
    if _AMOUNT.fullmatch(text) is None:
        raise AmountError(
            f"{text[:40]!r} is not an amount like 1500 or 0.25: only digits, and a point before a fraction"
        )
    return parse_credits(text, "credits")
