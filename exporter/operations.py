"""How the exporter itself does, as a collector of prometheus_client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exporter import metric_names as m
from exporter.charge_back import ChargeBack
from exporter.health import LedgerHealth, SourceHealth
from exporter.verification import Verification
from ledger.clock import Clock, now_us

ReloadState = Callable[[], tuple[bool, int]]
"""Whether the configuration on disk is in force, and when one was last taken over (us)."""


class Operations(Collector):
    """Sources, rounds, the ledger's connection and its last check, and the configuration."""

    def __init__(
        self,
        sources: Sequence[SourceHealth],
        ledger: LedgerHealth,
        reloads: ReloadState,
        verification: Verification,
        clock: Clock = now_us,
        charge_backs: Sequence[ChargeBack] = (),
    ) -> None:
        self._charge_backs = charge_backs
        self._sources = sources
        self._ledger = ledger
        self._reloads = reloads
        self._verification = verification
        self._clock = clock

    def describe(self) -> Iterable[Metric]:
        """Nothing: the families depend on what runs."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families now."""
        now = self._clock()
        asked = [source for source in self._sources if source.tried]
        yield _gauge(m.SOURCE_UP, ((s, int(s.up)) for s in asked))
        yield _gauge(
            m.SOURCE_LAST_SUCCESS, ((s, s.snapshot_us / 1e6) for s in self._sources if s.snapshot_us is not None)
        )
        yield _gauge(m.SOURCE_DURATION, ((s, s.fetch_seconds) for s in self._sources if s.fetch_seconds is not None))
        yield _gauge(m.SOURCE_FAILURES, ((s, s.failures) for s in asked))
        # A snapshot may be of a clock that is ahead of ours.
        lags = ((s, max(0, now - s.charged_us) / 1e6) for s in self._sources if s.charged_us is not None)
        yield _gauge(m.METER_LAG, lags)
        yield _gauge(m.ROUND_DURATION, ((s, s.round_seconds) for s in self._sources if s.round_seconds is not None))
        yield GaugeMetricFamily(m.LEDGER_UP.name, m.LEDGER_UP.help, value=int(self._ledger.up))
        checked = self._verification
        if checked.drift_micro is not None and checked.checked_us is not None:
            yield GaugeMetricFamily(m.LEDGER_DRIFT.name, m.LEDGER_DRIFT.help, value=checked.drift_micro / 1e6)
            yield GaugeMetricFamily(m.LEDGER_VERIFIED.name, m.LEDGER_VERIFIED.help, value=checked.checked_us / 1e6)
        yield from self._passed_on()
        good, since_us = self._reloads()
        yield GaugeMetricFamily(m.RELOAD_OK.name, m.RELOAD_OK.help, value=int(good))
        yield GaugeMetricFamily(m.RELOAD_TIME.name, m.RELOAD_TIME.help, value=since_us / 1e6)

    def _passed_on(self) -> Iterator[Metric]:
        shown = [(back.source, back.outstanding) for back in self._charge_backs if back.outstanding is not None]
        if shown:
            pending, refunded = _family(m.CHARGE_BACK_PENDING), _family(m.CHARGE_BACK_REFUNDED)
            for source, left in shown:
                pending.add_metric([source, "orgs"], left.orgs / 1e6)
                pending.add_metric([source, "users"], left.users / 1e6)
                refunded.add_metric([source], left.refunded / 1e6)
            yield pending
            yield refunded


def _family(metric: m.Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=list(metric.labels))


def _gauge(metric: m.Metric, values: Iterable[tuple[SourceHealth, float]]) -> GaugeMetricFamily:
    family = _family(metric)
    for source, value in values:
        family.add_metric([source.name], value)
    return family
