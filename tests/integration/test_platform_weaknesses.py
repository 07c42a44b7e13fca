"""What goes wrong in the platform's own billing does not here. The codes are those of docs/decisions/0010."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from config.settings import AdmissionSettings, Settings
from enforcer.actions.base import Outcome
from enforcer.app import build_app
from enforcer.metrics import EnforcerMetrics
from enforcer.reaper import Reaper
from enforcer.stages import Policy, Stage
from exporter.books import Books
from exporter.rounds import Rounds
from ledger.admission import AdmissionRequest, Decision
from ledger.model import Code, Observation, RateTable
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from tests.histories import HOUR, T0
from tests.usage_lab import UsageLab, job, usage_lab, volume

pytestmark = pytest.mark.redis

MINUTE = HOUR // 60
SECOND = MINUTE // 60
DAY = 24 * HOUR
CREDIT = 1_000_000


@pytest.fixture
async def lab(valkey_url: str) -> AsyncIterator[UsageLab]:
    async with usage_lab(valkey_url) as opened:
        yield opened


async def spent(lab: UsageLab, org: str = "acme") -> int:
    return (await lab.ledger.accounts.balance(org)).spent_micro


async def grant(lab: UsageLab, amount: int, org: str = "acme") -> None:
    key = f"{org}-{lab.clock[0]}-{amount}"
    await lab.ledger.accounts.grant(org, amount * CREDIT, key=key, who="test", effective_us=T0)


async def admit(lab: UsageLab, **what: Any) -> Decision:
    facts = {"cluster": "default", "org": "acme", "project": "vision", "user": "ann", "preset": "cpu-small"} | what
    return await lab.ledger.admissions.admit(AdmissionRequest(**facts))


async def test_w01_a_rate_cut_takes_back_nothing(lab: UsageLab) -> None:
    await lab.take(T0 + 9 * HOUR, [job("a", T0)])
    before = await spent(lab)
    await lab.publish(T0 + 9 * HOUR, RateTable({"gpu-large": 20_000_000_000}))
    await lab.take(T0 + 10 * HOUR, [job("a", T0)])
    assert (before, await spent(lab)) == (364_500_000, 384_500_000)


async def test_w02_a_pod_that_is_made_anew_adds_to_what_the_first_cost(lab: UsageLab) -> None:
    await lab.take(T0 + HOUR, [job("uid-1", T0)])
    await lab.take(T0 + 2 * HOUR, [job("uid-1", T0, T0 + HOUR), job("uid-2", T0 + HOUR)])
    assert await spent(lab) == 81_000_000


@pytest.mark.parametrize("polls", [1, 3, 100])
async def test_w04_cheap_and_short_work_costs_its_micro_credits(lab: UsageLab, polls: int) -> None:
    await lab.publish(T0, RateTable({"tiny": 10_000_000, "one": 1_000_000_000}))
    end = T0 + 25 * MINUTE
    for number in range(1, polls + 1):
        at = T0 + number * 25 * MINUTE // polls
        over = end if at >= end else None
        short = job("b", T0, min(at, T0 + 17 * SECOND) if at >= T0 + 17 * SECOND else None, preset="one")
        await lab.take(at, [job("a", T0, over, preset="tiny"), short])
    # 25 minutes at 0.01 an hour, 17 seconds at 1 an hour: nothing, where each is rounded to 0.01.
    assert await spent(lab) == 4_166 + 4_722


async def test_w14_three_years_are_one_question_and_their_parts_leave_no_gap(lab: UsageLab) -> None:
    months = 36
    for month in range(1, months + 1):
        await lab.take(T0 + month * 30 * DAY, [job("a", T0, preset="cpu-small")])
    end = T0 + months * 30 * DAY
    total = (await usage(lab.ledger, UsageQuery(from_us=T0, to_us=end))).total_micro
    assert total == await spent(lab) == months * 30 * 24 * CREDIT
    cuts = [T0, *(T0 + part * DAY * 97 + part * SECOND * 1234 for part in range(1, 11)), end]
    parts = [
        (await usage(lab.ledger, UsageQuery(from_us=since, to_us=until))).total_micro
        for since, until in itertools.pairwise(cuts)
    ]
    assert sum(parts) == total


async def test_w22_volumes_are_charged_by_class_as_they_grow_and_shrink_until_they_are_deleted(lab: UsageLab) -> None:
    await lab.publish(T0, RateTable(storage={"default": 1_000_000_000, "fast": 3_000_000_000}))
    fast = Observation("f", "storage", "acme", "vision", "", "fast", bytes=10**9)
    steps: list[tuple[int, list[Observation]]] = [
        (0, [volume("v", 10**9), fast]),
        (1, [volume("v", 4 * 10**9), fast]),  # 1 GB until now
        (2, [volume("v", 2 * 10**9), fast]),  # 4 GB
        (3, [volume("v", 2 * 10**9)]),  # 2 GB; the fast one was last seen an hour ago
        (4, []),
        (5, []),
    ]
    for hour, found in steps:
        await lab.take(T0 + hour * HOUR, found)
    query = UsageQuery(from_us=T0, to_us=T0 + 9 * HOUR, group_by=("kind", "resource"))
    rows = (await usage(lab.ledger, query)).shape()["rows"]
    assert {row["resource"]: row["credits"] for row in rows} == {"default": "7", "fast": "6"}


class Api:
    """The enforcer's API over a ledger with usage of two orgs."""

    def __init__(self, http: TestClient[Any, Any], lab: UsageLab) -> None:
        self.http, self.lab = http, lab

    async def get(self, path: str, token: str | None, **headers: str) -> tuple[int, Any]:
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with self.http.get(path, headers=headers) as response:
            return response.status, json.loads(await response.text())


@pytest.fixture
async def api(lab: UsageLab) -> AsyncIterator[Api]:
    await lab.take(T0 + HOUR, [job("a", T0), job("b", T0, org="beta"), volume("v", 10**12, org="beta")])
    async with TestClient(TestServer(build_app(lab.ledger, Settings(path=Path("settings.yaml"))))) as http:
        yield Api(http, lab)


async def test_w23_an_owner_sees_the_usage_of_the_own_org(api: Api) -> None:
    _, token = await api.lab.ledger.tokens.create("owner", "acme")
    status, answer = await api.get("/v1/usage?group_by=project,user,workload", token)
    assert (status, answer["total"]) == (200, "40.5")
    assert [row["workload"] for row in answer["rows"]] == ["a"]
    assert (await api.get("/v1/orgs/acme/balance", token))[0] == 200


def unsigned(user: str) -> str:
    """What the platform takes for a user's cookie: claims that nobody signed."""
    parts = ({"alg": "none"}, {"identity": user, "role": "admin", "org": "beta"})
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


async def test_w24_no_question_and_no_header_widens_what_a_token_may_see(api: Api) -> None:
    record, owner = await api.lab.ledger.tokens.create("owner", "acme")
    for path in (
        "/v1/usage?org=beta",
        "/v1/usage?org=beta&group_by=workload",
        "/v1/orgs/beta/budgets",
        "/v1/orgs/beta/balance",
        "/v1/orgs/beta/journal",
        "/v1/orgs/beta/statement?month=2026-11",
    ):
        status, answer = await api.get(path, owner, Referer="http://grafana/d/x?var-org=beta", Cookie="dat=beta")
        assert status == 403, path
        assert "rows" not in answer
    # Storage of all orgs, and matchers that match nothing known, are the platform's open doors.
    _, answer = await api.get("/v1/usage?kind=storage&group_by=org,workload", owner)
    assert answer["rows"] == []
    for query in ("user=~.*", 'project="} or x{a="', "cluster=%7B%7D"):
        _, answer = await api.get(f"/v1/usage?group_by=org&{query}", owner)
        assert {row["org"] for row in answer.get("rows", ())} <= {"acme"}, query
    for forged in (unsigned("admin"), owner[:-1] + ("a" if owner[-1] != "a" else "b"), record.id, "", None):
        assert (await api.get("/v1/usage", forged))[0] == 401


async def test_f01_of_many_jobs_at_once_only_those_start_that_can_be_paid(lab: UsageLab) -> None:
    await grant(lab, 1)  # a quarter of an hour at 1 an hour is set aside for each
    decisions = await asyncio.gather(*(admit(lab) for _ in range(50)))
    assert sum(decision.allowed for decision in decisions) == 4
    assert {decision.code for decision in decisions if not decision.allowed} == {Code.NO_CREDITS}


class Scheduler:
    """Counts what is asked of it."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        self.done.append(("signal", workload_id))
        return Outcome.DONE

    suspend = signal

    async def resume(self, workload_id: str) -> Outcome:
        return Outcome.DONE

    async def stop(self, workload_id: str, reason: str) -> Outcome:
        self.done.append(("stop", workload_id))
        await asyncio.sleep(0)
        return Outcome.DONE

    async def close(self) -> None: ...


def reaper_of(lab: UsageLab, scheduler: Scheduler) -> Reaper:
    lab.rounds = Rounds(Books(lab.ledger), lab.rounds.source, hold_us=15 * MINUTE)
    return Reaper(
        lab.ledger, Policy(24 * HOUR, 10 * MINUTE, "stop"), AdmissionSettings(), {"test": scheduler},
        EnforcerMetrics("test"), lambda: lab.clock[0], interval_seconds=15, monotonic=lambda: lab.clock[0],
    )  # fmt: skip


async def test_f02_what_refuses_new_work_is_what_stops_the_old(lab: UsageLab) -> None:
    scheduler = Scheduler()
    reaper = reaper_of(lab, scheduler)
    await grant(lab, 1)
    running = [job("a", T0, preset="cpu-small")]
    # Less than the quarter of an hour that work needs is left from the 45th minute on.
    for minutes, out in ((0, False), (10, False), (46, True), (57, True)):
        await lab.take(T0 + minutes * MINUTE, running)
        await reaper.round()
        state = (await lab.ledger.exhaustion.read("acme")).stages.get("")
        assert out == (not (await admit(lab, dry_run=True)).allowed)
        assert out == (state is not None and state.stage >= Stage.BLOCK)
    assert ("stop", "a") in scheduler.done


async def test_f03_projects_and_their_users_have_budgets_and_forecasts(lab: UsageLab) -> None:
    await grant(lab, 1000)
    await lab.ledger.budgets.put("acme", "vision", None, 10 * CREDIT, who="test", period="month")
    await lab.ledger.budgets.put("acme", "vision", "ann", 1 * CREDIT, who="test", period="day")
    assert (await admit(lab)).allowed
    assert not (await admit(lab, preset="gpu-large")).allowed
    assert (await admit(lab, project="other", preset="gpu-large")).allowed
    reaper = reaper_of(lab, Scheduler())
    await lab.take(T0 + HOUR, [job("a", T0, project="other")])
    await reaper.round()
    balance = await lab.ledger.accounts.balance("acme")
    assert balance.stage == "warn"
    assert balance.exhausted_us is not None
    assert abs(balance.exhausted_us - (T0 + HOUR + 959_500_000 * HOUR // 40_500_000)) <= 1


async def test_f04_work_is_told_and_stopped_before_the_balance_is_negative(lab: UsageLab) -> None:
    scheduler = Scheduler()
    reaper = reaper_of(lab, scheduler)
    await grant(lab, 100)
    running = {f"job-{number}": job(f"job-{number}", T0) for number in range(10)}  # 405 an hour
    at = T0
    while running and at < T0 + HOUR:
        await lab.take(at, list(running.values()))
        await reaper.round()
        for what, name in scheduler.done:
            if what == "stop":
                running.pop(name, None)
        at += 15 * SECOND
    assert not running
    assert (await lab.ledger.accounts.balance("acme")).left_micro >= 0


async def test_f06_suspended_work_that_goes_on_is_set_aside_for_again(lab: UsageLab) -> None:
    reaper_of(lab, Scheduler())
    await grant(lab, 11)
    await lab.take(T0 + MINUTE, [job("a", T0)])
    assert (await lab.ledger.accounts.balance("acme")).held_micro > 10_000_000
    pause = ((T0 + MINUTE, None),)
    await lab.take(T0 + 2 * MINUTE, [job("a", T0, suspended=pause)])
    assert (await lab.ledger.accounts.balance("acme")).held_micro == 0
    assert (await admit(lab, preset="cpu-small")).allowed  # others may use it meanwhile
    await lab.take(T0 + 3 * MINUTE, [job("a", T0, suspended=((T0 + MINUTE, T0 + 3 * MINUTE),))])
    assert (await lab.ledger.accounts.balance("acme")).available_micro <= 0
    assert not (await admit(lab, preset="cpu-small")).allowed


async def test_f07_one_enforcer_stops_each_job_once_and_asks_the_scheduler_for_no_list(lab: UsageLab) -> None:
    scheduler = Scheduler()
    first, second = reaper_of(lab, scheduler), reaper_of(lab, scheduler)
    await grant(lab, 1)
    running = [job(f"job-{number}", T0) for number in range(200)]
    for minutes in (1, 12, 12, 13):
        await lab.take(T0 + minutes * MINUTE, running)
        await asyncio.gather(first.round(), second.round())
    stopped = [name for what, name in scheduler.done if what == "stop"]
    assert sorted(stopped) == sorted(observation.id for observation in running)


async def test_f10_nothing_is_nothing_and_never_unlimited(lab: UsageLab) -> None:
    await lab.ledger.accounts.upsert("acme", who="test")
    assert (await admit(lab)).code is Code.NO_CREDITS
    await grant(lab, 10)
    await lab.ledger.budgets.put("acme", "vision", None, 0, who="test", period="total")
    assert not (await admit(lab)).allowed
    assert (await admit(lab, project="other")).allowed
    await lab.ledger.accounts.upsert("acme", who="test", unlimited=True)
    assert (await admit(lab, project="other", preset="gpu-large")).allowed
