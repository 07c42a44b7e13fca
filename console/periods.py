"""The period that a page is asked for, in the viewer's time zone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from ledger.clock import INSTANT_MAX_US, from_us, parse_time, to_us
from ledger.errors import InvalidRequest
from ledger.money import HOUR_US
from ledger.periods import bounds
from ledger.steps import step_bounds

PERIODS: Final = (
    ("24h", "Last 24 hours"),
    ("7d", "Last 7 days"),
    ("30d", "Last 30 days"),
    ("month", "This month"),
    ("last-month", "Last month"),
)
CUSTOM: Final = "dates"
_DAY_US: Final = 24 * HOUR_US


@dataclass(frozen=True, slots=True)
class Period:
    """`[since_us, until_us)`, and the step that a chart of it has. `first`, `last`: its days where they were asked."""

    name: str
    since_us: int
    until_us: int
    step: str
    first: str = ""
    last: str = ""

    def query(self) -> dict[str, str]:
        """As parameters of an address."""
        if self.name == CUSTOM:
            return {"period": CUSTOM, "from": self.first, "to": self.last}
        return {"period": self.name}


def read_period(query: Mapping[str, str], zone: str, now_us: int, default: str = "7d") -> Period:
    """What the parameters `period`, `from` and `to` ask for. Raises: InvalidRequest saying what would be right."""
    first, last = query.get("from", "").strip(), query.get("to", "").strip()
    name = query.get("period") or (CUSTOM if first or last else default)
    if name == CUSTOM:
        return _custom(first, last, zone)
    if name == "24h":
        until = step_bounds("hour", zone, now_us)[1]
        return Period(name, until - _DAY_US, until, "hour")
    if name in ("7d", "30d"):
        until = step_bounds("day", zone, now_us)[1]
        return Period(name, _days_before(until, zone, int(name[:-1])), until, "day")
    month = bounds("month", zone, 0, now_us)
    if name == "month":
        return Period(name, month[0], month[1] or now_us, "day")
    if name == "last-month":
        before = bounds("month", zone, 0, month[0] - 1)
        return Period(name, before[0], before[1] or month[0], "day")
    known = ", ".join([*(key for key, _ in PERIODS), CUSTOM])
    raise InvalidRequest(f"period: {name!r:.40} is none of {known}")


def links(period: Period | None, more: Mapping[str, str] | None = None) -> list[tuple[str, str, bool]]:
    """(address, title, whether it is shown) of the periods there are; `more`: what else the page was asked."""
    chosen = None if period is None else period.name
    return [(f"?{urlencode({**(more or {}), 'period': key})}", title, key == chosen) for key, title in PERIODS]


def _custom(first: str, last: str, zone: str) -> Period:
    since = _instant("from", first, zone, after=False)
    until = _instant("to", last, zone, after=True)
    if not 0 <= since < until <= INSTANT_MAX_US:
        raise InvalidRequest("to: expected a day that is not before the first one, between the years 1970 and 2255")
    days = (until - since) // _DAY_US
    step = "hour" if days <= 2 else "day" if days <= 92 else "week" if days <= 730 else "month"
    return Period(CUSTOM, since, until, step, first, last)


def _instant(field: str, text: str, zone: str, *, after: bool) -> int:
    """A day's start, or its end where it is the last one; an instant as it is."""
    if not text:
        raise InvalidRequest(f"{field}: expected a day like 2026-11-22")
    try:
        if "T" in text:
            return parse_time(text)
        day = date.fromisoformat(text)
        day += timedelta(days=1 if after else 0)
        return to_us(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)))
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{field}: {text!r:.40} is not a day like 2026-11-22") from None


def _days_before(until: int, zone: str, days: int) -> int:
    day = from_us(until).astimezone(ZoneInfo(zone)).date() - timedelta(days=days)
    return to_us(datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)))
