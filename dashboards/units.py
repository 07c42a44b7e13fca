"""How values are written: unit and digits after the point of everything that is shown, and colour steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dashboards import limits

Steps = list[dict[str, Any]]


class Unit(NamedTuple):
    """A Grafana unit and the digits after the point."""

    id: str
    decimals: int


CREDITS = Unit("suffix:cr", 2)
BURN = Unit("suffix:cr/h", 2)
RATE = Unit("suffix:cr/h", 4)
STORAGE_RATE = Unit("suffix:cr/GBh", 9)
SHARE = Unit("percentunit", 1)
SECONDS = Unit("s", 1)
LATENCY = Unit("s", 1)
COUNT = Unit("none", 0)
FREQUENCY = Unit("none", 2)
BYTES = Unit("decbytes", 1)
MOMENT = Unit("dateTimeAsIso", 0)
SWITCH = Unit("bool_yes_no", 0)
TEXT = Unit("string", 0)

PLAIN, GOOD, NOTE, WARN, BAD = "text", "green", "yellow", "orange", "red"


def steps(base: str, *above: tuple[float, str]) -> Steps:
    """Colours by value: `base` from below, then each (value, colour) upwards."""
    return [{"color": base, "value": None}, *({"color": color, "value": value} for value, color in above)]


NEUTRAL = steps(PLAIN)
FIGURE = steps("blue")
RUNWAY = steps(BAD, (limits.RUNWAY_CRITICAL_HOURS * 3600, WARN), (limits.RUNWAY_WARNING_HOURS * 3600, GOOD))
USED = steps(GOOD, *zip(limits.USED_SHARES, (NOTE, WARN, BAD), strict=True))
ANY_IS_NOTED = steps(GOOD, (1e-6, NOTE))
ANY_IS_BAD = steps(GOOD, (1e-6, BAD))
ANY_IS_ODD = steps(GOOD, (1e-6, WARN))
UP = steps(BAD, (1, GOOD))
LAG = steps(GOOD, (limits.LAG_SECONDS, WARN))
STALE = steps(GOOD, (limits.STALE_SECONDS, BAD))
VERIFIED = steps(GOOD, (limits.VERIFY_HOURS * 3600, WARN))
DECISION = steps(GOOD, (limits.DECISION_SECONDS, BAD))
ALL_WELL, ALL_ODD, ALL_BAD = steps(GOOD), steps(WARN), steps(BAD)
"""Where something else than the value says how it stands."""
STAGE = steps(GOOD, (1, NOTE), (2, WARN), (3, BAD))


def named_values(names: Sequence[str]) -> list[dict[str, Any]]:
    """Value mappings of 0, 1, 2... to names."""
    return [{"type": "value", "options": {str(i): {"text": name, "index": i} for i, name in enumerate(names)}}]
