"""A period cut into the hours, days, weeks or months of a time zone."""

from __future__ import annotations

from datetime import timedelta
from difflib import get_close_matches
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from ledger.clock import from_us
from ledger.errors import InvalidRequest
from ledger.money import HOUR_US
from ledger.periods import bounds

STEPS: Final = ("hour", "day", "week", "month")
_US: Final = timedelta(microseconds=1)


def check_zone(name: str) -> str:
    """The name, if it is a time zone's. Raises: InvalidRequest saying what would be right."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        near = get_close_matches(name[:64], available_timezones(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidRequest(f"timezone {name[:64]!r}: expected a name like UTC or Europe/Berlin{hint}") from None
    return name


def step_bounds(step: str, zone: str, us: int) -> tuple[int, int]:
    """[start, end) of the hour, day, week (from Monday) or month an instant is in, by the clocks of a zone."""
    if step == "hour":
        offset = (from_us(us).astimezone(ZoneInfo(zone)).utcoffset() or timedelta()) // _US
        start = us - (us + offset) % HOUR_US
        return start, start + HOUR_US
    start, end = bounds(step, zone, 0, us)
    assert end is not None
    return start, end


def cut(step: str, zone: str, since: int, until: int) -> list[tuple[int, int, int]]:
    """[since, until) as (start of the step, since, until), ascending; the first and last may be parts of a step."""
    pieces = []
    while since < until:
        start, end = step_bounds(step, zone, since)
        pieces.append((start, since, min(end, until)))
        since = end
    return pieces
