"""Volumes and disks through the stand-ins: charged by class for the bytes last seen, and not after their deletion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.sources import ApoloSource as ApoloSettings
from config.sources import KubernetesSource as KubernetesSettings
from config.values import Secret
from exporter.books import Books
from exporter.rounds import Rounds
from exporter.sources.apolo import ApoloSource
from exporter.sources.kubernetes import KubernetesSource
from ledger.connect import connect
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger, open_ledger
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from tests.standins.apolo_api import ApoloApi, token_of
from tests.standins.kube_api import KubeApi, apolo_labels

pytestmark = pytest.mark.redis

T0 = 1_764_000_000_000_000
MINUTE = 60_000_000
HOUR = 60 * MINUTE
GB = 10**9


class Time:
    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


@asynccontextmanager
async def ledger_of(url: str, time: Time) -> AsyncIterator[Ledger]:
    """A GB-hour costs 1 credit, on `ssd` 3."""
    async with connect(url, None) as client:
        await client.flushall()
    async with open_ledger(url, epoch_us=T0, clock=time) as ledger:
        table = RateTable(storage={"default": 1_000_000_000, "ssd": 3_000_000_000})
        await ledger.rates.publish(RatePlan("default", ((0, table),)))
        yield ledger


async def spent(ledger: Ledger, until_us: int) -> dict[str, str]:
    """Credits by class."""
    query = UsageQuery(from_us=T0, to_us=until_us, group_by=("resource",))
    return {row["resource"]: row["credits"] for row in (await usage(ledger, query)).shape()["rows"]}


def claim(name: str, storage_class: str | None, size: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "ns", "labels": apolo_labels(preset=None)},
        "spec": {"storageClassName": storage_class} if storage_class else {},
        "status": {"phase": "Bound", "capacity": {"storage": size}},
    }


async def test_volumes_grow_and_are_charged_by_class_to_their_deletion(valkey_url: str) -> None:
    api, time = KubeApi(now_us=T0), Time()
    async with ledger_of(valkey_url, time) as ledger, api.serve() as url:
        source = KubernetesSource(KubernetesSettings(name="k", url=url), time, settle_us=0, back_off_seconds=0.0001)
        rounds = Rounds(Books(ledger), source, hold_us=0)

        async def heard() -> None:
            newest = max(version for version, plural, *_ in api.history if plural == "persistentvolumeclaims")
            async with asyncio.timeout(5):
                while int(source.versions()["/api/v1/persistentvolumeclaims"] or 0) < newest:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

        try:
            await api.put("persistentvolumeclaims", claim("a", "ssd", "10G"))
            await api.put("persistentvolumeclaims", claim("b", None, "1G"))
            await rounds.round()
            time.us = T0 + HOUR
            await api.put("persistentvolumeclaims", claim("a", "ssd", "20G"))
            await heard()
            await rounds.round()
            time.us = T0 + 90 * MINUTE
            await api.delete("persistentvolumeclaims", "ns", "a")
            await heard()
            for hour in (2, 3, 4):
                time.us = T0 + hour * HOUR
                await rounds.round()
            # 10 GB for an hour (what was last seen), 20 GB for half an hour; 1 GB for four hours.
            assert await spent(ledger, time.us) == {"ssd": "60", "default": "4"}
        finally:
            await source.close()


async def test_disks_grow_and_are_charged_until_they_were_last_seen(valkey_url: str) -> None:
    api, time = ApoloApi(projects=[("acme", "ml")]), Time()
    async with ledger_of(valkey_url, time) as ledger, api.serve() as url:
        settings = ApoloSettings(name="a", url=url, token=Secret(token_of("meter")), disk_class="ssd")
        source = ApoloSource(settings, time, retry_seconds=0.001)
        rounds = Rounds(Books(ledger), source, hold_us=0)
        try:
            kept, deleted = api.add_disk("acme", "ml", 2 * GB), api.add_disk("acme", "ml", 5 * GB)
            await rounds.round()
            time.us = T0 + HOUR
            api.disks[kept]["storage"] = 4 * GB
            await rounds.round()
            time.us = T0 + 2 * HOUR
            del api.disks[deleted]
            api.disks_hidden = True  # the API lists nothing for a while
            await rounds.round()
            api.disks_hidden = False
            api.disks[kept]["storage"] = GB
            time.us = T0 + 3 * HOUR
            await rounds.round()
            time.us = T0 + 4 * HOUR
            await rounds.round()
            # 2, 4, 4 and 1 GB for an hour each; 5 GB for the one hour that it was seen to last.
            assert await spent(ledger, time.us) == {"ssd": "48"}
        finally:
            await source.close()
