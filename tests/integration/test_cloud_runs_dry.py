"""An org runs dry: its Apolo job and its pods are told, and then ended, with the reason; on stale facts nothing is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.settings import AdmissionSettings
from config.sources import ApoloSource as ApoloSettings
from config.sources import KubernetesSource as KubernetesSettings
from config.values import Secret
from enforcer.actions.factory import actions_of
from enforcer.actions.kubernetes import REASON_ANNOTATION
from enforcer.metrics import EnforcerMetrics
from enforcer.reaper import Reaper
from enforcer.stages import Policy
from exporter.books import Books
from exporter.rounds import Rounds
from exporter.sources.apolo import ApoloSource
from exporter.sources.kubernetes import KubernetesSource
from ledger.connect import connect
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger, open_ledger
from tests.standins.apolo_api import ApoloApi, token_of
from tests.standins.kube_api import KubeApi, apolo_labels, container_status, pod_body, running

pytestmark = pytest.mark.redis

T0 = 1_764_000_000_000_000
MINUTE = 60_000_000
HOUR = 60 * MINUTE
CREDIT = 1_000_000
MANAGER = ["job://default", "job://default:manage"]


class Time:
    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


class Site:
    """A job at 40 credits an hour, and an app's pod at 20 (the app itself costs 4), in one org with 20 credits."""

    def __init__(self, ledger: Ledger, platform: ApoloApi, cluster: KubeApi, time: Time, urls: tuple[str, str]) -> None:
        self.time, self.ledger, self.platform, self.cluster = time, ledger, platform, cluster
        apolo = ApoloSettings(name="a", url=urls[0], token=Secret(token_of("meter")), disks=False)
        kubernetes = KubernetesSettings(name="k", url=urls[1], volumes=False)
        books = Books(ledger)
        jobs = ApoloSource(apolo, time)
        pods = KubernetesSource(kubernetes, time, beside=apolo, settle_us=0)
        self.sources = [jobs, pods]
        self.rounds = [Rounds(books, source, hold_us=15 * MINUTE) for source in self.sources]
        self.actions = actions_of([apolo, kubernetes])
        self.reaper = Reaper(
            ledger, Policy(24 * HOUR, 10 * MINUTE, "stop"), AdmissionSettings(), self.actions,
            EnforcerMetrics("test"), time, interval_seconds=15, monotonic=time,
        )  # fmt: skip

    async def at(self, us: int, *, metered: bool = True) -> None:
        """A round of each source as of an instant, if they are metered, and a look of the reaper."""
        self.time.us = self.platform.now_us = self.cluster.now_us = T0 + us
        for rounds in self.rounds if metered else ():
            await rounds.round()
        await self.reaper.round()

    def pod(self) -> dict[str, Any]:
        meta: dict[str, Any] = self.cluster.objects["pods", "ns", "llm-0"]["metadata"]
        return meta

    async def close(self) -> None:
        for one in [*self.sources, *self.actions.values()]:
            await one.close()


@asynccontextmanager
async def running_site(url: str) -> AsyncIterator[Site]:
    platform, cluster, time = ApoloApi(rights=list(MANAGER)), KubeApi(now_us=T0), Time()
    async with connect(url, None) as client:
        await client.flushall()
    async with (
        open_ledger(url, epoch_us=T0 - HOUR, clock=time) as ledger,
        platform.serve() as one,
        cluster.serve() as two,
    ):
        site = Site(ledger, platform, cluster, time, (one, two))
        table = RateTable({"gpu": 40_000_000_000, "cpu-small": 20_000_000_000}, {"vllm": 4_000_000_000})
        await ledger.rates.publish(RatePlan("default", ((0, table),)))
        await ledger.accounts.grant("acme", 20 * CREDIT, key="first", who="test", effective_us=T0 - HOUR)
        await ledger.accounts.upsert("acme", who="test", contact="ann@acme.example")
        platform.add_job(("running", T0), preset="gpu")
        labels = apolo_labels(org="acme", preset="cpu-small") | {
            "app.kubernetes.io/instance": "llm", "app.kubernetes.io/name": "vllm",
        }  # fmt: skip
        body = pod_body("llm-0", "ns", T0, labels)
        body["status"] = {"phase": "Running", "containerStatuses": [container_status(running(T0))]}
        await cluster.put("pods", body)
        try:
            yield site
        finally:
            await site.close()


async def test_an_org_that_runs_dry_is_told_and_then_its_job_is_cancelled_and_its_pod_evicted(valkey_url: str) -> None:
    async with running_site(valkey_url) as site:
        (job,) = site.platform.jobs.values()
        await site.at(0)
        await site.at(15 * MINUTE)  # 16 of 20 credits are gone: less than the next minutes take
        assert job.status == "running"
        assert "ann@acme.example" in site.pod()["annotations"][REASON_ANNOTATION]
        assert "deletionTimestamp" not in site.pod()
        await site.at(24 * MINUTE)
        assert job.status == "running"
        await site.at(25 * MINUTE)
        assert job.statuses[-1][0::2] == ("cancelled", "QuotaExhausted")
        assert "ann@acme.example" in str(job.description)
        assert site.pod()["deletionTimestamp"]
        assert "So this was stopped; it can be submitted again" in site.pod()["annotations"][REASON_ANNOTATION]


async def test_credits_that_come_in_time_leave_everything_running(valkey_url: str) -> None:
    async with running_site(valkey_url) as site:
        (job,) = site.platform.jobs.values()
        await site.at(0)
        await site.at(15 * MINUTE)
        await site.ledger.accounts.grant("acme", 10_000 * CREDIT, key="more", who="test", effective_us=T0 - HOUR)
        await site.at(25 * MINUTE)
        assert job.status == "running"
        assert "deletionTimestamp" not in site.pod()


async def test_nothing_is_stopped_on_what_was_seen_too_long_ago(valkey_url: str) -> None:
    async with running_site(valkey_url) as site:
        (job,) = site.platform.jobs.values()
        await site.at(0)
        await site.at(15 * MINUTE)
        await site.at(40 * MINUTE, metered=False)
        assert job.status == "running"
        assert "deletionTimestamp" not in site.pod()
        # Metered again, it is acted upon.
        await site.at(41 * MINUTE)
        assert job.status == "cancelled"
        assert site.pod()["deletionTimestamp"]


async def test_the_run_of_an_app_is_no_pod_and_costs_no_list(valkey_url: str) -> None:
    async with running_site(valkey_url) as site:
        lists = site.cluster.faults.count("GET", "/api/v1/pods?limit")
        await site.actions["k"].stop("ns/llm", "because")
        assert site.cluster.faults.count("GET", "/api/v1/pods?limit") == lists
