"""Beside an apolo source: pods with a job's label and name are the platform's only if the platform says so."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from unittest.mock import AsyncMock

import pytest

from config.sources import ApoloSource as ApoloSettings
from config.sources import KubernetesSource as KubernetesSettings
from config.values import Secret
from exporter.books import Books
from exporter.rounds import Rounds
from exporter.sources import platform_jobs
from exporter.sources.apolo import ApoloSource
from exporter.sources.base import Source
from exporter.sources.kubernetes import KubernetesSource
from exporter.sources.platform_jobs import Claimant, PlatformJobs
from ledger.errors import LedgerUnavailable
from ledger.store import Ledger
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from ledger.verify import verify
from tests.integration.test_cloud_charges import HOUR, RATES, T0, Time, ledger_of, micro
from tests.standins.apolo_api import ApoloApi, token_of
from tests.standins.faults import Fault
from tests.standins.kube_api import KubeApi, apolo_labels, container_status, pod_body, running

pytestmark = pytest.mark.redis
NONE = "job-11111111-0000-0000-0000-000000000000"


def job_pod(job: str, namespace: str, org: str, created_us: int = T0) -> dict[str, Any]:
    body = pod_body(job, namespace, created_us, apolo_labels(org=org, preset="gpu") | {"platform.apolo.us/job": job})
    body["status"] = {"phase": "Running", "containerStatuses": [container_status(running(created_us))]}
    return body


async def _by_org(ledger: Ledger, until_us: int) -> dict[str, int]:
    query = UsageQuery(from_us=T0 - HOUR, to_us=until_us, group_by=("org",))
    return {row["org"]: int(Decimal(row["credits"]) * 10**6) for row in (await usage(ledger, query)).shape()["rows"]}


async def test_only_pods_of_jobs_that_the_platform_has_there_are_passed_over(valkey_url: str) -> None:
    platform, cluster, time = ApoloApi(), KubeApi(now_us=T0), Time()
    job = platform.add_job(("running", T0), org="acme", preset="gpu")
    home = job.body()["namespace"]
    over = platform.add_job(("running", T0 - HOUR), ("succeeded", T0 - HOUR // 2), org="late", preset="gpu")
    ended = over.body()["namespace"]
    await cluster.put("pods", job_pod(job.id, home, "acme"))
    await cluster.put("pods", job_pod(job.id, "ns-thief", "thief"))
    await cluster.put("pods", job_pod(NONE, "ns-liar", "liar"))
    await cluster.put("pods", job_pod(over.id, ended, "late"))
    async with ledger_of(valkey_url, time) as ledger, platform.serve() as one, cluster.serve() as two:
        apolo = ApoloSettings(name="a", url=one, token=Secret(token_of("meter")), disks=False)
        kubernetes = KubernetesSettings(name="k", url=two, volumes=False)
        gpu = RATES["gpu"]
        expected = {"acme": 0, "thief": 0, "liar": 0, "late": micro(gpu, HOUR // 2)}
        for hours in (1, 2, 3):  # each time by a process of its own
            time.us = T0 + hours * HOUR
            await _round_of_each(ledger, time, apolo, kubernetes)
            for org in ("acme", "thief", "liar"):
                expected[org] = micro(gpu, hours * HOUR)
            assert await _by_org(ledger, time.us) == {**expected, "late": expected["late"] + micro(gpu, hours * HOUR)}
        assert (await ledger.charging.unbillable())["k", "false_job"] == 3
        assert (await verify(ledger))["ok"]


async def _round_of_each(
    ledger: Ledger, time: Time, apolo: ApoloSettings, kubernetes: KubernetesSettings, order: str = "apolo, kubernetes"
) -> None:
    """By a process of its own."""
    books = Books(ledger)
    jobs = ApoloSource(apolo, time)
    pods = KubernetesSource(kubernetes, time, beside=apolo, settle_us=0)
    sources: dict[str, Source] = {"apolo": jobs, "kubernetes": pods}
    try:
        for name in order.split(", "):
            report = await Rounds(books, sources[name], hold_us=0).round()
            assert not report.failed
    finally:
        await jobs.close()
        await pods.close()


@pytest.mark.parametrize(
    ("order", "count", "dies"),
    [
        ("apolo, kubernetes", 1, False),
        ("kubernetes, apolo", 2, False),
        pytest.param("apolo, kubernetes", 2, True, id="and an exporter dies once it has claimed the pods"),
    ],
)
async def test_a_pod_that_outlives_its_jobs_record_is_charged_from_where_the_job_was_charged_to(
    valkey_url: str, order: str, count: int, dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform, cluster, time = ApoloApi(), KubeApi(now_us=T0), Time()
    jobs = [platform.add_job(("running", T0), org="acme", project="ml", preset="gpu") for _ in range(count)]
    for job in jobs:
        await cluster.put("pods", job_pod(job.id, job.body()["namespace"], "acme"))
    async with ledger_of(valkey_url, time) as ledger, platform.serve() as one, cluster.serve() as two:
        apolo = ApoloSettings(name="a", url=one, token=Secret(token_of("meter")), disks=False)
        kubernetes = KubernetesSettings(name="k", url=two, volumes=False)
        for hours in range(1, 6):
            time.us = T0 + hours * HOUR
            cluster.now_us = time.us
            if hours == 3:
                platform.jobs.clear()
                # Never a pod of the job, though it copies all that such a one says of itself.
                copy = job_pod(jobs[0].id, "ns-other", "acme")
                copy["metadata"]["labels"]["platform.apolo.us/project"] = "other"
                await cluster.put("pods", copy)
            if hours == 3 and dies:
                await _round_of_each(ledger, time, apolo, kubernetes, "apolo")
                monkeypatch.setattr(ledger.charging, "commit", AsyncMock(side_effect=LedgerUnavailable()))
                with pytest.raises(LedgerUnavailable):
                    await _round_of_each(ledger, time, apolo, kubernetes, "kubernetes")
                monkeypatch.undo()
            await _round_of_each(ledger, time, apolo, kubernetes, order)
        gpu = RATES["gpu"]
        by_project = UsageQuery(from_us=T0 - HOUR, to_us=time.us, group_by=("project",))
        spent = {
            row["project"]: int(Decimal(row["credits"]) * 10**6)
            for row in (await usage(ledger, by_project)).shape()["rows"]
        }
        ml = count * (micro(gpu, 2 * HOUR) + micro(gpu, 3 * HOUR))
        assert spent == {"ml": ml, "other": micro(gpu, 5 * HOUR)}
        assert (await verify(ledger))["ok"]


@pytest.mark.parametrize("called_as", ["job", "pod"])
async def test_a_pod_that_is_called_like_running_work_does_not_wait_for_its_end(
    valkey_url: str, called_as: str
) -> None:
    """Found late: it may have been of a job by then, but of none that the platform has, and of no pod."""
    platform, cluster, time = ApoloApi(), KubeApi(now_us=T0), Time()
    job = platform.add_job(("running", T0), org="acme", project="ml", preset="gpu")
    uid = "5f0c7c0a-0000-4000-8000-000000000001"
    own = pod_body("own", "ns-own", T0, apolo_labels(org="acme", preset="gpu") | {"platform.apolo.us/project": "ml"})
    own["metadata"]["uid"] = uid
    own["status"] = {"phase": "Running", "containerStatuses": [container_status(running(T0))]}
    await cluster.put("pods", own)
    async with ledger_of(valkey_url, time) as ledger, platform.serve() as one, cluster.serve() as two:
        apolo = ApoloSettings(name="a", url=one, token=Secret(token_of("meter")), disks=False)
        kubernetes = KubernetesSettings(name="k", url=two, volumes=False)
        for hours in (1, 2, 3):
            time.us = cluster.now_us = T0 + hours * HOUR
            if hours == 2:
                copy = job_pod(job.id if called_as == "job" else uid, "ns-other", "acme")
                copy["metadata"]["labels"]["platform.apolo.us/project"] = "ml"
                await cluster.put("pods", copy)
            await _round_of_each(ledger, time, apolo, kubernetes)
        assert (await _by_org(ledger, time.us))["acme"] == 3 * micro(RATES["gpu"], 3 * HOUR)
        assert (await verify(ledger))["ok"]


async def test_a_pod_that_outlives_its_jobs_record_before_pods_were_ever_charged(valkey_url: str) -> None:
    platform, cluster, time = ApoloApi(), KubeApi(now_us=T0), Time()
    job = platform.add_job(("running", T0), org="acme", project="ml", preset="gpu")
    await cluster.put("pods", job_pod(job.id, job.body()["namespace"], "acme"))
    async with ledger_of(valkey_url, time) as ledger, platform.serve() as one, cluster.serve() as two:
        apolo = ApoloSettings(name="a", url=one, token=Secret(token_of("meter")), disks=False)
        kubernetes = KubernetesSettings(name="k", url=two, volumes=False)
        for hours, order in ((1, "apolo"), (2, "apolo"), (3, "apolo, kubernetes"), (4, "apolo, kubernetes")):
            time.us = cluster.now_us = T0 + hours * HOUR
            if hours == 3:
                platform.jobs.clear()
            await _round_of_each(ledger, time, apolo, kubernetes, order)
        gpu = RATES["gpu"]
        assert (await _by_org(ledger, time.us))["acme"] == micro(gpu, 2 * HOUR) + micro(gpu, 2 * HOUR)


@pytest.mark.parametrize("fault", [Fault("/jobs/", silent=True), Fault("/jobs/", status=401)], ids=["silent", "401"])
async def test_while_the_platform_does_not_answer_such_pods_wait_and_nothing_else_does(
    valkey_url: str, fault: Fault
) -> None:
    platform, cluster, time = ApoloApi(), KubeApi(now_us=T0), Time()
    await cluster.put("pods", job_pod(NONE, "ns", "liar"))
    other = pod_body("mine", "ns", T0, apolo_labels(org="acme", preset="gpu"))
    other["status"] = {"phase": "Running", "containerStatuses": [container_status(running(T0))]}
    await cluster.put("pods", other)
    async with ledger_of(valkey_url, time) as ledger, platform.serve() as one, cluster.serve() as two:
        apolo = ApoloSettings(name="a", url=one, token=Secret(token_of("meter")), disks=False)
        pods = KubernetesSource(
            KubernetesSettings(name="k", url=two, volumes=False), time, beside=apolo, settle_us=0, jobs_seconds=0.2
        )
        rounds = Rounds(Books(ledger), pods, hold_us=0)
        try:
            platform.faults.add(fault)
            time.us = T0 + HOUR
            await rounds.round()
            assert await _by_org(ledger, time.us) == {"acme": micro(RATES["gpu"], HOUR)}
            time.us = T0 + 2 * HOUR
            cluster.now_us = time.us
            await rounds.round()
            waits = {} if fault.silent else {"liar": micro(RATES["gpu"], 2 * HOUR)}
            assert await _by_org(ledger, time.us) == {"acme": micro(RATES["gpu"], 2 * HOUR), **waits}
        finally:
            await pods.close()


async def test_many_are_found_in_one_list_and_the_rest_by_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform_jobs, "ASKED_MAX", 3)
    platform = ApoloApi()
    jobs = [platform.add_job(("running", T0)) for _ in range(6)]
    home = jobs[0].body()["namespace"]
    claimants = [Claimant(f"u{number}", job.id, home, T0) for number, job in enumerate(jobs)]
    claimants += [Claimant(f"false-{number}", NONE, home, T0) for number in range(4)]
    async with platform.serve() as url:
        asking = PlatformJobs(ApoloSettings(name="a", cluster="default", url=url, token=Secret(token_of("meter"))))
        try:
            told = await asking.tell(claimants)
            assert {uid for uid, is_of_job in told.items() if is_of_job} == {f"u{number}" for number in range(6)}
            assert sum(not is_of_job for is_of_job in told.values()) == 3, "the fourth in the next round"
            assert platform.faults.count("GET", "/jobs/") == 3
            platform.rights = []
            assert await asking.tell(claimants[:1]) == {"u0": True}, "who may not see it cannot say that it is false"
            platform.faults.add(Fault("/jobs/", status=401, times=10))
            assert await asking.tell(claimants[:1]) == {}
        finally:
            await asking.close()
