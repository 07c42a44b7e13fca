"""What a real Prometheus makes of the exporter's answers."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from config.sources import SimulatedSource
from exporter.app import exporting
from ledger.connect import Client
from ledger.store import Ledger, open_ledger
from tests.exporter_lab import HOUR, T0, FileCluster, get, settings_of, spent, until
from tests.prometheus_lab import prometheus

pytestmark = [pytest.mark.redis, pytest.mark.prometheus]


@pytest.fixture
async def ledger(client: Client, valkey_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(valkey_url, epoch_us=T0 - HOUR) as opened:
        yield opened


def _cluster(path: Path) -> FileCluster:
    cluster = FileCluster(path)
    for number in range(30):
        cluster.job(
            f"job-{number}", user=f"user-{number % 7}", org=f"org-{number % 3}", preset=("small", "large")[number % 2]
        )
    cluster.job("odd", user='a"b\\c\\n', project="é漢🙂 {x=1}", org="o,r=g")
    cluster.job("app", kind="app", app="vllm", preset="large")
    cluster.job("unpriced", preset="nobody-knows")
    volume = {"id": "v", "org": "org-1", "project": "vision", "user": None, "storage_class": "default"}
    cluster.storage.append({**volume, "bytes": 123_456_789_012})
    cluster.show(T0 + HOUR)
    return cluster


async def test_promtool_finds_nothing_to_complain_about(tmp_path: Path, valkey_url: str, ledger: Ledger) -> None:
    await ledger.accounts.grant("org-0", 10**9, key="k", who="t")
    await ledger.accounts.grant("org-1", 10**9, key="k", who="t", source="gift")
    await ledger.budgets.put("org-1", "vision", "user-1", 10**6, who="t")
    cluster = _cluster(tmp_path / "cluster.json")
    settings = settings_of(tmp_path, valkey_url, cluster.source(), SimulatedSource(name="sim", cluster="sim"))
    async with exporting(settings) as exporter:
        await until(lambda: _is_ready(exporter.url))
        _, text, _ = await get(f"{exporter.url}/metrics")
    families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE credits_")}
    assert len(families) >= 25
    check = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text.encode(), capture_output=True, timeout=60
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


async def test_prometheus_holds_the_ledgers_totals(tmp_path: Path, valkey_url: str, ledger: Ledger) -> None:
    cluster = _cluster(tmp_path / "cluster.json")
    config = tmp_path / "prometheus.yml"
    async with exporting(settings_of(tmp_path, valkey_url, cluster.source())) as exporter:
        target = urlsplit(exporter.url).netloc
        config.write_text(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: credits, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        with prometheus(config, tmp_path / "tsdb") as server:
            for hours in (1, 2, 5):
                cluster.show(T0 + hours * HOUR)
                await until(lambda: _source_mark(ledger, T0 + hours * HOUR))  # noqa: B023
                expected = {key: micro / 1e6 for key, micro in (await spent(ledger)).items()}

                def seen() -> bool:
                    found = server.instant("credits_spent_total", time.time())
                    labels = ("org", "cluster", "project", "user", "kind", "resource", "app")
                    # An empty label is no label to Prometheus.
                    rows = {tuple(dict(k).get(name, "") for name in labels): v for k, v in found.items()}
                    return rows == expected  # noqa: B023

                await until(lambda: asyncio.to_thread(seen))
            assert sum(expected.values()) > 0
            total = await asyncio.to_thread(server.instant, "sum(credits_spent_total)", time.time())
            assert total[()] == pytest.approx(sum(expected.values()), abs=1e-6)
            up = await asyncio.to_thread(server.instant, "min_over_time(up[1m])", time.time())
            assert list(up.values()) == [1.0]


async def _is_ready(url: str) -> bool:
    return (await get(f"{url}/-/ready"))[0] == 200


async def _source_mark(ledger: Ledger, taken_us: int) -> bool:
    return await ledger.charging.source_mark("file") == taken_us
