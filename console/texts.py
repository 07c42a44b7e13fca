"""Values as people read them: amounts, instants, durations and words, for templates. No amount is rounded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote
from zoneinfo import ZoneInfo, available_timezones

from markupsafe import Markup

from ledger.clock import format_time, from_us, parse_time
from ledger.money import format_decimal, format_hours, format_micro, format_rate
from ledger.refusal_text import only_text

MINUTE_US: Final = 60_000_000
_INSTANT: Final = re.compile(r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z")
_EPOCH: Final = "1970-01-01T00:00:00Z"
STAGES: Final = {
    "ok": ("Fine", "There are credits, and work may start."),
    "warn": ("Running low", "The credits last for less than a day at the present burn. Buy or ask for more."),
    "block": ("Blocked", "No credits are available, so no new work starts. What runs goes on."),
    "grace": (
        "Grace period",
        "Credits ran out. What runs was told to save its work, and has a little time left for it.",
    ),
    "suspend": ("Suspended", "Credits ran out, and what ran is suspended. It goes on by itself after a top-up."),
    "stop": ("Stopped", "Credits ran out, and what ran is being stopped. New work starts after a top-up."),
}
"""Stage of an org -> its title, and what it means."""


def amount(text: str) -> Markup:
    """A decimal string with its thousands set apart and what is behind the point less loud; the value stays exact."""
    sign = "−" if text.startswith("-") else ""
    whole, _, part = text.removeprefix("-").partition(".")
    groups = f"{int(whole):,}"
    # Also where there is none, so that the points of a column stand below each other.
    tail = Markup('<span class="fraction">{}</span>').format(f".{part}" if part else "")
    return Markup('<data value="{}">{}{}<wbr>{}</data>').format(text, sign, groups, tail)


def credits_of(micro: int) -> Markup:
    """Micro-credits as credits."""
    return amount(format_micro(micro))


def rate_of(nano: int) -> Markup:
    """Nano-credits an hour as credits an hour."""
    return amount(format_rate(nano))


def when(us: int | str | None, zone: str = "UTC", *, seconds: bool = False) -> Markup:
    """An instant by the clocks of a zone, which is said."""
    if us is None or us == "":
        return Markup("–")
    if isinstance(us, str):
        us = parse_time(us)
    text, name = _by_clock(us, zone, seconds)
    return Markup('<time datetime="{}">{} <span class="zone">{}</span></time>').format(format_time(us), text, name)


def when_text(time: str, zone: str) -> str:
    """The same of an RFC 3339 time, as text of a sentence."""
    return " ".join(_by_clock(parse_time(time), zone, False))


def _by_clock(us: int, zone: str, seconds: bool) -> tuple[str, str]:
    """(day and time, what the zone is called then)."""
    moment = from_us(us).astimezone(ZoneInfo(zone))
    return f"{moment.day} {moment:%b %Y}, {moment:{'%H:%M:%S' if seconds else '%H:%M'}}", moment.tzname() or zone


def told(value: str, zone: str) -> Markup | str:
    """What a journal's entry says of something: instants by the clocks of a zone, the rest as it is."""
    if _INSTANT.fullmatch(value) is None:
        return value
    return "the beginning" if value == _EPOCH else when(value, zone, seconds=True)


def duration(us: int) -> str:
    """How long, in the two largest units: `3 days 4 h`, `2 h 5 min`, `under a minute`."""
    minutes = us // MINUTE_US
    days, hours, minutes = minutes // 1440, minutes // 60 % 24, minutes % 60
    if days >= 730:
        return f"{days // 365} years"
    if days:
        text = f"{days} day{'' if days == 1 else 's'}"
        return f"{text} {hours} h" if hours and days < 30 else text
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else "under a minute"


def hours_of(us: int) -> Markup:
    """Microseconds as hours."""
    return amount(format_hours(us))


def percent(part: int, whole: int) -> str:
    """Of a whole, rounded to one digit after the point: `62.5 %`; what is not all of it is never `100 %`."""
    if whole <= 0:
        return "100 %" if part > 0 else "0 %"
    tenths = (2000 * part + whole) // (2 * whole)
    return f"{format_decimal(min(tenths, 999) if part < whole else tenths, 1)} %"


def share(part: int, whole: int, width: int = 100) -> int:
    """How wide a bar of `width` is for a part of a whole; something always shows where there is something."""
    if part <= 0:
        return 0
    if whole <= 0 or part >= whole:
        return width
    return max(1, part * width // whole)


@lru_cache(maxsize=1)
def zones() -> tuple[str, ...]:
    """Names of all time zones, UTC first."""
    return ("UTC", *sorted(name for name in available_timezones() if name != "UTC" and not name.startswith("Etc/")))


def zone_or_utc(name: str) -> str:
    """The name where it is a zone's, else UTC."""
    return name if name in zones() else "UTC"


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="")


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "amount": amount,
    "credits": credits_of,
    "rate": rate_of,
    "when": when,
    "told": told,
    "duration": duration,
    "hours": hours_of,
    "percent": percent,
    "share": share,
    "only": only_text,
    "segment": segment,
}


def credits_are(amount: str) -> str:
    """How a sentence about an amount begins."""
    return "1 credit is" if amount == "1" else f"{amount} credits are"
