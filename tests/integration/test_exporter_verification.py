"""The exporter's check of the ledger, in its process of its own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from exporter.app import run_once
from exporter.health import LedgerHealth
from exporter.operations import Operations
from exporter.verification import Verification, drift
from ledger import keys
from ledger.connect import Client
from ledger.store import Ledger, open_ledger
from tests.exporter_lab import HOUR, T0, FileCluster, parse, settings_of, until, value

pytestmark = pytest.mark.redis


@pytest.fixture
async def ledger(client: Client, valkey_url: str, tmp_path: Path) -> AsyncIterator[Ledger]:
    async with open_ledger(valkey_url, epoch_us=T0 - HOUR) as opened:
        await opened.accounts.grant("acme", 10**9, key="k", who="t")
        cluster = FileCluster(tmp_path / "cluster.json")
        cluster.job("a")
        cluster.show(T0 + HOUR)
        await run_once(settings_of(tmp_path, valkey_url, cluster.source()))
        yield opened


def shown(check: Verification) -> Any:
    registry = CollectorRegistry()
    registry.register(Operations([], LedgerHealth(), lambda: (True, 0), check))
    return parse(generate_latest(registry).decode())


async def test_a_ledger_that_agrees_has_no_drift(tmp_path: Path, valkey_url: str, ledger: Ledger) -> None:
    check = Verification(valkey_url, tmp_path, lambda: 1_700_000_000_000_000)
    assert value(shown(check), "credits_ledger_drift") is None
    await check.check()
    assert value(shown(check), "credits_ledger_drift") == 0
    assert value(shown(check), "credits_ledger_verified_timestamp_seconds") == 1_700_000_000


async def test_the_largest_difference_is_the_drift(
    tmp_path: Path, valkey_url: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    client: Any = ledger.client
    await client.hincrby(keys.of_org("acme").org, "spent", 1_500_000)
    check = Verification(valkey_url, tmp_path)
    await check.check()
    assert value(shown(check), "credits_ledger_drift") == pytest.approx(1.5)
    assert any("org acme: spent" in r.getMessage() for r in caplog.records)


def test_a_difference_that_is_no_amount_is_drift_as_well() -> None:
    assert drift([]) == 0
    assert drift([{"credits": None}]) == 1
    assert drift([{"credits": "-2.5"}, {"credits": "1"}, {"credits": None}]) == 2_500_000


async def test_a_check_that_fails_is_told_and_leaves_the_last_outcome(
    tmp_path: Path, valkey_url: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    check = Verification(f"unix://{tmp_path}/nobody.sock", tmp_path)
    running = asyncio.create_task(check.run(first_seconds=0))
    await until(lambda: "The ledger's check failed: unix://" in caplog.text)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert "nobody.sock" in caplog.text
    assert check.checked_us is None


async def test_a_check_under_way_ends_with_its_exporter(tmp_path: Path, make_server: Any) -> None:
    server = make_server()
    os.kill(server.pid, 19)  # SIGSTOP: the child waits for an answer
    running = asyncio.create_task(Verification(server.url, tmp_path).run(first_seconds=0))
    await until(lambda: len(_children()) > 0)
    (child,) = _children()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not os.path.exists(f"/proc/{child}")  # noqa: ASYNC240


def _children() -> list[int]:
    """Checks that this process has started."""
    pids = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return [int(pid) for pid in pids if b"exporter.verification" in Path(f"/proc/{pid}/cmdline").read_bytes()]
