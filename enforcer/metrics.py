"""What the enforcer counts. Decisions are counted for ever: the ledger keeps them over restarts."""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from enforcer.failures import LIMITED, REFUSED, Failures
from ledger import keys
from ledger.connect import again
from ledger.lua import text
from ledger.store import Ledger

ADMISSIONS: Final = "credits_admissions_total"
DURATION: Final = "credits_admission_duration_seconds"
AUTH_FAILURES: Final = "credits_auth_failures_total"
STAGE: Final = "credits_exhaustion_stage"
PAYMENTS_REFUSED: Final = "credits_payments_refused_total"
ALLOWED, DENIED, SHADOWED, EXCEPTED = "allow", "deny", "shadow", "exception"
"""Values of the label `decision`; `exception`: let through while the ledger was away."""
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
log = logging.getLogger(__name__)


class EnforcerMetrics:
    """The registry of one enforcer, named by where it listens."""

    def __init__(self, instance: str, failures: Failures | None = None) -> None:
        self.instance = instance
        self._failures = Failures() if failures is None else failures
        self.registry = CollectorRegistry()
        self.stages: Mapping[str, int] = {}
        self.refused: Mapping[str, int] = {}
        self._counts: Tally[tuple[str, str]] = Tally()  # what was saved, or tried to be, and since then:
        self._unsaved: Tally[tuple[str, str]] = Tally()
        # A histogram of the client's own walks through its buckets under locks, which every decision would pay for.
        self._took = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0
        self.ledger_up = Gauge(
            "credits_enforcer_ledger_up", "1 if the ledger answers, 0 while decisions are made without it.",
            registry=self.registry,
        )  # fmt: skip
        self.ledger_up.set(1)
        self.pending = Gauge(
            "credits_enforcer_pending_entries", "Refusals and exceptions that the ledger does not have yet.",
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(self)

    async def look(self, ledger: Ledger) -> None:
        """See what the ledger counts for all enforcers."""
        client: Any = ledger.client
        fields = await again(lambda: client.hgetall(keys.PAYMENTS_REFUSED))
        self.refused = {text(reason): int(count) for reason, count in fields.items()}

    def count(self, decision: str, code: str) -> None:
        """One more decision."""
        self._unsaved[decision, code] += 1

    def observe(self, seconds: float) -> None:
        """How long one took."""
        self._took[bisect_left(_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def describe(self) -> Iterator[Metric]:
        """Names without values, as the registry asks when this is added."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            ADMISSIONS, "Admission decisions, by decision and code.", labels=("decision", "reason")
        )
        for labels, value in sorted((self._counts + self._unsaved).items()):
            family.add_metric(labels, value)
        yield family
        bounds = [*(str(bound) for bound in _BUCKETS), "+Inf"]
        took = list(zip(bounds, accumulate(self._took), strict=True))
        yield HistogramMetricFamily(DURATION, "How long an admission decision took.", took, self._seconds)
        refused = CounterMetricFamily(
            PAYMENTS_REFUSED,
            "News of payments that could not be credited: money moved, or may have, and no credits did.",
            labels=("reason",),
        )
        for reason, value in sorted(self.refused.items()):
            refused.add_metric([reason], value)
        yield refused
        failures = CounterMetricFamily(
            AUTH_FAILURES,
            "Tokens that were none, refused or only told to come back later; an enforcer that starts counts anew.",
            labels=("outcome",),
        )
        for outcome in (REFUSED, LIMITED):
            failures.add_metric([outcome], self._failures.counts[outcome])
        yield failures
        stages = GaugeMetricFamily(
            STAGE,
            "How far an org's exhaustion went: 0 none, 1 warn, 2 block, 3 grace, 4 suspend or stop.",
            labels=["org"],
        )
        for org, stage in sorted(self.stages.items()):
            stages.add_metric([org], stage)
        yield stages

    async def load(self, ledger: Ledger) -> None:
        """Go on from what all enforcers counted: each tells of all, so that it does not matter which one is asked."""
        client: Any = ledger.client
        fields = await again(lambda: client.hgetall(keys.ADMISSIONS))
        counted: Tally[tuple[str, str]] = Tally()
        for field, value in fields.items():
            _, decision, code = text(field).split(keys.US)
            counted[decision, code] += int(value)
        self._counts |= counted  # the larger of each: never back, not even where the ledger lost the last second

    async def save(self, ledger: Ledger) -> None:
        """Add what was counted since the last time. A lost answer may lose or double one save."""
        unsaved, self._unsaved = self._unsaved, Tally()
        self._counts += unsaved
        client: Any = ledger.client
        for (decision, code), value in unsaved.items():
            await client.hincrby(keys.ADMISSIONS, keys.US.join((self.instance, decision, code)), value)
        await self.load(ledger)

    async def serve(self, request: web.Request) -> web.Response:
        """What the enforcer counts, for Prometheus."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        body = await asyncio.to_thread(encode, self.registry)
        return web.Response(body=body, headers={"Content-Type": content_type})
