"""Work starts if eligible grants can cover it beside all that is held, owed and running: against a maximum flow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import keys
from ledger.admission import AdmissionRequest, Decision, Terms
from ledger.connect import Client
from ledger.lua import text
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.org_state import Row
from ledger.plan import Plan
from ledger.scopes import Scope, class_field
from ledger.store import Ledger
from ledger.verify import verify
from tests.flow import Demand, Supply, Work, max_flow
from tests.histories import MINUTE, T0
from tests.integration.test_admission_crashes import ask_from, in_agreement, prepared
from tests.integration.test_charges_equal_the_model import bench

pytestmark = pytest.mark.redis

CREDIT = 1_000_000
CLUSTERS, PRESETS = ("one", "two"), ("small", "large")
WORKS = tuple((cluster, preset) for cluster in CLUSTERS for preset in PRESETS)


def may_start(supplies: Sequence[Supply], demands: Sequence[Demand], job: Demand) -> bool:
    """Whether all of it and the job can be covered. Where it cannot be without the job: what has too little counts
    against the grants that the job may use."""
    asked = [*demands, job]
    plain = max_flow(supplies, [(work, amount, work) for work, amount in asked]) == sum(a for _, a in asked)
    strict = max_flow(supplies, [(work, amount, job[0]) for work, amount in asked]) == sum(a for _, a in asked)
    if max_flow(supplies, [(work, amount, work) for work, amount in demands]) == sum(a for _, a in demands):
        assert plain == strict
    return strict


scopes = st.builds(
    lambda presets, clusters: Scope(tuple(sorted(presets)), tuple(sorted(clusters))),
    st.frozensets(st.sampled_from(PRESETS), max_size=1), st.frozensets(st.sampled_from(CLUSTERS), max_size=1),
).map(lambda scope: scope if any(scope) else None)  # fmt: skip
works = st.sampled_from(WORKS)
acts = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), st.integers(1, 40), scopes),
        st.tuples(st.just("admit"), works, st.integers(1, 15), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("admit"), works, st.integers(1, 15), st.integers(1, 3), st.just(False)),
        st.tuples(st.just("run"), st.dictionaries(works, st.integers(1, 20))),
        st.tuples(st.just("use"), works, st.integers(1, 20)),
        st.tuples(st.just("line"), st.integers(0, 20)),
        st.tuples(st.just("release"), st.integers(0, 9)),
    ),
    min_size=4, max_size=24,
)  # fmt: skip


async def setup(ledger: Ledger) -> None:
    table = RateTable(presets=dict.fromkeys(PRESETS, 60_000_000_000))  # a credit a minute
    for cluster in CLUSTERS:
        await ledger.rates.publish(RatePlan(cluster, ((0, table),)))


@given(acts=acts)
async def test_admission_is_a_maximum_flow(acts: list[tuple], valkey_url: str) -> None:  # type: ignore[type-arg]
    clock, names = [T0], count()
    holds: dict[str, Demand] = {}
    running: dict[Work | None, int] = {}
    line = 0
    async with bench(valkey_url, clock) as it:
        ledger = it.ledger
        await setup(ledger)
        await ledger.accounts.upsert("acme", who="test")
        for act, *arguments in acts:
            if act == "grant":
                amount, scope = arguments
                presets, clusters = scope or ((), ())
                await ledger.accounts.grant(
                    "acme", amount * CREDIT, key=f"{next(names):03}", who="t", presets=presets, clusters=clusters
                )
            elif act == "run":
                state = await ledger.charging.load("acme")
                running = {work if state.is_scoped else None: 0 for work in arguments[0]}
                fields: dict[str, int] = {}
                for work, amount in arguments[0].items():
                    running[work if state.is_scoped else None] += amount
                    for field in ("", class_field(*work)) if state.is_scoped else ("",):
                        fields[field] = fields.get(field, 0) + amount * CREDIT
                assert await ledger.charging.commit(Plan("acme", "s", taken_us=clock[0], running=fields), state)
            elif act == "use":
                (cluster, preset), amount = arguments
                state = await ledger.charging.load("acme")
                before = len(state.rows)
                plan = Plan("acme", "s", taken_us=clock[0])
                row = state.row_number(Row(cluster, "p", "u", "job", preset, ""))
                plan.new_rows += [row] if row == before else []
                plan.add((clock[0], clock[0] + MINUTE), row, amount * CREDIT, MINUTE)
                assert await ledger.charging.commit(plan, state)
            elif act == "line":
                line = arguments[0]
                await ledger.accounts.upsert("acme", who="test", credit_line_micro=line * CREDIT)
            elif act == "release":
                if holds:
                    hold = sorted(holds)[arguments[0] % len(holds)]
                    assert await ledger.admissions.release("acme", hold) == holds.pop(hold)[1] * CREDIT
            else:
                work, minutes, units, is_dry = arguments
                request = AdmissionRequest(
                    cluster=work[0], org="acme", preset=work[1], max_runtime_us=minutes * MINUTE, count=units,
                    dry_run=is_dry, hold_id=f"acme.{next(names):03}",
                )  # fmt: skip
                supplies, owed = await _state(ledger)
                demands = [*holds.values(), *running.items(), *owed]
                expected = may_start([*supplies, (None, line)], demands, (work, minutes * units))
                decision = await ledger.admissions.admit(request, Terms(hold_us=15 * MINUTE))
                assert decision.allowed == expected, decision
                if decision.hold_id:
                    holds[decision.hold_id] = work, minutes * units
        differences = (await verify(ledger))["differences"]
        assert [d for d in differences if d["what"].startswith(("granted", "spent", "grant ", "held", "to be"))] == []


async def _state(ledger: Ledger) -> tuple[list[Supply], list[Demand]]:
    """What grants have left, and what is owed for which work, as they are stored (another test proves these)."""
    await ledger.accounts.balance("acme")
    supplies: list[Supply] = []
    for entry in (await ledger.client.hgetall(keys.of_org("acme").purse)).values():
        _, _, left, *scope = entry.split(b"|", 3)
        supplies.append((Scope.decode(scope[0]) if scope else None, int(left) // CREDIT))
    balance = await ledger.accounts.balance("acme")
    fields = await ledger.client.hmget(keys.of_org("acme").org, ["debt", "debts"])
    owed: list[Demand] = [(None, int(fields[0] or 0) // CREDIT)]
    for name, debt in json.loads(fields[1] or "{}").items():
        _, cluster, preset = name.split("\x1f")
        owed.append(((cluster, preset), int(debt.split("|")[0]) // CREDIT))
    assert sum(amount for _, amount in owed) * CREDIT == balance.owed_micro
    return supplies, owed


async def _ask(ledger: Ledger, preset: str, units: int = 1, **what: Any) -> Decision:
    request = AdmissionRequest(cluster="one", org="acme", preset=preset, max_runtime_us=MINUTE, count=units, **what)
    return await ledger.admissions.admit(request, Terms(hold_us=15 * MINUTE))


async def test_a_hold_that_is_replaced_counts_as_free_for_its_own_class_only(valkey_url: str) -> None:
    async with bench(valkey_url, [T0]) as it:
        ledger = it.ledger
        await setup(ledger)
        await ledger.accounts.grant("acme", 4 * CREDIT, key="any", who="t")
        before = await _ask(ledger, "small", 4, workload_id="early")
        assert before.allowed
        # Holds that were there before the first restricted grant are told apart, too.
        await ledger.accounts.grant("acme", 6 * CREDIT, key="large", who="t", presets=["large"])
        assert (await _ask(ledger, "small", 5, workload_id="early")).code == "no_credits"
        assert (await _ask(ledger, "large", 7)).code == "no_credits"
        large = await _ask(ledger, "large", 6, workload_id="late")
        assert (large.allowed, large.available_micro) == (True, 0)
        assert (await _ask(ledger, "large", 6, workload_id="late")).replayed
        # What the other one gives up can be had by any work, what a restricted grant holds cannot.
        assert (await _ask(ledger, "small", 4, workload_id="late")).code == "no_credits"
        assert (await _ask(ledger, "large", 4, workload_id="early")).hold_id is not None
        assert (await _ask(ledger, "small", 4)).code == "no_credits"
        assert await ledger.admissions.release("acme", large.hold_id or "") == 6 * CREDIT
        assert (await _ask(ledger, "small", 4)).allowed
        held = await ledger.client.hgetall(keys.of_org("acme").held)
        assert {int(held[class_field("one", p).encode()]) for p in ("small", "large")} == {4 * CREDIT}
        assert (await verify(ledger))["ok"]


async def test_a_quote_says_what_is_there_for_such_work(valkey_url: str) -> None:
    async with bench(valkey_url, [T0]) as it:
        ledger = it.ledger
        await setup(ledger)
        await ledger.accounts.grant("acme", 10 * CREDIT, key="any", who="t")
        await ledger.accounts.grant("acme", 6 * CREDIT, key="large", who="t", presets=["large"])
        await ledger.accounts.grant("acme", 3 * CREDIT, key="two", who="t", clusters=["two"])

        async def there(cluster: str, preset: str) -> tuple[int, int]:
            asked = AdmissionRequest(cluster=cluster, org="acme", preset=preset)
            quote = await ledger.admissions.quote(asked)
            assert quote.left_micro is not None
            assert quote.available_micro is not None
            return quote.left_micro // CREDIT, quote.available_micro // CREDIT

        assert [await there(*work) for work in WORKS] == [(10, 10), (16, 16), (13, 13), (19, 19)]
        assert (await _ask(ledger, "large", 8)).allowed  # 6 of its own grant, 2 of the one for any
        assert [await there(*work) for work in WORKS] == [(10, 8), (16, 8), (13, 11), (19, 11)]
        await ledger.accounts.upsert("acme", who="t", credit_line_micro=2 * CREDIT)
        assert await there("one", "small") == (10, 8)  # a line is nothing that is left


async def test_a_refusal_says_what_is_left_for_other_work_and_that_the_line_is_used_up(valkey_url: str) -> None:
    async with bench(valkey_url, [T0]) as it:
        ledger = it.ledger
        await setup(ledger)
        await ledger.accounts.grant("acme", 6 * CREDIT, key="k", who="t", presets=["large"], clusters=["one", "two"])
        said = await _ask(ledger, "small")
        assert (said.code, said.available_micro) == ("no_credits", 0)
        assert said.reason.startswith(
            "Org acme has no credits left for this (what else is left is restricted: 6 credits for preset large in "
            "clusters one, two); this needs 1 credit to start."
        )
        quote = await ledger.admissions.quote(AdmissionRequest(cluster="one", org="acme", preset="small"))
        assert (quote.lasts_us, quote.first_out) == (0, "org")
        assert (quote.left_micro, quote.available_micro) == (0, 0)
        await ledger.accounts.upsert("acme", who="t", credit_line_micro=2 * CREDIT)
        assert (await _ask(ledger, "large", 7)).allowed
        refused = await _ask(ledger, "large", 2)
        assert refused.reason.startswith("Org acme has 1 credit of its credit line of 2 left; this needs 2 credits")
        assert (await _ask(ledger, "small", 1)).allowed
        refused = await _ask(ledger, "large", 1)
        assert refused.reason.startswith(
            "Org acme has used up its credits and its credit line of 2 credits; this needs"
        )
        balance = await ledger.accounts.balance("acme")
        assert (balance.available_micro, balance.credit_line_micro, balance.stage) == (-2 * CREDIT, 2 * CREDIT, "block")


async def test_a_storage_charge_is_not_paid_by_a_grant_for_presets(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as it:
        ledger = it.ledger
        table = RateTable({"p": 60_000_000_000}, {"vllm": 60_000_000_000}, {"ssd": 60_000_000_000})
        await ledger.rates.publish(RatePlan("default", ((0, table),)))
        await ledger.accounts.grant("acme", 1000 * CREDIT, key="k", who="t", presets=["p", "vllm", "ssd"])
        seen = [
            Observation("v", "storage", "acme", "", "", "ssd", started_us=T0, bytes=10**9),
            Observation("a", "app", "acme", "", "", "vllm", "vllm", started_us=T0),
            Observation("j", "job", "acme", "", "", "p", started_us=T0),
            Observation("b", "app", "acme", "", "", "p", "vllm", started_us=T0),
        ]
        for minutes in (0, 10):
            clock[0] = T0 + minutes * MINUTE
            await it.take(Snapshot("test", "default", clock[0], seen))
        balance = await ledger.accounts.balance("acme")
        assert (balance.owed_micro, balance.restricted) == (20 * CREDIT, {Scope(("p", "ssd", "vllm")): 970 * CREDIT})
        assert balance.available_micro == 950 * CREDIT - 60 * CREDIT  # 15 minutes of all but the volume are set aside
        # Another such grant pays nothing of what is owed, one for the cluster pays what work there owes.
        await ledger.accounts.grant("acme", 5 * CREDIT, key="l", who="t", presets=["ssd"])
        await ledger.accounts.grant("acme", 5 * CREDIT, key="m", who="t", clusters=["other"])
        assert (await ledger.accounts.balance("acme")).owed_micro == 20 * CREDIT
        await ledger.accounts.grant("acme", 12 * CREDIT, key="n", who="t", clusters=["default"])
        assert (await ledger.accounts.balance("acme")).owed_micro == 8 * CREDIT
        assert (await verify(ledger))["ok"]


async def test_two_processes_never_set_aside_more_than_eligible_grants_have(client: Client) -> None:
    """Every class is asked for more often than can be paid, so just as much starts as a maximum flow allows."""
    ledger = await prepared(client, 40 * CREDIT)
    await ledger.rates.publish(
        RatePlan("c", ((0, RateTable(dict.fromkeys(("small", "large", "other"), 4_000_000_000))),))
    )
    for key, presets, amount in (("s", ["small"], 60), ("l", ["large"], 30), ("sl", ["small", "large"], 20)):
        await ledger.accounts.grant("acme", amount * CREDIT, key=key, who="t", presets=presets)
    url = client.connection_pool.connection_kwargs["path"]
    said = await ask_from(2, f"unix://{url}", 390, 1, 5, None, "16", "small,large,other")
    holds = [line for line in said if line.startswith("acme.")]
    assert (len(said), len(holds)) == (780, 150)
    held = {
        text(field): int(micro) // CREDIT for field, micro in (await client.hgetall(keys.of_org("acme").held)).items()
    }
    small, large, other = (held.get(class_field("c", preset), 0) for preset in ("small", "large", "other"))
    assert small + large + other == held[""] == 150
    assert other <= 40
    assert other + large <= 90
    assert other + small <= 120
    assert await in_agreement(ledger) == 150 * CREDIT
