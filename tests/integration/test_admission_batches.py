"""Requests that wait at the same time are decided in one script call, exactly as if each had come by itself."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from redis.exceptions import ResponseError

from ledger import keys
from ledger.admission import AdmissionRequest, Decision, Terms
from ledger.connect import Client, connect
from ledger.hold_ids import new_hold_id
from ledger.lua import Script
from ledger.model import Code, RatePlan, RateTable
from ledger.store import Ledger
from ledger.verify import verify

T0 = 1_795_000_000_000_000
MINUTE = 60_000_000
CREDIT = 1_000_000
PLAN = RatePlan("c", ((0, RateTable({"small": 4_000_000_000, "odd": 1_234_567, "free": 0})),))
ORGS = ("acme", "deep", "nobody", "idle")
"""One that can run dry, one that is unlimited, one that the ledger does not know, one that is not checked."""
Asks = Callable[[Ledger, list[tuple[AdmissionRequest, Terms]]], Awaitable[list[Decision]]]
PROJECTS, USERS, WORKLOADS = ("vision", "text"), ("ann", "bob"), ("1", "2", "3")


class Now:
    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


@dataclass(frozen=True)
class Asked:
    """A request; `hold`, `replaced`: numbers of holds, so that they meet those of other requests."""

    facts: dict[str, Any]
    hold: int
    replaced: int | None
    unknown_org: str

    def request(self) -> AdmissionRequest:
        org = self.facts["org"]
        replaces = None if self.replaced is None else f"{org}.h{self.replaced}"
        return AdmissionRequest(cluster="c", hold_id=f"{org}.h{self.hold}", replaces=replaces, **self.facts)


@dataclass(frozen=True)
class Step:
    """`asked` at the same time, `minutes` after what was before; then perhaps another budget, set elsewhere."""

    asked: list[Asked]
    minutes: int
    budget: tuple[str, str | None, int, str] | None = field(default=None)


asked = st.builds(
    Asked,
    st.fixed_dictionaries(
        {
            "org": st.sampled_from((*ORGS, "acme", "acme")),
            "project": st.sampled_from(PROJECTS),
            "user": st.sampled_from(USERS),
            "preset": st.sampled_from(("small", "small", "odd", "free")),
            "count": st.one_of(st.none(), st.integers(1, 4)),
            "workload_id": st.one_of(st.none(), st.sampled_from(WORKLOADS)),
            "owner": st.one_of(st.none(), st.none(), st.sampled_from(WORKLOADS)),
            "max_runtime_us": st.sampled_from((None, None, 5 * MINUTE)),
            "dry_run": st.sampled_from((False, False, False, True)),
        }
    ),
    st.integers(0, 40),
    st.one_of(st.none(), st.none(), st.integers(0, 40)),
    st.sampled_from(("deny", "deny", "allow")),
)
budget = st.tuples(
    st.sampled_from(PROJECTS), st.one_of(st.none(), st.sampled_from(USERS)), st.integers(0, 8 * CREDIT),
    st.sampled_from(("day", "total")),
)  # fmt: skip
steps = st.lists(
    st.builds(Step, st.lists(asked, min_size=1, max_size=12), st.integers(0, 20), st.one_of(st.none(), budget)),
    min_size=1, max_size=5,
)  # fmt: skip

lapses = st.lists(
    st.builds(Step, st.lists(asked, min_size=4, max_size=8), st.sampled_from((0, 16)), st.none()),
    min_size=2, max_size=4,
)  # fmt: skip
"""Steps between which everything that was held is over, or nothing."""


async def together(ledger: Ledger, requests: list[tuple[AdmissionRequest, Terms]]) -> list[Decision]:
    return await asyncio.gather(*(ledger.admissions.admit(*each) for each in requests))


async def one_by_one(ledger: Ledger, requests: list[tuple[AdmissionRequest, Terms]]) -> list[Decision]:
    return [await ledger.admissions.admit(*each) for each in requests]


def end_one_at_a_time(script: Script) -> None:
    """Have a call end no more than one hold whose time is over."""
    before = script.text
    script.text = before.replace("EXPIRED_AT_ONCE = 500", "EXPIRED_AT_ONCE = 1")
    assert script.text != before
    script.digest = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()


async def lived(
    url: str,
    room: int,
    story: list[Step],
    ask: Asks,
    *,
    ends_few: bool = False,
) -> tuple[list[list[Decision]], list[Any]]:
    """(decisions of each step, all that the ledger then has in holds and sums)."""
    async with connect(url, None) as client:
        await client.flushall()
        return await _lived(client, room, story, ask, ends_few)


async def _lived(
    client: Client,
    room: int,
    story: list[Step],
    ask: Asks,
    ends_few: bool,
) -> tuple[list[list[Decision]], list[Any]]:
    now = Now()
    ledger, other = Ledger(client, T0, now), Ledger(client, T0, now)
    if ends_few:
        end_one_at_a_time(ledger.scripts.admit)
    await ledger.rates.publish(PLAN)
    await ledger.accounts.grant("acme", room or 1, key="k", who="test")
    await ledger.accounts.upsert("deep", who="test", unlimited=True)
    await ledger.accounts.upsert("idle", who="test", policy={"mode": "off"})
    await ledger.admissions.prepare("c")
    decisions = []
    for step in story:
        now.us += step.minutes * MINUTE
        requests = [(each.request(), Terms(unknown_org=each.unknown_org)) for each in step.asked]
        decisions.append(await ask(ledger, requests))
        if step.budget is not None:
            project, user, limit, period = step.budget
            await other.budgets.put("acme", project, user, limit, who="test", period=period)
    report = await verify(ledger)  # ends what is over
    assert report["ok"], report["differences"]
    found: list[Any] = []
    anything: Any = client
    for org in map(keys.of_org, ORGS):
        found.append(await anything.zrange(org.hold_expiry, 0, -1, withscores=True))
        found.extend([await anything.hgetall(name) for name in (org.holds, org.hold_of)])
        sums = await anything.hgetall(org.held)
        found.append({tier: micro for tier, micro in sums.items() if micro != b"0"})  # as if it were not there
    return decisions, found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 12 * CREDIT), steps)
async def test_a_batch_decides_as_its_requests_one_at_a_time(valkey_url: str, room: int, story: list[Step]) -> None:
    expected, state = await lived(valkey_url, room, story, one_by_one)
    decisions, found = await lived(valkey_url, room, story, together)
    assert expected == decisions
    assert state == found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 12 * CREDIT), lapses)
async def test_holds_that_are_over_and_not_ended_yet_change_no_decision(
    valkey_url: str, room: int, story: list[Step]
) -> None:
    expected, state = await lived(valkey_url, room, story, one_by_one)
    decisions, found = await lived(valkey_url, room, story, one_by_one, ends_few=True)
    for step, same in zip(expected, decisions, strict=True):
        for at_once, decision in zip(step, same, strict=True):
            # What is left is not said where it is not known.
            said = decision.allowed and decision.available_micro is None
            like = replace(at_once, available_micro=None, reason=decision.reason) if said else at_once
            assert decision == like
    assert state == found
    await lived(valkey_url, room, story, together, ends_few=True)


def job(**what: object) -> AdmissionRequest:
    facts = {"cluster": "c", "org": "acme", "project": "vision", "user": "ann", "preset": "small", **what}
    return AdmissionRequest(**facts)  # type: ignore[arg-type]


@pytest.fixture
async def ledger(client: Client) -> Ledger:
    ledger = Ledger(client, T0, Now())
    await ledger.rates.publish(PLAN)
    for org in ("acme", "beta"):
        await ledger.accounts.grant(org, 30 * CREDIT, key="k", who="test")
    return ledger


async def calls(client: Any, command: str = "evalsha") -> int:
    stats = await client.info("commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_what_waits_at_the_same_time_shares_one_call_for_each_org(client: Client, ledger: Ledger) -> None:
    await asyncio.gather(*(ledger.admissions.admit(job(org=org)) for org in ("acme", "beta")))
    before = await calls(client)
    decisions = await asyncio.gather(
        *(ledger.admissions.admit(job(org=org, user=f"u{n}")) for n in range(29) for org in ("acme", "beta"))
    )
    assert await calls(client) - before == 2
    assert all(decision.allowed for decision in decisions)


async def test_first_come_first_served_and_the_refused_share_what_is_said_of_their_org(
    client: Client, ledger: Ledger
) -> None:
    await ledger.admissions.admit(job())
    before = await calls(client)
    decisions = await asyncio.gather(*(ledger.admissions.admit(job(user=f"u{n}")) for n in range(50)))
    assert [decision.allowed for decision in decisions] == [True] * 29 + [False] * 21
    assert await calls(client) - before == 2


async def test_one_that_fails_does_not_fail_those_it_shares_a_call_with(client: Client, ledger: Ledger) -> None:
    anything: Any = client
    await ledger.admissions.admit(job())
    await anything.hset(keys.of_org("acme").holds, "acme.broken", "{")
    said = await asyncio.gather(
        *(ledger.admissions.admit(job(replaces="acme.broken" if n == 3 else None)) for n in range(7)),
        return_exceptions=True,
    )
    assert [n for n, each in enumerate(said) if isinstance(each, ResponseError)] == [3]
    assert all(isinstance(each, Decision) and each.allowed for n, each in enumerate(said) if n != 3)
    await anything.hdel(keys.of_org("acme").holds, "acme.broken")
    assert (await ledger.accounts.balance("acme")).held_micro == 7 * CREDIT


async def test_a_server_that_forgot_its_scripts_is_told_them_again(client: Client, ledger: Ledger) -> None:
    anything: Any = client
    await ledger.admissions.admit(job())
    await anything.script_flush()
    decisions = await asyncio.gather(*(ledger.admissions.admit(job(org=org)) for org in ("acme", "beta") * 3))
    assert all(decision.allowed for decision in decisions)
    assert (await ledger.accounts.balance("acme")).held_micro == 4 * CREDIT


async def test_the_same_hold_asked_for_twice_at_once_is_made_once(ledger: Ledger) -> None:
    same = job(hold_id=new_hold_id("acme"), workload_id="7")
    first, second = await asyncio.gather(ledger.admissions.admit(same), ledger.admissions.admit(same))
    assert (first.hold_id, first.replayed, second.hold_id, second.replayed) == (same.hold_id, False, same.hold_id, True)
    assert (await ledger.accounts.balance("acme")).held_micro == CREDIT


async def test_a_last_credit_is_given_once_whatever_else_is_in_the_batch(ledger: Ledger) -> None:
    others = [job(dry_run=True), job(preset="free"), job(org="beta"), job(count=31)]
    decisions = await asyncio.gather(*(ledger.admissions.admit(each) for each in [job()] * 20 + others + [job()] * 20))
    assert sum(decision.allowed for decision in decisions) == 30 + 3  # a question, what costs nothing, and beta's
    assert {decision.code for decision in decisions} == {Code.OK, Code.NO_CREDITS}
