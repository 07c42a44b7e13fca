"""docs/metrics.md lists what there is."""

from __future__ import annotations

from pathlib import Path

from exporter.reference import all_metrics, render_reference

ROOT = Path(__file__).parents[2]


def test_the_reference_is_up_to_date() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert render_reference() == page, "run: python -m exporter.reference docs/metrics.md"


def test_names_are_used_once_and_end_as_their_type_wants() -> None:
    metrics = all_metrics()
    assert len(metrics) == len({metric.name for metric in metrics})
    for metric in metrics:
        assert (metric.type == "counter") == metric.name.endswith("_total"), metric.name
        assert not set(metric.help) & {"\n", "\\", '"'}, metric.name
