"""Budget periods: computed from the clock in the budget's own zone, never reset by a job."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from ledger.clock import from_us, to_us

PERIODS = ("day", "week", "month", "total")


def bounds(period: str, zone: str, week_start: int, us: int) -> tuple[int, int | None]:
    """[start, end) of the period an instant is in, in microseconds; `total` is [0, None).

    A period starts at local midnight, or at the first instant after it where the clock skips midnight.
    `week_start`: 0 is Monday. Raises: KeyError for an unknown period, ZoneInfoNotFoundError for a zone.
    """
    if period == "total":
        return 0, None
    tz = ZoneInfo(zone)
    day = from_us(us).astimezone(tz).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if period == "day":
        first, after = day, day + timedelta(days=1)
    elif period == "week":
        first = day - timedelta(days=(day.weekday() - week_start) % 7)
        after = first + timedelta(days=7)
    elif period == "month":
        first = day.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    else:
        raise KeyError(period)
    return _instant(first, tz), _instant(after, tz)


def _instant(midnight: datetime, tz: ZoneInfo) -> int:
    # With fold=0 a midnight that does not exist is read with the offset before the gap: the gap's own instant.
    return to_us(midnight.replace(tzinfo=tz).astimezone(UTC))
