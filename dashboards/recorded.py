"""Series that recording rules add to the exporter's, described like them."""

from __future__ import annotations

from typing import Final

from exporter.metric_names import Metric

BURN_BY_ORG: Final = Metric(
    "credits:burn_rate:by_org", "gauge", ("cluster", "org"), "Credits per hour that what runs now costs, by org."
)
WORKLOADS_BY_RESOURCE: Final = Metric(
    "credits:workloads:by_resource", "gauge", ("cluster", "kind", "resource"), "Workloads that are billed now."
)
STORAGE_BY_CLASS: Final = Metric(
    "credits:storage_bytes:by_class", "gauge", ("cluster", "storage_class"), "Bytes stored that are billed now."
)
RUNWAY: Final = Metric(
    "credits:runway:seconds", "gauge", ("org",), "Time until an org's credits run out; absent while nothing burns."
)
BALANCE_FULL: Final = Metric(
    "credits:balance:full",
    "gauge",
    ("org",),
    "What the grants gave that have something left, or the most available in the last 30 days, if that was more.",
)
BALANCE_USED: Final = Metric("credits:balance_used:ratio", "gauge", ("org",), "Share of that which is used up now.")
BUDGET_USED: Final = Metric(
    "credits:budget_used:ratio",
    "gauge",
    ("org", "project", "user", "period"),
    "Share of a budget that is used up in its current period.",
)
