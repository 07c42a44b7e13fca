"""Instants as people type them: by the clocks of their zone, as `<input type="datetime-local">` gives them."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from ledger.clock import INSTANT_MAX_US, from_us, parse_time, to_us


def read_moment(text: str, zone: str) -> int | None:
    """`2026-11-22T10:00` in `zone`, or RFC 3339; None for "". Raises: ValueError saying what would be right."""
    text = text.strip()
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        us = to_us(moment.replace(tzinfo=ZoneInfo(zone))) if moment.tzinfo is None else parse_time(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is not a time like 2026-11-22T10:00") from None
    if not 0 <= us < INSTANT_MAX_US:
        raise ValueError("expected a time between the years 1970 and 2255")
    return us


def show_moment(us: int, zone: str) -> str:
    """The same back, for the field of a form."""
    return from_us(us).astimezone(ZoneInfo(zone)).strftime("%Y-%m-%dT%H:%M")
