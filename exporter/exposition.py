"""Exposition text of amounts: exact decimals, and lines that are cheap to make again at each scrape.

prometheus_client renders a value as a float and a label set anew each time. Amounts must not go through a float,
and a large ledger has 100,000 label sets that never change, so these lines are made here, by the library's rules
(a test parses both).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exporter.metric_names import Metric

Sample = tuple[Sequence[str], str]
"""(label values in the metric's order, value)"""


def escape(value: str) -> str:
    """A label value as it stands between quotes."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def line_head(metric: Metric, values: Sequence[str]) -> str:
    """All of a sample's line but its value."""
    if not metric.labels:
        return f"{metric.name} "
    pairs = (f'{label}="{escape(value)}"' for label, value in zip(metric.labels, values, strict=True))
    return f"{metric.name}{{{','.join(pairs)}}} "


def family_head(metric: Metric, openmetrics: bool) -> str:
    """HELP and TYPE. OpenMetrics names a counter without its `_total`."""
    name = metric.name.removesuffix("_total") if openmetrics and metric.type == "counter" else metric.name
    return f"# HELP {name} {metric.help}\n# TYPE {name} {metric.type}"


def family(metric: Metric, samples: Iterable[Sample], openmetrics: bool) -> list[str]:
    """The lines of a family; of samples with the same labels the last one counts."""
    lines = {line_head(metric, values): value for values, value in samples}
    return [family_head(metric, openmetrics), *(head + value for head, value in lines.items())]


def decimal_text(amount: int, digits: int) -> str:
    """An integer of 10**-digits units as an exact decimal with all its digits: (1500000, 6) -> 1.500000."""
    text = str(amount)
    if len(text) > digits and amount > 0:
        return f"{text[:-digits]}.{text[-digits:]}"
    whole, part = divmod(abs(amount), 10**digits)
    return f"{'-' if amount < 0 else ''}{whole}.{part:0{digits}d}"


def credits_text(micro: int) -> str:
    """Micro-credits as credits."""
    return decimal_text(micro, 6)


def seconds_text(us: int) -> str:
    """Microseconds since 1970 as seconds."""
    return decimal_text(us, 6)
