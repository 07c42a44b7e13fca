"""Stages of exhaustion: warn, block, grace with a signal, suspend or stop; credits that come end it at once."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from config.values import Secret
from enforcer.actions.base import Outcome
from enforcer.metrics import STAGE
from enforcer.notify import EVENT, SIGNATURE, Notifier, sign
from enforcer.stages import Policy, Stage, TierFacts, decide
from exporter import metric_names
from exporter.books import Books
from exporter.rounds import Rounds
from ledger.admission import AdmissionRequest
from ledger.connect import Client
from ledger.exhaustion import TierState
from ledger.model import Kind, Observation, Snapshot
from ledger.store import Ledger
from tests.stages_lab import CREDIT, HOUR, MINUTE, T0, Cluster, Nothing

SUSPEND = Policy(24 * HOUR, 10 * MINUTE, "suspend")
amounts = st.integers(-(10**9), 10**9)


def facts(**what: Any) -> TierFacts:
    given: dict[str, Any] = {"left_micro": 0, "held_micro": 0, "wanted_micro": 0, "burn_micro": 0, "at_us": T0}
    return TierFacts(**{**given, **what})


@given(
    st.integers(0, 4), st.integers(0, 10**9), amounts, st.integers(0, 10**9), st.integers(0, 10**9),
    st.integers(0, 10**9), st.sampled_from(["block", "suspend", "stop"]), st.booleans(),
)  # fmt: skip
def test_nothing_is_acted_upon_without_need_or_on_stale_facts(
    stage: int, need: int, left: int, held: int, wanted: int, burn: int, then: str, fresh: bool
) -> None:
    before = TierState(stage, T0 - HOUR, T0 - MINUTE, need)
    seen = facts(left_micro=left, held_micro=held, wanted_micro=wanted, burn_micro=burn, is_fresh=fresh)
    after = decide(before, seen, Policy(24 * HOUR, 10 * MINUTE, then))
    enough = left >= wanted
    if then == "block" or (enough and stage < Stage.ACT):
        assert after.stage <= Stage.BLOCK
    if after.stage == Stage.ACT and stage != Stage.ACT:
        assert (stage, fresh, enough) == (Stage.GRACE, True, False)  # only after a grace
    if after.stage == Stage.GRACE and stage != Stage.GRACE:
        assert after.until_us == T0 + 10 * MINUTE
    assert decide(after, facts(left_micro=10**12, wanted_micro=wanted, burn_micro=burn), SUSPEND).stage <= Stage.WARN
    assert decide(before, facts(unlimited=True, wanted_micro=wanted), SUSPEND).stage == Stage.NONE


def test_a_budget_that_starts_anew_before_it_runs_out_warns_nobody() -> None:
    soon = facts(left_micro=10 * CREDIT, burn_micro=CREDIT)
    assert decide(TierState(), soon, SUSPEND).stage == Stage.WARN
    renewed = facts(left_micro=10 * CREDIT, burn_micro=CREDIT, ends_us=T0 + 9 * HOUR)
    assert decide(TierState(), renewed, SUSPEND) == TierState()


def test_who_was_warned_is_warned_until_credits_come_or_they_last_clearly_longer() -> None:
    warned = decide(TierState(), facts(left_micro=24 * CREDIT, burn_micro=CREDIT), SUSPEND)
    assert warned.stage == Stage.WARN
    for burn in (0, CREDIT, CREDIT * 9 // 10):
        assert decide(warned, facts(left_micro=24 * CREDIT, burn_micro=burn), SUSPEND) == warned
    assert decide(warned, facts(left_micro=24 * CREDIT, burn_micro=CREDIT // 2), SUSPEND) == TierState(0, T0)
    for burn in (0, CREDIT * 9 // 10):  # a top-up ends it at once
        assert decide(warned, facts(left_micro=25 * CREDIT, burn_micro=burn), SUSPEND) == TierState(0, T0)
    assert decide(warned, facts(left_micro=25 * CREDIT, burn_micro=2 * CREDIT), SUSPEND) == warned


async def test_short_jobs_one_after_the_other_are_one_warning(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(60 * CREDIT)
    for number in range(4):
        cluster.start(str(number))
        assert await cluster.after(5) == Stage.WARN
        cluster.jobs.clear()
        assert await cluster.after(5) == Stage.WARN
    await cluster.grant(1000 * CREDIT)
    assert await cluster.after(1) == Stage.NONE
    assert await cluster.stages() == ["warn", "ok"]


async def test_a_quote_counts_what_runs_beside_it_in_a_budget(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(10_000 * CREDIT, *map(str, range(20)))  # 80 credits an hour
    cluster.jobs["other"] = "q", "u"
    await cluster.ledger.budgets.put("acme", "p", None, 84 * CREDIT, who="test", period="total")
    await cluster.ledger.budgets.put("acme", "q", "u", 20 * CREDIT, who="test", period="total")
    await cluster.after(0)
    asked = AdmissionRequest(cluster="c", org="acme", project="p", user="u", preset="small")
    quote = await cluster.ledger.admissions.quote(asked)
    assert (quote.lasts_us, quote.first_out) == (HOUR, "project")
    quote = await cluster.ledger.admissions.quote(replace(asked, project="q", count=4))
    assert (quote.lasts_us, quote.first_out) == (HOUR, "user")


def test_an_org_may_have_its_own_policy() -> None:
    own = SUSPEND.of_org({"then": "stop", "grace_minutes": 0.5, "warn_hours_left": "x"})
    assert own == Policy(24 * HOUR, MINUTE // 2, "stop")
    assert SUSPEND.of_org({"then": "explode", "grace_minutes": True}) == SUSPEND


async def test_an_org_runs_dry_is_suspended_and_goes_on_after_a_top_up(any_client: Client) -> None:
    cluster = Cluster(any_client)
    await cluster.ledger.accounts.upsert("acme", who="test", contact="billing@example.org")
    await cluster.setup(200 * CREDIT, "1", "2")
    assert await cluster.after(0) == Stage.NONE
    assert await cluster.after(60 * 3) == Stage.WARN  # 176 left at 8 an hour
    assert await cluster.after(60 * 21.5) == Stage.WARN  # 4 left: half an hour
    assert cluster.scheduler.done == []
    assert await cluster.after(16) == Stage.GRACE  # under a quarter of an hour is left
    assert sorted(cluster.scheduler.done) == [("signal", "1"), ("signal", "2")]
    assert "will be suspended at" in cluster.scheduler.reasons[0]
    assert "billing@example.org" in cluster.scheduler.reasons[0]
    assert await cluster.after(5) == Stage.GRACE
    assert (await cluster.ledger.accounts.balance("acme")).stage == "grace"
    assert len(cluster.scheduler.done) == 2  # told once
    assert await cluster.after(5) == Stage.ACT
    assert sorted(cluster.scheduler.done[2:]) == [("suspend", "1"), ("suspend", "2")]
    left = (await cluster.ledger.accounts.balance("acme")).left_micro
    assert left > 0  # before the balance was negative
    for _ in range(3):
        assert await cluster.after(30) == Stage.ACT
    assert len(cluster.scheduler.done) == 4
    assert (await cluster.ledger.accounts.balance("acme")).left_micro == left
    request = AdmissionRequest(cluster="c", org="acme", project="p", user="u", preset="small")
    assert not (await cluster.ledger.admissions.admit(request)).allowed
    await cluster.grant(1000 * CREDIT)
    assert (await cluster.ledger.accounts.balance("acme")).stage == "suspend"
    assert await cluster.after(1) == Stage.NONE
    assert (await cluster.ledger.accounts.balance("acme")).stage == "ok"
    assert sorted(cluster.scheduler.done[4:]) == [("resume", "1"), ("resume", "2")]
    assert await cluster.after(60) == Stage.NONE
    assert (await cluster.ledger.accounts.balance("acme")).left_micro == left + 992 * CREDIT
    assert await cluster.stages() == ["warn", "grace", "suspend", "ok"]
    assert (await cluster.ledger.exhaustion.read("acme")).acted == {}


async def test_stop_ends_what_runs_and_nothing_more(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1", "2")
    assert await cluster.after(0) == Stage.GRACE
    assert await cluster.after(10) == Stage.ACT
    assert sorted(cluster.scheduler.done[2:]) == [("stop", "1"), ("stop", "2")]
    assert await cluster.after(1) <= Stage.BLOCK  # nothing runs any more, so nothing is to be stopped


async def test_a_top_up_in_the_grace_ends_it(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(CREDIT, "1", "2")
    assert await cluster.after(0) == Stage.GRACE
    await cluster.grant(1000 * CREDIT)
    assert await cluster.after(10) == Stage.NONE
    assert {what for what, _ in cluster.scheduler.done} == {"signal"}
    assert (await cluster.ledger.exhaustion.read("acme")).stages == {}


@pytest.mark.parametrize("change", [{"then": "block"}, {"mode": "shadow"}, {"clusters": {"c": "off"}}])
async def test_where_the_policy_says_so_only_new_work_is_refused(client: Client, change: dict[str, Any]) -> None:
    then = change.pop("then", "stop")
    cluster = Cluster(client, then, **change)
    await cluster.setup(CREDIT, "1", "2")
    for minutes in (0, 11, 11):
        await cluster.after(minutes)
    assert cluster.scheduler.done == []


@pytest.mark.parametrize(
    ("modes", "own", "acts"),
    [
        ({"mode": "shadow", "clusters": {"c": "enforce"}}, None, True),
        ({"mode": "shadow"}, "enforce", True),
        ({"mode": "enforce"}, "shadow", False),
        ({"mode": "enforce", "clusters": {"c": "off"}}, "enforce", False),
        ({"mode": "enforce", "clusters": {"c": "shadow"}}, None, False),
    ],
)
async def test_what_runs_is_stopped_where_new_work_is_refused(
    client: Client, modes: dict[str, Any], own: str | None, acts: bool
) -> None:
    cluster = Cluster(client, "stop", **modes)
    await cluster.ledger.accounts.upsert("acme", who="test", policy={} if own is None else {"mode": own})
    await cluster.setup(CREDIT, "1")
    for minutes in (14, 11):
        await cluster.after(minutes)
    assert (("stop", "1") in cluster.scheduler.done) is acts


async def test_nothing_is_stopped_on_stale_facts(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(CREDIT, "1")
    assert await cluster.after(14) == Stage.GRACE
    assert await cluster.after(11, metered=False) == Stage.GRACE
    assert ("stop", "1") not in cluster.scheduler.done
    assert await cluster.after(0) == Stage.ACT
    assert ("stop", "1") in cluster.scheduler.done


async def test_what_fails_is_tried_again(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(CREDIT, "1")
    cluster.scheduler.fails = True
    assert await cluster.after(14) == Stage.GRACE
    for _ in range(9):
        await cluster.after(1)
    cluster.scheduler.fails = False
    assert await cluster.after(1) == Stage.ACT
    assert cluster.scheduler.done == [("signal", "1")]
    assert await cluster.after(10) == Stage.ACT
    assert cluster.scheduler.done == [("signal", "1"), ("suspend", "1")]
    await cluster.grant(1000 * CREDIT)
    cluster.scheduler.fails = True
    assert await cluster.after(1) == Stage.NONE
    cluster.scheduler.fails = False
    assert await cluster.after(1) == Stage.NONE
    assert cluster.scheduler.done[-1] == ("resume", "1")


async def test_what_a_scheduler_cannot_do_is_not_asked_for_again_and_again(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(CREDIT, "1")
    cluster.scheduler.outcome = Outcome.CANNOT
    await cluster.after(14)
    cluster.suspensions["1"] = []
    await cluster.reaper.round()
    cluster.now += 11 * MINUTE
    for _ in range(3):
        await cluster.ledger.charging.set_source_mark("s", cluster.now)
        await cluster.reaper.round()
    assert [what for what, _ in cluster.scheduler.done].count("suspend") == 1


async def test_a_budget_stops_only_its_own_work_until_its_next_period(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(1000 * CREDIT, "1")
    cluster.jobs["2"] = ("other", "u")
    await cluster.ledger.budgets.put("acme", "p", None, 2 * CREDIT, who="test", period="day")
    await cluster.after(16)
    assert cluster.scheduler.done == [("signal", "1")]
    assert "daily budget of project p" in cluster.scheduler.reasons[0]
    await cluster.after(10)
    assert cluster.scheduler.done[1:] == [("suspend", "1")]
    await cluster.after(24 * 60)
    assert cluster.scheduler.done[2:] == [("resume", "1")]


async def test_a_suspension_that_got_no_answer_is_undone_all_the_same(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(CREDIT, "1")
    assert await cluster.after(14) == Stage.GRACE
    cluster.scheduler.fails = True
    assert await cluster.after(10) == Stage.ACT
    cluster.suspensions["1"] = [(cluster.now, None)]  # it was done, only nobody was told
    cluster.scheduler.fails = False
    assert await cluster.after(1) == Stage.ACT
    await cluster.grant(1000 * CREDIT)
    assert await cluster.after(1) == Stage.NONE
    assert cluster.scheduler.done[-1] == ("resume", "1")
    assert (await cluster.ledger.exhaustion.read("acme")).acted == {}


async def test_what_two_tiers_suspended_goes_on_when_the_last_of_them_has_credits(client: Client) -> None:
    cluster = Cluster(client)
    await cluster.setup(2 * CREDIT, "1")
    await cluster.ledger.budgets.put("acme", "p", None, 2 * CREDIT, who="test", period="total")
    await cluster.after(16)
    await cluster.after(10)
    assert ("suspend", "1") in cluster.scheduler.done
    await cluster.ledger.budgets.put("acme", "p", None, 1000 * CREDIT, who="test", period="total")
    assert await cluster.after(1) == Stage.ACT
    assert ("resume", "1") not in cluster.scheduler.done
    await cluster.grant(1000 * CREDIT)
    assert await cluster.after(1) == Stage.NONE
    assert cluster.scheduler.done[-1] == ("resume", "1")


async def test_nothing_is_stopped_for_what_a_silent_source_said_that_nobody_can_act_on(client: Client) -> None:
    cluster = Cluster(client, "stop")
    await cluster.setup(4 * CREDIT, "1")
    silent = Nothing()
    silent.name = "json"
    others = [Observation(f"x{n}", Kind.JOB, "acme", "q", "u", "small", "", T0) for n in range(2)]
    await Rounds(Books(cluster.ledger), silent, 15 * MINUTE).take(Snapshot("json", "c", T0, others), None)
    cluster.rounds = Rounds(Books(cluster.ledger), Nothing(), 15 * MINUTE)
    assert await cluster.after(1) < Stage.BLOCK
    for _ in range(4):
        assert await cluster.after(10) <= Stage.BLOCK  # less than 3 credits are left, but this job needs 1 only
    assert cluster.scheduler.done == []
    assert await cluster.after(5) == Stage.GRACE  # less than 1 is left: what the others say makes no difference
    assert cluster.scheduler.done == [("signal", "1")]


async def test_of_two_enforcers_one_acts(client: Client) -> None:
    one, other = Cluster(client), Cluster(client)
    await one.setup(CREDIT, "1")
    assert await one.reaper.round()
    assert not await other.reaper.round()


class Receiver:
    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.status)


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    async with TestServer(app) as server:
        yield receiver, str(server.make_url("/hook"))


async def test_each_stage_is_told_once_it_is_taken_signed(client: Client, receiver: tuple[Receiver, str]) -> None:
    taker, url = receiver
    notifier = Notifier(Ledger(client, 0), url, Secret(value="s3cret"), first_pause=0.0)
    try:
        cluster = Cluster(client, notifier=notifier)
        await cluster.setup(CREDIT, "1")
        taker.status = 500
        await cluster.after(14)
        taker.status = 200
        await cluster.after(0.1)
        await cluster.after(0.1)
        assert len(taker.got) == 2
        (first, body), (second, again) = taker.got
        assert (first[EVENT], body) == (second[EVENT], again)
        event = json.loads(body)
        assert (event["org"], event["stage"], event["event"]) == ("acme", "grace", first[EVENT])
        seconds, digest = (part.split("=")[1] for part in second[SIGNATURE].split(","))
        assert digest == hmac.new(b"s3cret", f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
        assert sign("s3cret", body, int(seconds)) == second[SIGNATURE]
    finally:
        await notifier.close()


def test_the_metric_is_the_one_dashboards_know() -> None:
    assert metric_names.STAGE.name == STAGE
    assert len(metric_names.STAGES) == len(Stage)


async def test_the_enforcer_looks_by_itself(client: Client, valkey_url: str, tmp_path: Path) -> None:
    from config.settings import load_settings
    from enforcer.app import enforcing

    path = tmp_path / "settings.yaml"
    path.write_text(
        f"redis: {{url: '{valkey_url}'}}\nenforcer: {{listen: '127.0.0.1:0'}}\nmetering: {{interval_seconds: 0.1}}\n"
    )
    ledger = Ledger(client, 0)
    async with enforcing(load_settings(path, {})):
        await ledger.accounts.upsert("acme", who="test")
        async with asyncio.timeout(10):
            while not (await ledger.exhaustion.read("acme")).stages:  # noqa: ASYNC110 - another task writes it
                await asyncio.sleep(0.02)
