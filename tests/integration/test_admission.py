"""Admission on a real server: decisions and holds are one step, whoever asks and however often."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import keys
from ledger.admission import AdmissionRequest, Decision, Terms, unit_micro
from ledger.connect import Client, connect
from ledger.hold_ids import new_hold_id, org_of_hold
from ledger.model import Code, RatePlan, RateTable
from ledger.money import COST_DENOMINATOR, HOUR_US, MICRO_MAX, UNIT
from ledger.store import Ledger
from ledger.verify import verify

T0 = 1_795_000_000_000_000
MINUTE = 60_000_000
CREDIT = 1_000_000


class Now:
    def __init__(self, us: int = T0) -> None:
        self.us = us

    def __call__(self) -> int:
        return self.us


async def ledger_of(client: Client, now: Now, nano: int = 4_000_000_000, unpriced: str = "deny") -> Ledger:
    """A ledger where preset `small` costs `nano` an hour: 1 credit for the 15 minutes of a hold."""
    ledger = Ledger(client, T0, now)
    table = RateTable({"small": nano, "free": 0}, {"vllm": 2_000_000_000}, {}, unpriced)
    await ledger.rates.publish(RatePlan("c", ((0, table),)))
    return ledger


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
async def ledger(any_client: Client, now: Now) -> Ledger:
    return await ledger_of(any_client, now)


async def give(ledger: Ledger, credits_micro: int, org: str = "acme", key: str = "k") -> None:
    await ledger.accounts.grant(org, credits_micro, key=key, who="test")


def job(**what: object) -> AdmissionRequest:
    facts = {"cluster": "c", "org": "acme", "project": "vision", "user": "ann", "preset": "small", **what}
    return AdmissionRequest(**facts)  # type: ignore[arg-type]


async def adds_up(ledger: Ledger, org: str = "acme") -> int:
    """What is held; fails unless the ledger agrees with itself."""
    balance = await ledger.accounts.balance(org)
    assert balance.available_micro == (
        balance.granted_micro - balance.expired_micro - balance.spent_micro - balance.held_micro
    )
    report = await verify(ledger)
    assert report["ok"], report["differences"]
    return balance.held_micro


async def test_what_is_needed_is_held_and_no_longer_available(ledger: Ledger) -> None:
    await give(ledger, 10 * CREDIT)
    decision = await ledger.admissions.admit(job())
    assert decision.allowed
    assert (decision.code, decision.required_micro, decision.available_micro) == (Code.OK, CREDIT, 9 * CREDIT)
    assert decision.hold_expires_us == T0 + 15 * MINUTE
    assert decision.hold_id is not None
    assert org_of_hold(decision.hold_id) == "acme"
    assert await adds_up(ledger) == CREDIT


async def test_one_credit_is_and_two_are_set_aside(ledger: Ledger) -> None:
    await give(ledger, 10 * CREDIT)
    one, two = [await ledger.admissions.admit(job(count=count)) for count in (1, 2)]
    assert one.reason == "1 credit is set aside to start; org acme then has 9 credits left."
    assert two.reason == "2 credits are set aside to start; org acme then has 7 credits left."


async def test_what_running_work_wants_beyond_what_is_left_is_no_debt(ledger: Ledger) -> None:
    await give(ledger, 10 * CREDIT)
    client: Any = ledger.client
    await client.hset(keys.of_org("acme").running, "", 12 * CREDIT)
    refused = await ledger.admissions.admit(job())
    balance = await ledger.accounts.balance("acme")
    assert (refused.code, refused.available_micro) == (Code.NO_CREDITS, balance.available_micro) == (Code.NO_CREDITS, 0)
    assert "has no credits left beside what its running work needs" in refused.reason


async def test_a_short_time_limit_needs_less(ledger: Ledger) -> None:
    await give(ledger, CREDIT)
    decision = await ledger.admissions.admit(job(max_runtime_us=3 * MINUTE))
    assert decision.required_micro == 200_000


@given(st.integers(0, 10**15), st.integers(1, 10**13), st.integers(1, 10**11))
def test_what_a_unit_needs_is_rounded_up_and_never_less_than_the_cost(nano: int, limit: int, window: int) -> None:
    micro = unit_micro(nano, limit, window)
    exact = nano * UNIT * min(limit, window)
    assert (micro - 1) * COST_DENOMINATOR < exact <= micro * COST_DENOMINATOR


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 12), st.integers(1, 3), st.sampled_from(["org", "project", "user"]), st.randoms())
async def test_of_many_at_once_exactly_as_many_pass_as_can_be_paid(
    client: Client, fits: int, count: int, tier: str, chance: random.Random
) -> None:
    await client.flushall()
    ledger = await ledger_of(client, Now())
    room = fits * count * CREDIT + chance.randrange(count * CREDIT)
    await give(ledger, room or 1 if tier == "org" else 1000 * CREDIT)
    if tier != "org":
        user = "ann" if tier == "user" else None
        await ledger.budgets.put("acme", "vision", user, room, who="test", period="total")
    second = Ledger(client, T0, Now())  # another process' view
    chosen = [chance.choice((ledger, second)) for _ in range(fits * 2 + 5)]
    decisions = await asyncio.gather(*(each.admissions.admit(job(count=count)) for each in chosen))
    assert sum(decision.allowed for decision in decisions) == fits
    assert {d.tier for d in decisions if not d.allowed} == {tier}
    assert len({d.hold_id for d in decisions if d.allowed}) == fits
    assert await adds_up(ledger) == fits * count * CREDIT


async def test_a_count_is_all_or_nothing(ledger: Ledger) -> None:
    await give(ledger, 5 * CREDIT)
    refused = await ledger.admissions.admit(job(count=6))
    assert (refused.allowed, refused.code, refused.required_micro) == (False, Code.NO_CREDITS, 6 * CREDIT)
    assert await adds_up(ledger) == 0
    assert (await ledger.admissions.admit(job(count=5))).allowed
    assert await adds_up(ledger) == 5 * CREDIT


async def test_a_request_that_is_repeated_holds_once(ledger: Ledger) -> None:
    await give(ledger, 10 * CREDIT)
    asked = job(hold_id=new_hold_id("acme"))
    first, second = await ledger.admissions.admit(asked), await ledger.admissions.admit(asked)
    assert first.hold_id == second.hold_id == asked.hold_id
    assert (first.replayed, second.replayed) == (False, True)
    assert await adds_up(ledger) == CREDIT


async def test_a_workload_has_one_hold(ledger: Ledger) -> None:
    await give(ledger, 3 * CREDIT)
    first = await ledger.admissions.admit(job(workload_id="7", count=2))
    again = await ledger.admissions.admit(job(workload_id="7", count=2))
    assert again.hold_id == first.hold_id
    assert await adds_up(ledger) == 2 * CREDIT
    more = await ledger.admissions.admit(job(workload_id="7", count=3))
    assert more.allowed  # its own hold is free for it
    assert await adds_up(ledger) == 3 * CREDIT
    assert not (await ledger.admissions.admit(job(workload_id="7", count=4))).allowed
    assert await adds_up(ledger) == 3 * CREDIT  # a refused change leaves what there was


async def test_a_changed_job_keeps_its_hold_id_and_count(ledger: Ledger) -> None:
    await give(ledger, 10 * CREDIT)
    await ledger.budgets.put("acme", "text", None, 2 * CREDIT, who="test")
    first = await ledger.admissions.admit(job(count=3))
    changed = job(count=None, replaces=first.hold_id, max_runtime_us=30 * MINUTE // 4)
    half = await ledger.admissions.admit(changed)
    assert (half.hold_id, half.required_micro) == (first.hold_id, 3 * CREDIT // 2)
    assert await adds_up(ledger) == 3 * CREDIT // 2
    assert (await ledger.admissions.admit(changed)).replayed
    moved = await ledger.admissions.admit(job(count=None, replaces=first.hold_id, project="text"))
    assert (moved.code, moved.tier) == (Code.BUDGET_EXHAUSTED, "project")
    assert await adds_up(ledger) == 3 * CREDIT // 2


async def test_a_changed_job_whose_hold_has_ended_is_held_under_its_id_again(ledger: Ledger) -> None:
    """It is the id that the scheduler carries: by no other would the hold be found when the job waits or starts."""
    await give(ledger, 10 * CREDIT)
    first = await ledger.admissions.admit(job())
    assert first.hold_id is not None
    await ledger.admissions.release("acme", first.hold_id)
    changed = job(count=None, replaces=first.hold_id)
    assert (await ledger.admissions.admit(changed)).hold_id == first.hold_id
    assert (await ledger.admissions.admit(changed)).replayed
    assert await adds_up(ledger) == CREDIT


async def test_the_hold_of_an_owner_passes_to_its_parts(ledger: Ledger) -> None:
    await give(ledger, 3 * CREDIT)
    owner = await ledger.admissions.admit(job(workload_id="owner", count=2))
    assert owner.allowed
    for part in ("one", "two", "three"):
        assert (await ledger.admissions.admit(job(workload_id=part, owner="owner"))).allowed
    assert await adds_up(ledger) == 3 * CREDIT
    assert not (await ledger.admissions.admit(job(workload_id="four", owner="owner"))).allowed


async def test_release_gives_back_once(ledger: Ledger) -> None:
    await give(ledger, CREDIT)
    decision = await ledger.admissions.admit(job())
    assert decision.hold_id is not None
    assert await ledger.admissions.release("acme", decision.hold_id) == CREDIT
    assert await ledger.admissions.release("acme", decision.hold_id) is None
    assert await adds_up(ledger) == 0


async def test_holds_of_work_that_costs_nothing_end_like_others(ledger: Ledger, now: Now) -> None:
    await give(ledger, CREDIT)
    released, _ = [await ledger.admissions.admit(job(preset="free")) for _ in range(2)]
    assert await ledger.admissions.release("acme", released.hold_id or "") == 0
    now.us += 15 * MINUTE
    assert (await ledger.admissions.admit(job())).allowed
    assert await adds_up(ledger) == CREDIT


async def test_a_hold_ends_by_the_clock(ledger: Ledger, now: Now) -> None:
    await give(ledger, CREDIT)
    assert (await ledger.admissions.admit(job())).allowed
    now.us += 15 * MINUTE - 1000
    assert not (await ledger.admissions.admit(job())).allowed
    now.us += 1000
    assert (await ledger.admissions.admit(job())).allowed
    assert await adds_up(ledger) == CREDIT


async def test_a_dry_run_holds_nothing(ledger: Ledger) -> None:
    await give(ledger, CREDIT)
    decision = await ledger.admissions.admit(job(dry_run=True))
    assert (decision.allowed, decision.hold_id, decision.available_micro) == (True, None, CREDIT)
    assert await adds_up(ledger) == 0


async def test_an_unknown_org_is_refused_or_let_pass(ledger: Ledger) -> None:
    assert (await ledger.admissions.admit(job(org="nobody"))).code == Code.UNKNOWN_ORG
    assert (await ledger.admissions.admit(job(org="nobody"), Terms(unknown_org="allow"))).allowed


async def test_an_unlimited_org_needs_nothing_but_its_budgets(ledger: Ledger) -> None:
    await ledger.accounts.upsert("acme", who="test", unlimited=True)
    assert (await ledger.admissions.admit(job(count=1000))).allowed
    await ledger.budgets.put("acme", "vision", "ann", 1, who="test")
    assert (await ledger.admissions.admit(job())).tier == "user"


async def test_more_than_can_be_counted_is_not_affordable(ledger: Ledger) -> None:
    await ledger.accounts.upsert("acme", who="test", unlimited=True)
    decision = await ledger.admissions.admit(job(count=2**31), Terms(hold_us=10**13))
    assert (decision.code, decision.required_micro > MICRO_MAX) == (Code.NO_CREDITS, True)
    assert await adds_up(ledger) == 0


async def test_what_has_no_rate_is_refused_with_a_near_miss(ledger: Ledger) -> None:
    await give(ledger, CREDIT)
    decision = await ledger.admissions.admit(job(preset="smal"))
    assert decision.code == Code.UNPRICED
    assert "Did you mean small?" in decision.reason


async def test_what_has_no_rate_is_free_where_the_cluster_says_so(client: Client) -> None:
    ledger = await ledger_of(client, Now(), unpriced="free")
    await ledger.accounts.upsert("acme", who="test")
    decision = await ledger.admissions.admit(job(preset="other"))
    assert (decision.allowed, decision.required_micro) == (True, 0)


async def test_an_app_costs_its_own_rate_beside_the_preset(ledger: Ledger) -> None:
    await give(ledger, 10 * CREDIT)
    both = await ledger.admissions.admit(job(kind="app", app="vllm"))
    alone = await ledger.admissions.admit(job(kind="app", app="vllm", preset=None))
    assert (both.required_micro, alone.required_micro) == (1_500_000, 500_000)


async def test_budgets_of_several_periods_all_count(ledger: Ledger) -> None:
    await give(ledger, 100 * CREDIT)
    await ledger.budgets.put("acme", "vision", None, 5 * CREDIT, who="test", period="month")
    await ledger.budgets.put("acme", "vision", None, 2 * CREDIT, who="test", period="day", timezone="Europe/Berlin")
    decision = await ledger.admissions.admit(job(count=3))
    assert (decision.code, decision.tier, decision.available_micro) == (Code.BUDGET_EXHAUSTED, "project", 2 * CREDIT)
    assert "daily budget of project vision" in decision.reason
    assert "(Europe/Berlin)" in decision.reason
    removed = await ledger.budgets.remove("acme", "vision", None, who="test", period="day")
    assert [budget.period for budget in removed] == ["day"]
    assert (await ledger.admissions.admit(job(count=3))).allowed


async def test_a_budget_set_by_another_process_counts_at_once(client: Client) -> None:
    one, other = await ledger_of(client, Now()), Ledger(client, T0, Now())
    await give(one, 100 * CREDIT)
    assert (await one.admissions.admit(job())).allowed
    await other.budgets.put("acme", "vision", "ann", CREDIT, who="test")
    assert not (await one.admissions.admit(job())).allowed


async def test_the_mode_off_of_an_org_asks_nothing(ledger: Ledger) -> None:
    await ledger.accounts.upsert("acme", who="test", policy={"mode": "off"})
    decision = await ledger.admissions.admit(job())
    assert (decision.allowed, decision.policy_mode, decision.hold_id) == (True, "off", None)


async def test_a_refusal_names_whom_to_ask(ledger: Ledger) -> None:
    await ledger.accounts.upsert("acme", who="test", contact="billing@example.org")
    await give(ledger, CREDIT // 2)
    decision = await ledger.admissions.admit(job())
    assert decision.reason == (
        "Org acme has 0.5 credits left; this needs 1 credit to start. Ask billing@example.org for credits."
    )


async def test_a_quote_says_what_it_costs_and_how_long_it_lasts(ledger: Ledger) -> None:
    await give(ledger, 8 * CREDIT)
    await ledger.budgets.put("acme", "vision", "ann", 6 * CREDIT, who="test", period="total")
    quote = await ledger.admissions.quote(job(max_runtime_us=HOUR_US, count=2))
    assert (quote.hour_micro, quote.total_micro) == (8 * CREDIT, 8 * CREDIT)
    assert (quote.lasts_us, quote.first_out) == (3 * HOUR_US // 4, "user")
    assert await adds_up(ledger) == 0


async def test_a_call_that_was_given_up_tells_its_answer(client: Client) -> None:
    ledger = await ledger_of(client, Now())
    await give(ledger, CREDIT)
    await ledger.admissions.prepare("c")
    late: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
    await client.execute_command("CLIENT", "PAUSE", "150", "ALL")
    with pytest.raises(asyncio.TimeoutError):
        async with asyncio.timeout(0.05):
            await ledger.admissions.admit(job(), on_late=late.set_result)
    # Its budgets were being read when it was given up, or the hold was being made: both may be.
    async with asyncio.timeout(5):
        decision = await ledger.admissions.admit(job())
    assert decision.allowed != late.done()


async def test_holds_have_what_rounds_need(ledger: Ledger) -> None:
    await give(ledger, CREDIT)
    decision = await ledger.admissions.admit(job(max_runtime_us=MINUTE, workload_id="9"))
    client: Any = ledger.client
    holds = await client.hgetall(keys.of_org("acme").holds)
    hold = msgspec.json.decode(holds[(decision.hold_id or "").encode()])
    assert (hold["left"], hold["limit_us"], hold["workload"]) == ("1", MINUTE, f"c{keys.US}9")


@pytest.mark.parametrize("org", ["acme", "Ärzte & Söhne", "x" * 253, "a.b", "{x}", "é" * 100])
def test_a_hold_id_tells_its_org(org: str) -> None:
    hold = new_hold_id(org)
    assert len(hold) <= 200
    assert all(char.isascii() and (char.isalnum() or char in "_.:-") for char in hold)
    assert org_of_hold(hold, ["acme", org]) == org


@pytest.mark.parametrize("text", ["", ".", "a.", ":%%.x", "::00.x", "a b.c", ":" + "A" * 300 + ".x", ":_w.x"])
def test_what_is_no_hold_id_has_no_org(text: str) -> None:
    assert org_of_hold(text, []) is None


async def test_any_cluster_and_slots(client: Client, valkey_url: str) -> None:
    """Many orgs in one pipeline."""
    async with connect(valkey_url, None) as other:
        ledger = await ledger_of(other, Now())
        orgs = [f"org-{n}" for n in range(50)]
        await asyncio.gather(*(give(ledger, CREDIT, org) for org in orgs))
        decisions: list[Decision] = await asyncio.gather(
            *(ledger.admissions.admit(job(org=org)) for org in orgs for _ in range(2))
        )
        assert sum(decision.allowed for decision in decisions) == 50
