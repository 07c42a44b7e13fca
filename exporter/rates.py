"""The rates of the configured clusters: from rates.yaml, and from the platform where it has none, into the ledger."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from ledger.model import RatePlan, RateTable
from ledger.rates_store import RatesStore

log = logging.getLogger(__name__)


class RatesInForce:
    """Publishes plans; what is charged is what the ledger has, whoever put it there.

    A cluster whose rates are to be completed by its platform is published only once these are known, so that a
    platform that does not answer for a while never takes a rate out of force.
    """

    def __init__(
        self, store: RatesStore, plans: Mapping[str, RatePlan], clusters: Iterable[str], completed: Iterable[str] = ()
    ) -> None:
        """`plans`: those of rates.yaml. `clusters`: of the configured sources; `completed`: those of them whose
        platforms give rates, too."""
        self._store = store
        self._file = dict(plans)
        self._clusters = frozenset(clusters)
        self._platform: dict[str, RateTable | None] = dict.fromkeys(completed)
        self._published: dict[str, RatePlan] = {}

    async def publish(self, plans: Mapping[str, RatePlan] | None = None) -> None:
        """Put every cluster's plan into force; `plans` replaces those of rates.yaml.

        Raises: LedgerUnavailable (some may be in force already; a retry is safe), LedgerDamaged.
        """
        file = self._file if plans is None else dict(plans)
        for cluster in sorted(self._clusters | file.keys()):
            await self._publish(cluster, file)
        self._file = file

    async def complete(self, cluster: str, table: RateTable) -> None:
        """Take over what the platform says now. Raises: as `publish`."""
        if self._platform.get(cluster) == table:
            return
        before, self._platform[cluster] = self._platform.get(cluster), table
        try:
            await self._publish(cluster, self._file)
        except BaseException:
            self._platform[cluster] = before
            raise

    def priced_apps(self, cluster: str) -> frozenset[str]:
        """The apps of a cluster that have a rate of their own, now or later."""
        plan = self._published.get(cluster)
        return frozenset(app for _, table in plan.steps for app in table.apps) if plan else frozenset()

    async def _publish(self, cluster: str, file: Mapping[str, RatePlan]) -> None:
        plan = file.get(cluster) or RatePlan(cluster, ((0, RateTable()),))
        if cluster in self._platform:
            platform = self._platform[cluster]
            if platform is None:
                return
            plan = RatePlan(cluster, tuple((since, _completed(table, platform)) for since, table in plan.steps))
        elif cluster not in file:
            log.warning("Cluster %s has no rates in rates.yaml: what it runs is unpriced and costs nothing.", cluster)
        if await self._store.publish(plan):
            log.info("Cluster %s: new rates are in force from now on.", cluster)
        self._published[cluster] = plan


def _completed(table: RateTable, platform: RateTable) -> RateTable:
    return RateTable(
        presets={**platform.presets, **table.presets},
        apps={**platform.apps, **table.apps},
        storage={**platform.storage, **table.storage},
        unpriced=table.unpriced,
    )
