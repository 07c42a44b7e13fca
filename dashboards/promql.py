"""PromQL of the reports: exact totals of durable counters over a range, trends of them, and gauges now.

The ledger's counters live in Redis: they never go back, not even over restarts. So what a range adds up to is
the counter's last value at its end less the last one at its start, a counter that was not there yet counting
as 0. `rate` and `increase` would extrapolate, take a restart for a reset and lose a series' first sample.

The last value at an instant is the larger of the last scraped sample within `NEAR` and the last hourly
checkpoint (see `rules`) within `FAR`. That is what the ledger said last, however long the exporter was away,
and it depends on the instant alone: totals of adjacent ranges add up to the total of both together. Its cost
depends on the number of series, not on the range's length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dashboards.limits import FAR, NEAR
from exporter.metric_names import LEDGER_EPOCH, Metric

NOBODY = "(none)"
"""Stands for an empty label."""
RANGE = ("$__range", "$__range_s")
"""Grafana's length of the dashboard's time range, as a PromQL duration and in seconds."""
STEP = ("$__interval", "$__interval_ms / 1000")
"""The same for the interval between two points of a trend."""


@dataclass(frozen=True)
class Scope:
    """What a dashboard looks at: PromQL matchers by label, applied to each metric that has the label."""

    matchers: Mapping[str, str] = field(default_factory=dict)

    def on(self, metric: Metric, *extra: str) -> str:
        """The selector's braces for a metric, "" where nothing narrows it down."""
        parts = [text for label, text in self.matchers.items() if label in metric.labels]
        parts += extra
        return "{" + ",".join(parts) + "}" if parts else ""


def checkpoint(metric: Metric) -> str:
    """Name of the series that records a metric hourly."""
    return f"{metric.name.removesuffix('_total').replace('_', ':', 1)}:hourly"


def by(labels: Sequence[str]) -> str:
    """A grouping clause, "" for none."""
    return f" by ({', '.join(labels)})" if labels else ""


def _latest(metric: Metric, braces: str, offset: str = "") -> str:
    """The last known value of each of a counter's series, whoever exported it."""
    shift = f" offset {offset}" if offset else ""
    return (
        f"max{by(metric.labels)} (last_over_time({metric.name}{braces}[{NEAR}]{shift})"
        f" or last_over_time({checkpoint(metric)}{braces}[{FAR}]{shift}))"
    )


def _checkpointed(metric: Metric, braces: str, offset: str = "") -> str:
    shift = f" offset {offset}" if offset else ""
    return f"last_over_time({checkpoint(metric)}{braces}[{FAR}]{shift})"


def _known(span: tuple[str, str], near: bool) -> str:
    """Holds where both edges are known: Prometheus saw the ledger, or at the start there was no ledger yet.

    Without it a range that starts before Prometheus' own history would count all that was spent before.
    """
    duration, seconds = span
    name, kept = LEDGER_EPOCH.name, checkpoint(LEDGER_EPOCH)
    end, start = f"last_over_time({kept}[{FAR}])", f"last_over_time({kept}[{FAR}] offset {duration})"
    if near:
        end = f"(last_over_time({name}[{NEAR}]) or {end})"
        start = f"last_over_time({name}[{NEAR}] offset {duration}) or {start}"
    return f"{end} and on () ({start} or {end} >= time() - {seconds})"


def _difference(group: Sequence[str], end: str, start: str, span: tuple[str, str], near: bool) -> str:
    # The label keeps a series' two values apart, so that one sum adds the end and takes off the start,
    # and a series that has no start takes off nothing.
    total = f'sum{by(group)} ({end} or label_replace(-{start}, "edge", "start", "", ""))'
    if not group:
        total = f"({total} or vector(0))"
    return f"({total} and on () ({_known(span, near)}))"


def total(metric: Metric, scope: Scope, group: Sequence[str] = (), *extra: str) -> str:
    """What a counter grew by over the dashboard's range, exactly; for an instant query at the range's end.

    Without a group the answer is one number, 0 if nothing was counted; it is empty where it cannot be known.
    """
    braces = scope.on(metric, *extra)
    start = _latest(metric, braces, RANGE[0])
    return _difference(group, _latest(metric, braces), start, RANGE, near=True)


def trend(metric: Metric, scope: Scope, group: Sequence[str] = (), *extra: str) -> str:
    """What a counter grew by in each interval of a range query (of whole hours), from the hourly checkpoints."""
    braces = scope.on(metric, *extra)
    start = _checkpointed(metric, braces, STEP[0])
    return _difference(group, _checkpointed(metric, braces), start, STEP, near=False)


def gauge(metric: Metric, scope: Scope, group: Sequence[str] = (), *extra: str, how: str = "sum") -> str:
    """A gauge now, added up by group (or `how` says), each series once however many exporters serve it."""
    return f"{how}{by(group)} ({each(metric, scope, *extra)})"


def each(metric: Metric, scope: Scope, *extra: str, before: str = "") -> str:
    """A metric's series by its own labels, each once; some time `before`, if that is given."""
    shift = f" offset {before}" if before else ""
    return f"max{by(metric.labels)} ({metric.name}{scope.on(metric, *extra)}{shift})"


def named(expr: str, label: str) -> str:
    """The same series, with a word where a label is empty: storage, for one, has no user."""
    return f'label_replace({expr}, "{label}", "{NOBODY}", "{label}", "")'


def changed(metric: Metric, scope: Scope) -> str:
    """The series whose value is not what it was one interval of a range query ago."""
    return f"{each(metric, scope)} != {each(metric, scope, before=STEP[0])}"
