"""Buckets, whose sizes the platform does not tell: from what lists them to the dashboards, by both ways there are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from config.sources import JsonSource, KubernetesSource, StorageUsage
from dashboards.build import all_dashboards
from exporter.app import exporting
from exporter.books import Books
from exporter.rounds import Rounds
from exporter.sources import kubernetes
from ledger.clock import format_time, now_us
from ledger.connect import Client
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger, open_ledger
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from ledger.verify import verify
from tests.exporter_lab import HOUR, T0, scrape, settings_of, until, value
from tests.prometheus_lab import Prometheus, as_grafana, prometheus
from tests.standins.kube_api import KubeApi

pytestmark = [pytest.mark.redis, pytest.mark.prometheus]
RATES = """
clusters:
  default:
    presets: {}
    storage: {bucket: {credits_per_gb_hour: 0.5}}
"""
GB = 10**9
LABELS = {"cluster": "default", "org": "acme", "project": "vision", "kind": "storage", "resource": "bucket", "app": ""}


@pytest.fixture
async def ledger(client: Client, valkey_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(valkey_url, epoch_us=T0 - HOUR) as opened:
        yield opened


def _rows(server: Prometheus, uid: str, title: str) -> dict[str, Any]:
    """What the first column of a dashboard's table has for each resource, over all time since before the ledger."""
    made = next(one for one in all_dashboards() if one["uid"] == uid)
    panel = next(one for one in made["panels"] if one["title"] == title)
    choices = {"cluster": ".*", "org": "acme", "project": "vision", "user": ".*"}
    now = time.time()
    found = server.instant(as_grafana(panel["targets"][0]["expr"], choices, int(now) - (T0 - 2 * HOUR) // 10**6), now)
    return {dict(labels)["resource"]: spent for labels, spent in found.items()}


async def _by_class(ledger: Ledger) -> dict[str, str]:
    query = UsageQuery(from_us=T0 - HOUR, to_us=now_us(), group_by=("kind", "resource"), org="acme")
    return {f"{row['kind']} {row['resource']}": row["credits"] for row in (await usage(ledger, query)).shape()["rows"]}


async def test_a_command_that_adds_up_buckets_reaches_the_ledger_and_the_dashboards(
    tmp_path: Path, valkey_url: str, ledger: Ledger
) -> None:
    await ledger.accounts.grant("acme", 1000_000_000, key="k", who="t")
    listed = tmp_path / "listed.json"

    def show(hours: int, size: int) -> None:
        bucket = {"id": "bucket-1", "org": "acme", "project": "vision", "user": None, "storage_class": "bucket"}
        document = {"cluster": "default", "taken_at": format_time(T0 + hours * HOUR), "workloads": []}
        written = listed.with_suffix(".new")
        written.write_text(json.dumps({**document, "storage": [{**bucket, "bytes": size}]}))
        written.replace(listed)

    show(0, 4 * GB)
    source = JsonSource(name="buckets", cluster="default", command=("cat", str(listed)))
    async with exporting(settings_of(tmp_path, valkey_url, source, rates=RATES, interval_seconds=0.2)) as exporter:
        target, config = urlsplit(exporter.url).netloc, tmp_path / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: credits, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        with prometheus(config, tmp_path / "tsdb") as server:
            await until(lambda: _charged(ledger, "buckets", T0))
            for hours, size in ((2, 10 * GB), (3, 10 * GB)):
                show(hours, size)
                await until(lambda: _charged(ledger, "buckets", T0 + hours * HOUR))  # noqa: B023
            # 4 GB for two hours, as last seen, then 10 GB for one, at half a credit a GB-hour.
            assert await _by_class(ledger) == {"storage bucket": "9"}
            series = await scrape(exporter.url)
            assert value(series, "credits_spent_total", **LABELS) == 9
            assert value(series, "credits_storage_bytes", org="acme", storage_class="bucket") == 10 * GB
            await until(lambda: asyncio.to_thread(_shows, server, 9.0))
    report = await verify(ledger)
    assert report["ok"], report["differences"]


def _shows(server: Prometheus, spent: float) -> bool:
    tables = [("credits-organization", "Presets and storage"), ("credits-project", "Presets and storage")]
    return all(_rows(server, uid, title) == {"bucket": spent} for uid, title in tables)


async def _charged(ledger: Ledger, source: str, taken_us: int) -> bool:
    return await ledger.charging.source_mark(source) == taken_us


async def test_bytes_of_buckets_out_of_a_prometheus_reach_the_ledger(
    tmp_path: Path, valkey_url: str, ledger: Ledger
) -> None:
    config = tmp_path / "prometheus.yml"
    config.write_text("global: {}\n")
    of_project = (
        'label_replace(label_replace(vector(4e9), "org_name", "acme", "", ""), "project_name", "vision", "", "")'
    )
    clock = [now_us() - 3 * HOUR]
    with prometheus(config, tmp_path / "tsdb") as server:
        api = KubeApi(now_us=clock[0])
        async with api.serve() as url:
            storage = StorageUsage(url=server.url, query=of_project, storage_class="bucket")
            settings = KubernetesSource(name="k", url=url, storage=storage)
            source = kubernetes.KubernetesSource(settings, lambda: clock[0], settle_us=0)
            await ledger.rates.publish(RatePlan("default", ((0, RateTable(storage={"bucket": 500_000_000})),)))
            rounds = Rounds(Books(ledger), source, hold_us=0)
            try:
                for _ in range(3):
                    await rounds.round()
                    clock[0] += HOUR
            finally:
                await source.close()
    # Seen first when the first round began: two hours of 4 GB.
    assert await _by_class(ledger) == {"storage bucket": "4"}
