"""Where alerts fire and panels change colour: one value for both, and the times that scraping and rules keep."""

from __future__ import annotations

from typing import Final

RUNWAY_WARNING_HOURS: Final = 24
RUNWAY_CRITICAL_HOURS: Final = 4
USED_SHARES: Final = (0.5, 0.75, 0.9)
"""Shares of a balance or a budget that are used up: to note, to warn of, critical."""
LAG_SECONDS: Final = 300
"""A meter further behind than this is late: twenty rounds at the usual 15 seconds."""
STALE_SECONDS: Final = 300
"""A source without a usable snapshot for this long is stale."""
VERIFY_HOURS: Final = 25
"""The ledger is checked against its parts daily; older than this the check itself is missing."""
DECISION_SECONDS: Final = 1.0
"""Budget of an admission decision."""

SCRAPE_SECONDS: Final = 30
CHECKPOINT_MINUTE: Final = 59
"""The minute of each hour in which the checkpoints of the counters are recorded."""
NEAR: Final = "2h"
"""How far back the scraped samples themselves are looked for; an hour would do, the rest is for a missed checkpoint."""
FAR: Final = "14d"
"""How far back the hourly checkpoints are looked for: a range that starts or ends in a longer outage is not known."""
PEAK_DAYS: Final = 30
"""What a share used up refers to is no less than the most that was available in so many days."""

EXPORTER_JOB: Final = "credits-exporter"
ENFORCER_JOB: Final = "credits-enforcer"
