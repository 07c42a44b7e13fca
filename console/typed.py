"""Amounts as people type them into forms."""

from __future__ import annotations

import re
from typing import Final

from ledger.money import AmountError, parse_credits

_AMOUNT: Final = re.compile(r"([0-9]+|[0-9]{1,3}(,[0-9]{3})+)(\.[0-9]+)?")


def typed_credits(text: str) -> int:
    """Micro-credits. Commas part thousands, as pages show them; `1,5` is refused: to some it is 1.5.

    Raises: AmountError, with what would be right.
    """
    text = text.strip()
    if not text:
        raise AmountError("How many credits?")
    if _AMOUNT.fullmatch(text) is None:
        raise AmountError(
            f"{text[:40]!r} is not an amount like 1500 or 0.25: only digits, and a point before a fraction"
        )
    return parse_credits(text.replace(",", ""), "credits")
