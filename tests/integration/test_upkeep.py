"""Upkeep as the exporter does it: in a process of its own, on a real server."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.settings import RedisSettings, Retention, Settings
from exporter.upkeep import Upkeep
from ledger import keys
from ledger.clock import now_us
from ledger.verify import verify
from tests.exporter_lab import until
from tests.histories import HOUR
from tests.usage_lab import job, usage_lab

pytestmark = pytest.mark.redis
DAY = 24 * HOUR


async def test_old_details_are_given_up_and_days_added_up(
    valkey_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = now_us() - 100 * DAY
    settings = Settings(path=tmp_path / "settings.yaml", redis=RedisSettings(url=valkey_url), data_dir=tmp_path)
    async with usage_lab(valkey_url, epoch=start) as lab:
        await lab.take(start + 50 * HOUR, [job("a", start, start + 49 * HOUR)])
        await lab.take(start + 100 * DAY, [])
        client: Any = lab.ledger.client
        names = keys.of_org("acme")
        with caplog.at_level(logging.INFO, "exporter"):
            await Upkeep(settings).once()
            assert "days and months added up" in caplog.text
            assert await client.hlen(names.ended) == 1
            await Upkeep(replace(settings, retention=Retention(run_days=62, hour_days=62))).once()
        assert await client.hlen(names.ended) == 0
        assert await client.zcard(names.hours) in (3, 4)
        assert "1 old runs" in caplog.text
        assert (await verify(lab.ledger))["ok"]


async def test_a_failure_is_told_and_harmless(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(
        path=tmp_path / "settings.yaml", redis=RedisSettings(url=f"unix://{tmp_path}/nobody.sock"), data_dir=tmp_path
    )
    running = asyncio.create_task(Upkeep(settings).run(first_seconds=0, every_seconds=0))
    await until(lambda: caplog.text.count("The ledger's upkeep failed: unix://") >= 2)  # and goes on
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
