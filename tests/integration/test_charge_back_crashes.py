"""Charging back by real exporter processes that are killed between the platform and the ledger."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from ledger.clock import format_time, now_us
from ledger.connect import connect
from tests.standins.apolo_api import ApoloApi, token_of

pytestmark = [pytest.mark.redis, pytest.mark.slow]
HOUR = 3_600_000_000
ORGS = 4


class KillingApi(ApoloApi):
    """Kills the exporter when it has sent so many postings: before the platform took the last one, or after it did,
    and in both cases before the exporter heard of it."""

    def arm(self, after: int, taken: bool) -> None:
        self._left, self._taken = after, taken

    async def _spend(self, request: web.Request) -> web.Response:
        self._left -= 1
        if self._left == 0 and not self._taken:
            os.kill(self.pid, signal.SIGKILL)
            raise web.HTTPServiceUnavailable
        answer = await super()._spend(request)
        if self._left == 0:
            os.kill(self.pid, signal.SIGKILL)
        return answer

    async def run_exporter(self, directory: Path) -> int:
        """One round by a process of its own; its exit code."""
        command = (sys.executable, "-m", "cli.main", "exporter", "--once")
        process = await asyncio.create_subprocess_exec(
            *command, cwd=directory, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.pid = process.pid
        _, errors = await process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), errors.decode()
        return process.returncode


async def test_an_exporter_that_is_killed_at_any_posting_charges_each_amount_once(
    valkey_url: str, tmp_path: Path
) -> None:
    async with connect(valkey_url, None) as client:
        await client.flushall()
    api, now = KillingApi(), now_us()
    start = now - now % HOUR - 3 * HOUR
    async with api.serve() as url:
        (tmp_path / "config").mkdir()
        source = {
            "type": "apolo", "cluster": "default", "url": url, "token": token_of("meter"), "disks": False,
            "charge_back": {"interval_seconds": 60},
        }  # fmt: skip
        settings = {
            "redis": {"url": valkey_url},
            "metering": {"epoch": format_time(start)},
            "sources": [source],
        }
        (tmp_path / "config/settings.yaml").write_text(yaml.safe_dump(settings))
        (tmp_path / "config/rates.yaml").write_text(
            "clusters: {default: {presets: {cpu-small: {credits_per_hour: 1}}}}"
        )
        api.arm(0, taken=False)
        assert await api.run_exporter(tmp_path) == 0  # from here on charges are passed on
        for number in range(ORGS):
            api.add_job(("running", start), org=f"org-{number}")
        killed = 0
        for after, taken in ((1, False), (1, True), (2, True), (1, True), (2, False), (3, True)):
            api.arm(after, taken)
            killed += await api.run_exporter(tmp_path) != 0
        assert killed >= 4, "postings were sent in most runs"
        api.arm(0, taken=False)
        hours = {now_us() // HOUR}
        assert await api.run_exporter(tmp_path) == 0
        hours.add(now_us() // HOUR)  # the last round may have been at either side of a full hour
    passed_on = {Decimal(hour - start // HOUR) for hour in hours}
    assert set(api.spending) == {(f"org-{number}", user) for number in range(ORGS) for user in ("", "alice")}
    assert set(api.spending.values()) <= passed_on
    assert len(set(api.spending.values())) == 1
