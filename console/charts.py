"""Bars of a chart, placed on the server: whole numbers only, drawn as SVG by the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from ledger.clock import from_us
from ledger.money import MICRO_MAX, format_micro

_LEFT: Final = 62
_RIGHT: Final = 4
_TOP: Final = 10
_BOTTOM: Final = 26
_TICKS: Final = 4


@dataclass(frozen=True, slots=True)
class Bar:
    """`y` and `height` are from the top; `said`: what it stands for."""

    x: str
    y: str
    width: str
    height: str
    said: str
    is_none: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Places in the units of its `width` x `height` view box."""

    kind: str
    width: int
    height: int
    left: int
    right: int
    bars: list[Bar]
    ticks: list[tuple[str, str]]
    labels: list[tuple[str, str, str]]
    """(x, text, anchor) of the time axis."""


def bar_chart(sums: Sequence[tuple[int, int]], step: str, zone: str, kind: str = "wide") -> Chart:
    """`sums`: (start of the step, micro-credits), ascending. `kind`: wide, or narrow for a phone."""
    width, height, labels_max = (960, 240, 9) if kind == "wide" else (350, 210, 4)
    plot = height - _TOP - _BOTTOM
    top = _nice(max((micro for _, micro in sums), default=0))
    room = (width - _LEFT - _RIGHT) * 100
    slot = room // max(1, len(sums))
    gap = max(min(slot // 5, 800), 0)
    bars = []
    for number, (at, micro) in enumerate(sums):
        tall = max(micro, 0) * plot * 100 // top
        shown = max(tall, 150) if micro > 0 else 100
        bars.append(
            Bar(
                _hundredths(_LEFT * 100 + number * slot + gap // 2), _hundredths((_TOP + plot) * 100 - shown),
                _hundredths(max(slot - gap, 40)), _hundredths(shown),
                f"{label(at, step, zone, full=True)}: {format_micro(micro)} credits", micro <= 0,
            )
        )  # fmt: skip
    ticks = [
        (_hundredths((_TOP + plot) * 100 - plot * 100 * part // _TICKS), _short(top * part // _TICKS))
        for part in range(_TICKS + 1)
    ]
    return Chart(kind, width, height, _LEFT, width - _RIGHT, bars, ticks, _labels(sums, step, zone, slot, labels_max))


def label(us: int, step: str, zone: str, *, full: bool = False) -> str:
    """The start of a step by the clocks of a zone; `full`: also without its neighbours' help."""
    moment: datetime = from_us(us).astimezone(ZoneInfo(zone))
    if step == "hour":
        return f"{moment.day} {moment:%b %Y, %H:%M}" if full else f"{moment:%H:%M}"
    if step == "month":
        return f"{moment:%b %Y}"
    day = f"{moment.day} {moment:%b %Y}" if full else f"{moment.day} {moment:%b}"
    return f"week of {day}" if full and step == "week" else day


def _labels(sums: Sequence[tuple[int, int]], step: str, zone: str, slot: int, most: int) -> list[tuple[str, str, str]]:
    every = max(1, -(-len(sums) // most))
    return [
        (_hundredths(_LEFT * 100 + number * slot + slot // 2), label(sums[number][0], step, zone), "middle")
        for number in range(every // 2, len(sums), every)
    ]


def _nice(micro: int) -> int:
    """The top of an axis: the next amount that divides well."""
    unit = 100
    while True:
        for factor in (4, 6, 8, 10, 12, 16, 20, 24, 32):
            if unit * factor >= max(micro, 4):
                return min(unit * factor, MICRO_MAX)
        unit *= 10


def _short(micro: int) -> str:
    """For an axis: `1.5k`, `20M`; exact, since ticks are round."""
    for size, sign in ((10**15, "G"), (10**12, "M"), (10**9, "k")):
        if micro >= size and micro * 100 % size == 0:
            return f"{format_micro(micro * 1_000_000 // size)}{sign}"
    return format_micro(micro)


def _hundredths(value: int) -> str:
    return f"{value // 100}.{value % 100:02d}"
