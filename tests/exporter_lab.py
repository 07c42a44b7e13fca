"""Exporters for tests: a scheduler that is a JSON file, settings around it, and a scrape read back."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from config.settings import ExporterSettings, Metering, RedisSettings, Settings
from config.sources import JsonSource, SourceSettings
from config.values import Address
from ledger.clock import format_time, now_us
from ledger.store import Ledger

HOUR = 3_600_000_000
T0 = 1_760_000_400_000_000
"""A full hour, years before any run of the tests."""
RATES = """
clusters:
  default:
    presets: {small: {credits_per_hour: 1}, large: {credits_per_hour: 40.5}}
    apps: {vllm: {credits_per_hour: 2.5}}
    storage: {default: {credits_per_gb_hour: 0.0001}}
"""
Labels = tuple[tuple[str, str], ...]
Series = dict[tuple[str, Labels], Decimal]


@dataclass
class FileCluster:
    """A scheduler whose whole state is one file."""

    path: Path
    cluster: str = "default"
    workloads: list[dict[str, Any]] = field(default_factory=list)
    storage: list[dict[str, Any]] = field(default_factory=list)

    def job(self, name: str, started_us: int = T0, **facts: Any) -> None:
        """List one more job; what is not said is that of a small job of ann."""
        usual = {"kind": "job", "org": "acme", "project": "vision", "user": "ann", "preset": "small"}
        self.workloads.append({"id": name, **usual, "started_at": format_time(started_us), **facts})

    def show(self, taken_us: int) -> None:
        """Put the file in place as of an instant, in one step."""
        document = {
            "cluster": self.cluster,
            "taken_at": format_time(taken_us),
            "workloads": self.workloads,
            "storage": self.storage,
        }
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps(document))
        os.replace(written, self.path)

    def source(self, name: str = "file") -> JsonSource:
        return JsonSource(name=name, cluster=self.cluster, path=self.path)


def settings_of(
    directory: Path, url: str, *sources: SourceSettings, rates: str = RATES, interval_seconds: float = 0.05
) -> Settings:
    """Settings of an exporter on a free port, with its rates in `rates.yaml`."""
    path = directory / "rates.yaml"
    path.write_text(rates)
    return Settings(
        path=directory / "settings.yaml",
        redis=RedisSettings(url=url),
        data_dir=directory / "data",
        rates=path,
        metering=Metering(interval_seconds=interval_seconds, epoch_us=T0 - HOUR),
        sources=sources,
        exporter=ExporterSettings(listen=Address("127.0.0.1", 0)),
    )


async def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    """(status, text, headers) of an answer; nothing is unpacked by the way unless it says how."""
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status, await answer.text(), dict(answer.headers)


async def scrape(url: str) -> Series:
    """All samples: (name, labels sorted) -> value."""
    status, text, _ = await get(f"{url}/metrics")
    assert status == 200
    return parse(text)


def parse(text: str) -> Series:
    """Samples of the classic text format, amounts to the last digit; no series may come twice."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} comes twice"
            found[key] = Decimal(repr(sample.value))
    return found


def value(series: Series, name: str, **labels: str) -> Decimal | None:
    """The one sample of a name with these labels among its own; None if there is none."""
    matches = [v for (n, its), v in series.items() if n == name and labels.items() <= dict(its).items()]
    assert len(matches) < 2, f"{name}{labels} is not one series"
    return matches[0] if matches else None


async def until(condition: Callable[[], Any], seconds: float = 15.0, what: str = "the condition") -> Any:
    """What `condition()` (may be async) gives as soon as it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        await asyncio.sleep(0.01)


async def spent(ledger: Ledger) -> dict[tuple[str, ...], int]:
    """(org, cluster, project, user, kind, resource, app) -> micro-credits, straight from the ledger."""
    found: dict[tuple[str, ...], int] = {}
    for org in await ledger.accounts.orgs():
        state = await ledger.charging.load(org)
        for number, amounts in state.totals.items():
            found[org, *state.rows[number]] = amounts.micro
    return found


def seconds_from_now(seconds: float) -> int:
    """An instant in microseconds."""
    return now_us() + int(seconds * 1e6)
