"""Adds up buckets of what was used: field by field, as they are kept, and then by what is asked for. No I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from operator import add
from typing import Final

MICRO, US, REFUNDED_MICRO, REFUNDED_US = range(4)
Sums = list[int]
"""Micro-credits charged, microseconds billed, and what of both was given back."""
_COLUMNS: Final = {b"t": US, b"r": REFUNDED_MICRO, b"u": REFUNDED_US}


def add_up(fields: defaultdict[bytes, int], bucket: dict[bytes, bytes]) -> None:
    """Add a bucket's fields to sums of their own; a loop in C, since there may be millions of them."""
    fields.update(zip(bucket, map(add, map(fields.__getitem__, bucket), map(int, bucket.values())), strict=True))


class FieldSums:
    """Buckets added up field by field."""

    def __init__(self) -> None:
        self.fields: defaultdict[bytes, int] = defaultdict(int)

    def add(self, bucket: dict[bytes, bytes]) -> None:
        """Add a bucket's fields."""
        add_up(self.fields, bucket)

    def settle(self) -> None:
        """All buckets of a part were added."""


class Sink(FieldSums):
    """Where buckets are added up: field by field first, since there are many, and then by what is asked for."""

    def __init__(self, sums_of: Callable[[int], Sums | None], *, refunds: bool = False) -> None:
        """`sums_of(row number)`: None where a row is not asked for.

        `refunds`: take only what was given back, and count it as charged as well: the runs tell only the rest.
        """
        super().__init__()
        self._sums_of = sums_of
        self._refunds = refunds

    def settle(self) -> None:
        """Hand on what was added so far."""
        places: dict[bytes, Sums | None] = {}
        for field, value in self.fields.items():
            column = _COLUMNS.get(field[-1:], MICRO)
            if self._refunds and column < REFUNDED_MICRO:
                continue
            number = field[:-1] if column else field
            if number in places:
                sums = places[number]
            else:
                sums = places[number] = self._sums_of(int(number))
            if sums is not None:
                sums[column] += value
                if self._refunds:
                    sums[column - REFUNDED_MICRO] += value
        self.fields.clear()
