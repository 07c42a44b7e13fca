"""Prometheus recording rules: hourly checkpoints of the counters, and sums and shares the reports need often."""

from __future__ import annotations

from typing import Any

from dashboards.limits import CHECKPOINT_MINUTE, PEAK_DAYS
from dashboards.promql import Scope, by, checkpoint, each, gauge
from dashboards.recorded import (
    BALANCE_FULL,
    BALANCE_USED,
    BUDGET_USED,
    BURN_BY_ORG,
    RUNWAY,
    STORAGE_BY_CLASS,
    WORKLOADS_BY_RESOURCE,
)
from exporter.metric_names import (
    ADMISSIONS,
    AVAILABLE,
    BUDGET_LIMIT,
    BUDGET_REMAINING,
    BURN_RATE,
    EXHAUSTION,
    EXPIRED,
    GRANTED,
    GRANTED_IN_USE,
    LEDGER_EPOCH,
    RESTORED,
    SPENT,
    STORAGE_BYTES,
    UNBILLABLE,
    WITHDRAWN,
    WORKLOADS,
    Metric,
)

CHECKPOINTED = (SPENT, GRANTED, EXPIRED, WITHDRAWN, RESTORED, ADMISSIONS, UNBILLABLE, AVAILABLE, LEDGER_EPOCH)
"""What is looked up further back than scraped samples can be read cheaply."""
EVERYTHING = Scope()


def _checkpoint(metric: Metric) -> dict[str, str]:
    # The window is the time between two checkpoints, so each sample is seen by one, also the last before an outage.
    # Late in the hour: the value at a full hour is then the one of at most a minute before.
    latest = f"max{by(metric.labels)} (last_over_time({metric.name}[1h]))"
    return {"record": checkpoint(metric), "expr": f"{latest} and on () (minute() == {CHECKPOINT_MINUTE})"}


def _sums() -> list[dict[str, str]]:
    return [
        {"record": recorded.name, "expr": gauge(source, EVERYTHING, recorded.labels)}
        for recorded, source in (
            (BURN_BY_ORG, BURN_RATE),
            (WORKLOADS_BY_RESOURCE, WORKLOADS),
            (STORAGE_BY_CLASS, STORAGE_BYTES),
        )
    ]


def _shares() -> list[dict[str, str]]:
    now = each(AVAILABLE, EVERYTHING)
    highest = f"max_over_time({checkpoint(AVAILABLE)}[{PEAK_DAYS}d])"
    # Of a name each, so that `or` does not take the one for the other.
    given = f'{{__name__=~"{AVAILABLE.name}|{GRANTED_IN_USE.name}"}}'
    limit, left = each(BUDGET_LIMIT, EVERYTHING), each(BUDGET_REMAINING, EVERYTHING)
    return [
        {"record": RUNWAY.name, "expr": f"clamp_min({each(EXHAUSTION, EVERYTHING)} - time(), 0)"},
        {"record": BALANCE_FULL.name, "expr": f"max by (org) ({highest} or {given})"},
        {"record": BALANCE_USED.name, "expr": f"1 - {now} / ({BALANCE_FULL.name} > 0)"},
        {"record": BUDGET_USED.name, "expr": f"1 - {left} / ({limit} > 0)"},
    ]


def recording_rules() -> dict[str, Any]:
    """The rule file's content."""
    return {
        "groups": [
            {"name": "credits-checkpoints", "interval": "1m", "rules": [_checkpoint(m) for m in CHECKPOINTED]},
            {"name": "credits-sums", "interval": "1m", "rules": _sums()},
            {"name": "credits-shares", "interval": "1m", "rules": _shares()},
        ]
    }
