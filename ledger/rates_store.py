"""The history of rates in the ledger: written before anything is charged by it, fixed for all charged time."""

from __future__ import annotations

from typing import Any

import msgspec

from ledger import keys
from ledger.audit import Audit
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.errors import LedgerDamaged
from ledger.lua import Scripts, text
from ledger.model import RatePlan
from ledger.rates_history import decode_plan, encode_plan, first_difference, splice


class RatesStore:
    """Rate plans of all clusters."""

    def __init__(self, client: Client, scripts: Scripts, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._scripts = scripts
        self._clock: Clock = clock or now_us
        self._audit = Audit(client, clock)

    async def read(self, cluster: str) -> tuple[str, RatePlan | None]:
        """(version, plan) in the ledger; ('0', None) where the cluster has none yet.

        Raises: LedgerDamaged, LedgerUnavailable.
        """
        version, plan, _ = await self._read(cluster)
        return version, plan

    async def announce(self, cluster: str, until_us: int) -> str:
        """Fix the rates before `until_us`, up to which workloads are about to be charged; the plan's version."""
        return text(await self._scripts.rates_clock([keys.rates(cluster)], [str(until_us)]))

    async def publish(self, plan: RatePlan, who: str = "exporter") -> bool:
        """Put a plan into force from now on; for time that is charged already, nothing changes.

        What the plan dates before now counts from its date as far as that time is not charged yet. A cluster's
        first plan holds for all time before. Returns whether anything changed; that is audited.
        """
        while True:
            version, history, clock_us = await self._read(plan.cluster)
            if history is None and clock_us == 0:
                merged: RatePlan = plan
                differs: int | None = 0
            else:
                before = history or _unpriced(plan)
                merged = splice(before, plan, clock_us, self._clock())
                differs = first_difference(before, merged)
            if differs is None:
                return False
            facts = {"cluster": plan.cluster, "version": int(version) + 1, "differs_from": format_time(max(0, differs))}
            await self._audit.add("rates", who, None, **facts)
            answer = await self._scripts.rates_publish.durably(  # nobody would publish again what a server lost
                [keys.rates(plan.cluster)], [version, str(int(version) + 1), encode_plan(merged), str(differs)]
            )
            if text(answer) == "ok":
                return True

    async def _read(self, cluster: str) -> tuple[str, RatePlan | None, int]:
        fields: Any = await again(lambda: self._client.hmget(keys.rates(cluster), ["version", "plan", "clock_us"]))
        version, data, clock_us = fields
        if version is None:
            return "0", None, int(clock_us or 0)
        try:
            return text(version), decode_plan(cluster, data), int(clock_us or 0)
        except (msgspec.MsgspecError, TypeError) as e:
            raise LedgerDamaged(f"the rate history of cluster {cluster!r} cannot be read: {e}") from e


def _unpriced(plan: RatePlan) -> RatePlan:
    """What was in force while a cluster was metered without rates: none."""
    return RatePlan(plan.cluster, ((0, type(plan.steps[0][1])()),))
