"""Instants as integers of microseconds since 1970 (UTC), and their RFC 3339 text."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

Clock = Callable[[], int]
"""Gives now, in microseconds since 1970."""

INSTANT_MAX_US: Final = 2**53
"""Instants that count are from 1970 to here (2255), so that every part of the ledger holds them exactly."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _US
_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _US


def now_us() -> int:
    """The wall clock, in microseconds since 1970."""
    return time.time_ns() // 1000


def monotonic_us() -> int:
    """A clock that only goes on, from no instant in particular, in microseconds: for how long something takes."""
    return time.monotonic_ns() // 1000


def to_us(moment: datetime) -> int:
    """An aware datetime as microseconds since 1970, exactly.

    Raises: ValueError for a datetime without a zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone")
    return (moment - _EPOCH) // _US


def from_us(us: int) -> datetime:
    """Microseconds since 1970 as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=us)


def parse_time(text: str) -> int:
    """RFC 3339 text (`2026-11-22T10:00:00Z`, any offset) as microseconds since 1970.

    Raises: ValueError, with what would be right.
    """
    try:
        moment = datetime.fromisoformat(text)
    except (ValueError, TypeError):
        raise ValueError(f"{text!r} is not a time like 2026-11-22T10:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write 2026-11-22T10:00:00Z")
    us = to_us(moment)
    if not _FIRST_US <= us <= _LAST_US:  # an offset may lead out of the years that have a text
        raise ValueError(f"{text!r} is not in the years 1 to 9999 of UTC")
    return us


def format_time(us: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC with `Z`, with a fraction only where there is one."""
    seconds, fraction = divmod(us, 1_000_000)
    return f"{_second(seconds)}.{fraction:06d}Z" if fraction else f"{_second(seconds)}Z"


@lru_cache(maxsize=1024)  # a busy enforcer writes the same second thousands of times
def _second(seconds: int) -> str:
    return from_us(seconds * 1_000_000).isoformat().removesuffix("+00:00")
