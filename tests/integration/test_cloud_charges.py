"""Random histories, served by stand-ins of Apolo and Kubernetes, are charged to the micro-credit."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.sources import ApoloSource as ApoloSettings
from config.sources import KubernetesSource as KubernetesSettings
from config.sources import SlurmSource as SlurmSettings
from config.values import Secret
from exporter.books import Books
from exporter.rounds import Rounds
from exporter.sources.apolo import ApoloSource
from exporter.sources.base import Source, SourceError
from exporter.sources.kubernetes import KubernetesSource
from exporter.sources.slurm import SlurmSource
from ledger.connect import connect
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from tests.standins.apolo_api import ApoloApi, StoredJob, token_of
from tests.standins.kube_api import KubeApi, apolo_labels, container_status, pod_body, running, terminated, text

pytestmark = pytest.mark.redis

T0 = 1_764_000_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
RATES = {"cpu-small": 1_234_567_891, "gpu": 40_500_000_001}
APP_RATE = 2_500_000_003


class Time:
    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


@asynccontextmanager
async def ledger_of(url: str, time: Time) -> AsyncIterator[Ledger]:
    async with connect(url, None) as client:
        await client.flushall()
    async with open_ledger(url, epoch_us=T0 - 24 * HOUR, clock=time) as ledger:
        await ledger.rates.publish(RatePlan("default", ((0, RateTable(RATES, {"vllm": APP_RATE})),)))
        yield ledger


def micro(preset_nano: int, us: int) -> int:
    """What so much time costs, by itself."""
    return preset_nano * us // (1000 * HOUR)


async def spent(ledger: Ledger) -> dict[str, int]:
    return {balance.org: balance.spent_micro for balance in await ledger.accounts.balances() if balance.spent_micro}


def rounds_of(ledger: Ledger, source: Source) -> Rounds:
    return Rounds(Books(ledger), source, hold_us=0)


# Apolo


@dataclass
class JobLife:
    """What happens to a job, at offsets from T0."""

    org: str
    preset: str
    moves: list[tuple[str, int]]
    stored: StoredJob | None = None
    told: int = 0

    def cost(self) -> int:
        us = sum(until - since for (status, since), (_, until) in itertools.pairwise(self.moves) if status == "running")
        return micro(RATES[self.preset], us)


@st.composite
def job_lives(draw: st.DrawFn) -> JobLife:
    steps = draw(st.lists(st.sampled_from(["running", "suspended", "pending"]), max_size=6))
    statuses = ["pending", *steps, draw(st.sampled_from(["succeeded", "failed", "cancelled"]))]
    times = sorted(draw(st.lists(st.integers(0, 5 * HOUR), min_size=len(statuses), max_size=len(statuses))))
    moves = list(zip(statuses, times, strict=True))
    return JobLife(draw(st.sampled_from(["acme", "blue"])), draw(st.sampled_from(sorted(RATES))), moves)


@given(
    lives=st.lists(job_lives(), min_size=1, max_size=6),
    polls=st.lists(st.integers(0, 5 * HOUR), max_size=6),
    data=st.data(),
)
async def test_job_histories_cost_what_the_model_says(
    lives: list[JobLife], polls: list[int], data: st.DataObject, valkey_url: str
) -> None:
    api, time = ApoloApi(), Time()
    async with ledger_of(valkey_url, time) as ledger, api.serve() as url:
        settings = ApoloSettings(
            name="apolo", url=url, token=Secret(token_of("meter")), disks=False, timeout_seconds=5.0
        )
        source = ApoloSource(settings, time, retry_seconds=0.001)
        rounds = rounds_of(ledger, source)
        try:
            for at in [*sorted(polls), 5 * HOUR + 1]:
                time.us = T0 + at
                for life in lives:
                    while life.told < len(life.moves) and life.moves[life.told][1] <= at:
                        status, moved = life.moves[life.told]
                        if life.stored is None:
                            life.stored = api.add_job((status, T0 + moved), org=life.org, preset=life.preset)
                        else:
                            life.stored.move(status, T0 + moved)
                        life.told += 1
                if at <= 5 * HOUR:
                    match data.draw(st.sampled_from(["fine", "fine", "error", "cut", "restart"])):
                        case "error":
                            api.error_after = 0
                        case "cut":
                            api.cut_after = 0
                        case "restart":
                            await source.close()
                            source = ApoloSource(settings, time, retry_seconds=0.001)
                            rounds = rounds_of(ledger, source)
                with suppress(SourceError):
                    await rounds.round()
                api.error_after = api.cut_after = None
            expected: dict[str, int] = {}
            for life in lives:
                expected[life.org] = expected.get(life.org, 0) + life.cost()
            assert await spent(ledger) == {org: cost for org, cost in expected.items() if cost}
            assert (await verify(ledger))["ok"]
        finally:
            await source.close()


# Kubernetes


@dataclass
class PodLife:
    """A pod at offsets in seconds: created, first started, ended, gone. `kind`: how it ends."""

    number: int
    org: str
    preset: str
    app: str
    created: int
    start: int
    end: int
    gone: int
    kind: str
    uid: str = field(default="", compare=False)

    def events(self) -> list[tuple[int, int, int, str]]:
        """(second, number of the pod, order, what happens)"""
        marks = [(self.created, "created"), (self.start, "started")]
        if self.kind == "finishes":
            marks.append((self.end, "finished"))
        return [(at, self.number, order, what) for order, (at, what) in enumerate([*marks, (self.gone, "gone")])]

    def over(self) -> int:
        return self.end if self.kind == "finishes" else self.gone


@st.composite
def pod_lives(draw: st.DrawFn) -> list[PodLife]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        times = sorted(draw(st.lists(st.integers(0, 3 * 3600), min_size=4, max_size=4)))
        org = draw(st.sampled_from(["acme", "blue"]))
        app = draw(st.sampled_from(["", "one", "one", "two"]))
        kind = draw(st.sampled_from(["finishes", "is deleted"]))
        found.append(PodLife(number, org, draw(st.sampled_from(sorted(RATES))), app, *times, kind))
    return found


async def play(api: KubeApi, life: PodLife, what: str) -> None:
    """One event of a pod's life."""
    name, namespace = f"pod-{life.number}", f"ns-{life.org}"
    if what == "gone":
        return await api.delete("pods", namespace, name)
    labels = apolo_labels(org=life.org, preset=life.preset)
    if life.app:
        labels |= {"app.kubernetes.io/instance": life.app, "app.kubernetes.io/name": "vllm"}
    if what == "created":
        await api.put("pods", pod_body(name, namespace, T0 + life.created * SECOND, labels))
        return None
    body: dict[str, Any] = copy.deepcopy(api.objects["pods", namespace, name])
    began = T0 + life.start * SECOND
    if what == "started":
        body["status"] = {"phase": "Running", "containerStatuses": [container_status(running(began))]}
    else:
        state = terminated(began, T0 + life.end * SECOND)
        body["status"] = {"phase": "Succeeded", "containerStatuses": [container_status(state)]}
    await api.put("pods", body)
    return None


async def caught_up(api: KubeApi, source: KubernetesSource) -> None:
    """All watches stand, and that of pods has heard of everything."""
    newest = max((version for version, plural, *_ in api.history if plural == "pods"), default=0)
    async with asyncio.timeout(5):
        while (  # noqa: ASYNC110 - it happens in a server
            int(source.versions()["/api/v1/pods"] or 0) < newest
            or not all(reflector.watching for reflector in source._reflectors)
        ):
            await asyncio.sleep(0.001)


async def full_round(rounds: Rounds, time: Time) -> None:
    """A round up to now: while a watch is cut, rounds go only as far as what is known."""
    async with asyncio.timeout(5):
        while (await rounds.round()).taken_us < time.us:  # noqa: ASYNC110 - it happens in a server
            await asyncio.sleep(0.001)


def app_time(lives: list[PodLife]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """When each app instance had a pod that ran, as disjoint intervals in seconds."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for life in sorted(lives, key=lambda one: one.start):
        if life.app:
            merged = found.setdefault((life.org, life.app), [])
            if merged and life.start <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(merged[-1][1], life.over())
            else:
                merged.append((life.start, life.over()))
    return found


@given(lives=pod_lives(), polls=st.lists(st.integers(0, 3 * 3600), max_size=8), data=st.data())
async def test_pod_histories_cost_what_the_model_says(
    lives: list[PodLife], polls: list[int], data: st.DataObject, valkey_url: str
) -> None:
    api, time = KubeApi(), Time()
    async with ledger_of(valkey_url, time) as ledger, api.serve() as url:
        settings = KubernetesSettings(name="kubernetes", url=url, timeout_seconds=5.0, volumes=False)

        def make() -> KubernetesSource:
            return KubernetesSource(settings, time, settle_us=0, back_off_seconds=0.0001, page=3)

        source = make()
        rounds = rounds_of(ledger, source)
        events = sorted(event for life in lives for event in life.events())
        try:
            await full_round(rounds, time)
            for at in [*sorted(polls), 3 * 3600 + 1]:
                while events and events[0][0] <= at:
                    moment, number, _, what = events.pop(0)
                    time.us = T0 + moment * SECOND
                    await play(api, lives[number], what)
                    if data.draw(st.sampled_from([False, False, False, True])):
                        await api.cut_watches()
                    await caught_up(api, source)
                time.us = T0 + at * SECOND
                await full_round(rounds, time)
                if data.draw(st.sampled_from([False, False, True])):
                    await source.close()
                    source = make()
                    rounds = rounds_of(ledger, source)
                    await full_round(rounds, time)
            expected: dict[str, int] = {}
            for life in lives:
                cost = micro(RATES[life.preset], (life.over() - life.start) * SECOND)
                expected[life.org] = expected.get(life.org, 0) + cost
            assert await spent_by_pods(ledger) == {org: cost for org, cost in expected.items() if cost}
            shares = await spent_by_apps(ledger)
            for (org, app), intervals in app_time(lives).items():
                exact = micro(APP_RATE, sum(until - since for since, until in intervals) * SECOND)
                # Each change of the pod that carries the rate cuts off less than a micro-credit.
                assert exact - len(lives) * 2 <= shares.get((org, f"ns-{org}/{app}"), 0) <= exact
            assert (await verify(ledger))["ok"]
        finally:
            await source.close()


async def test_an_older_pod_that_started_later_takes_over_an_app_without_charging_twice(valkey_url: str) -> None:
    api, time = KubeApi(), Time()
    first = PodLife(0, "acme", "gpu", "one", 57, 462, 2738, 2738, "is deleted")
    older = PodLife(1, "acme", "gpu", "one", 0, 520, 5000, 5000, "is deleted")
    async with ledger_of(valkey_url, time) as ledger, api.serve() as url:
        settings = KubernetesSettings(name="kubernetes", url=url, timeout_seconds=5.0, volumes=False)
        source = KubernetesSource(settings, time, settle_us=0, back_off_seconds=0.0001)
        rounds = rounds_of(ledger, source)
        try:
            await full_round(rounds, time)
            events = sorted([*first.events(), *older.events()])
            for poll in (521, 2738, 5000):
                while events and events[0][0] <= poll:
                    moment, number, _, what = events.pop(0)
                    time.us = T0 + moment * SECOND
                    await play(api, (first, older)[number], what)
                    await caught_up(api, source)
                time.us = T0 + poll * SECOND
                await full_round(rounds, time)
            exact = micro(APP_RATE, (5000 - 462) * SECOND)
            assert exact - 1 <= (await spent_by_apps(ledger))["acme", "ns-acme/one"] <= exact
            assert (await verify(ledger))["ok"]
        finally:
            await source.close()


async def _workloads(ledger: Ledger) -> list[tuple[str, str, str, int]]:
    """(org, id, resource, micro-credits) of every leg of every run."""
    from ledger import keys
    from ledger.org_state import decode_rows
    from ledger.runs import Run

    books = Books(ledger)
    lines = await books.lines("default")
    found = []
    for org in await ledger.accounts.orgs():
        names = keys.of_org(org)
        state = await books.have(org)
        rows = decode_rows(await ledger.client.hgetall(names.rows))
        for data in [*await ledger.client.hvals(names.runs), *await ledger.client.hvals(names.ended)]:
            run = Run.decode(org, data)
            row = rows[run.row]
            run.line = lines(row.kind, row.resource, row.app, run.bills_app)
            cost, _ = run.cumulative(run.charged_until(state.marks.get(run.source)))
            found.append((org, run.id, row.resource, cost // 3_600_000_000_000_000_000_000))
    return found


async def spent_by_pods(ledger: Ledger) -> dict[str, int]:
    found: dict[str, int] = {}
    for org, _, resource, cost in await _workloads(ledger):
        if resource in RATES and cost:
            found[org] = found.get(org, 0) + cost
    return found


async def spent_by_apps(ledger: Ledger) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for org, run, resource, cost in await _workloads(ledger):
        if resource == "vllm":
            found[org, run] = found.get((org, run), 0) + cost
    return found


def slurm_of(directory: Path, time: Time) -> SlurmSource:
    """A Slurm cluster `hpc` with one job of acme on the partition `gpu`, in programs that say so."""
    job = {
        "job_id": 7, "job_state": "RUNNING", "start_time": T0 // SECOND, "end_time": T0 // SECOND + 86400,
        "time_limit": 1440, "account": "acme", "user_name": "ann", "partition": "gpu", "tres_alloc_str": "cpu=1",
    }  # fmt: skip
    config = "ClusterName = lab\nMinJobAge = 300 sec\nAccountingStorageType = (null)\n"
    tree = "lab|acme||root\n"
    says = {"squeue": json.dumps({"jobs": [job], "errors": []}), "sacct": "", "sacctmgr": tree, "scontrol": config}
    for name, words in says.items():
        (directory / f"{name}.out").write_text(words)
        (directory / name).write_text(f"#!/bin/sh\ncat {directory}/{name}.out\n")
        (directory / name).chmod(0o755)
    return SlurmSource(SlurmSettings(name="s", cluster="hpc", bin_dir=directory), time)


async def test_one_wallet_is_drained_by_slurm_apolo_and_kubernetes_together(valkey_url: str, tmp_path: Path) -> None:
    platform, cluster, time = ApoloApi(), KubeApi(), Time()
    job = platform.add_job(("running", T0), org="acme", preset="gpu")
    body = pod_body("pod-1", "ns", T0, apolo_labels(org="acme", preset="cpu-small"))
    body["status"] = {"phase": "Running", "containerStatuses": [container_status(running(T0))]}
    await cluster.put("pods", body)
    labels = apolo_labels(org="acme", preset="gpu") | {"platform.apolo.us/job": job.id}
    same_job = pod_body(job.id, job.body()["namespace"], T0, labels)
    same_job["status"] = body["status"]
    await cluster.put("pods", same_job)
    async with ledger_of(valkey_url, time) as ledger, platform.serve() as one, cluster.serve() as two:
        apolo_settings = ApoloSettings(name="a", url=one, token=Secret(token_of("meter")), disks=False)
        jobs = ApoloSource(apolo_settings, time)
        pods = KubernetesSource(
            KubernetesSettings(name="k", url=two, volumes=False), time, beside=apolo_settings, settle_us=0
        )
        await ledger.rates.publish(RatePlan("hpc", ((0, RateTable({"gpu": 7_000_000_000})),)))
        await ledger.accounts.grant("acme", 100_000_000, key="k", who="test", effective_us=T0 - HOUR)
        books = Books(ledger)
        try:
            for at in (0, HOUR):
                time.us = T0 + at
                for source in (slurm_of(tmp_path, time), jobs, pods):
                    await Rounds(books, source, hold_us=0).round()
            used = micro(RATES["gpu"], HOUR) + micro(RATES["cpu-small"], HOUR) + 7_000_000
            assert await spent(ledger) == {"acme": used}
            assert (await ledger.accounts.balance("acme")).available_micro == 100_000_000 - used
            assert (await verify(ledger))["ok"]
        finally:
            await jobs.close()
            await pods.close()


def test_the_stand_in_writes_times_as_the_api_does():
    assert text(T0) == "2025-11-24T16:00:00Z"
