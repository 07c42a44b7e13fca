"""However many holds expire at once, no call ends more than a few hundred, and no answer counts one that is over."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from config.settings import AdmissionSettings
from enforcer.admission.desk import Desk
from enforcer.metrics import EnforcerMetrics
from ledger import keys
from ledger.admission import AdmissionRequest, Terms
from ledger.clock import format_time
from ledger.connect import Client
from ledger.errors import Insufficient
from ledger.lua import Script, common_keys
from ledger.model import Code, RatePlan, RateTable
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from tests.histories import MINUTE, T0
from tests.integration.test_admission_batches import end_one_at_a_time

pytestmark = pytest.mark.redis

MANY = 100_000
AT_ONCE = 500
CREDIT = 1_000_000
NAMES = keys.of_org("acme")


@pytest.fixture
def clock() -> list[int]:
    return [T0]


@pytest.fixture
async def ledger(client: Client, valkey_url: str, clock: list[int]) -> AsyncIterator[Ledger]:
    """An org with 100,001 credits, of which 100,000 are held for one job each until 15 minutes from now."""
    async with open_ledger(valkey_url, epoch_us=T0, clock=lambda: clock[0]) as opened:
        await opened.rates.publish(RatePlan("c", ((0, RateTable({"p": 4_000_000_000})),)))
        await opened.accounts.grant("acme", (MANY + 1) * CREDIT, key="k", who="t")
        await _hold(opened.client, MANY)
        yield opened


async def _hold(client: Any, count: int) -> None:
    """As that many admissions would: one in a hundred says which work it is for."""
    tiers = keys.tier_fields("x", "ann")
    until = T0 + 15 * MINUTE
    for start in range(0, count, 5000):
        holds, expiry, named = {}, {}, {}
        for number in range(start, start + 5000):
            workload = f"c{keys.US}{number}" if number % 100 == 0 else None
            holds[f"acme.{number}"] = json.dumps(
                {
                    "amount": str(CREDIT), "left": "1", "tiers": tiers, "workload": workload,
                    "expires_us": str(until), "limit_us": None, "cluster": "c", "project": "x", "user": "ann",
                    "preset": "p", "app": None, "kind": "job", "at": format_time(T0),
                }
            )  # fmt: skip
            expiry[f"acme.{number}"] = until // 1000
            if workload is not None:
                named[workload] = f"acme.{number}"
        await client.hset(NAMES.holds, mapping=holds)
        await client.zadd(NAMES.hold_expiry, expiry)
        await client.hset(NAMES.hold_of, mapping=named)
    for tier in tiers:
        await client.hincrby(NAMES.held, tier, count * CREDIT)


class Commands:
    """How many commands the server ran, those of scripts among them, and of each how often it was called."""

    def __init__(self, client: Any) -> None:
        self._client = client

    async def reset(self) -> None:
        await self._client.config_resetstat()

    async def all(self) -> int:
        found = await self._client.info("commandstats")
        return sum(entry["calls"] for name, entry in found.items() if not name.startswith("cmdstat_config"))

    async def scripts(self) -> int:
        found = await self._client.info("commandstats")
        return int(found["cmdstat_evalsha"]["calls"])


async def test_no_call_ends_more_than_a_few_hundred(ledger: Ledger, clock: list[int]) -> None:
    client: Any = ledger.client
    balance, counted = Script(client, "balance"), Commands(client)
    await balance(common_keys(NAMES), [""])  # the server has the script
    await counted.reset()
    await balance(common_keys(NAMES), [str(T0)])
    plain = await counted.all()
    clock[0] += 15 * MINUTE
    for script, arguments in ((balance, [str(clock[0])]), (ledger.scripts.release, ["acme.none", str(clock[0])])):
        await script(common_keys(NAMES), arguments)
        before = await client.hlen(NAMES.holds)
        await counted.reset()
        answer = await script(common_keys(NAMES), arguments)
        # Ten commands more than where nothing expired, for five hundred holds.
        assert await counted.all() <= plain + 10
        assert before - await client.hlen(NAMES.holds) == AT_ONCE
        assert answer in ([b"more"], [b"absent", b"0"])


async def test_what_is_held_by_expired_holds_is_there_for_the_next_one(ledger: Ledger, clock: list[int]) -> None:
    counted = Commands(ledger.client)
    request = AdmissionRequest(cluster="c", org="acme", project="x", user="ann", preset="p", count=MANY + 1)
    assert (await ledger.admissions.admit(request, Terms())).code is Code.NO_CREDITS
    clock[0] += 15 * MINUTE
    await counted.reset()
    decision = await ledger.admissions.admit(request, Terms())
    assert (decision.code, decision.available_micro) == (Code.OK, 0)
    assert await counted.scripts() == MANY // AT_ONCE
    balance = await ledger.accounts.balance("acme")
    assert (balance.holds, balance.held_micro) == (1, (MANY + 1) * CREDIT)
    assert (await verify(ledger))["ok"]


async def test_an_admission_that_passes_all_the_same_waits_for_none_of_them(ledger: Ledger, clock: list[int]) -> None:
    counted = Commands(ledger.client)
    request = AdmissionRequest(cluster="c", org="acme", project="x", user="ann", preset="p")
    clock[0] += 15 * MINUTE
    await counted.reset()
    decision = await ledger.admissions.admit(request, Terms())
    assert (decision.code, decision.available_micro) == (Code.OK, None)  # nobody knows how much more there is
    assert decision.reason == "1 credit is set aside to start."
    assert await counted.scripts() == 1
    question = await ledger.admissions.admit(replace(request, dry_run=True), Terms())
    assert (question.code, question.available_micro) == (Code.OK, MANY * CREDIT)
    assert (await verify(ledger))["ok"]


async def test_work_whose_hold_is_over_gets_a_new_one(ledger: Ledger, clock: list[int]) -> None:
    """Also while that one is not ended yet."""
    clock[0] += 15 * MINUTE
    for number in (MANY - 100, MANY - 200):
        request = AdmissionRequest(
            cluster="c", org="acme", project="x", user="ann", preset="p", workload_id=str(number),
            replaces=f"acme.{number}" if number % 200 else None,
        )  # fmt: skip
        decision = await ledger.admissions.admit(request, Terms())
        assert (decision.code, decision.replayed) == (Code.OK, False)
        assert decision.hold_expires_us == clock[0] + 15 * MINUTE
    balance = await ledger.accounts.balance("acme")
    assert (balance.holds, balance.held_micro) == (2, 2 * CREDIT)
    assert (await verify(ledger))["ok"]


async def test_a_refusal_that_takes_too_long_is_no_word_on_the_ledger(ledger: Ledger, clock: list[int]) -> None:
    """It answers all the while, so what others ask is not decided without it."""
    request = AdmissionRequest(cluster="c", org="acme", project="x", user="ann", preset="p")
    end_one_at_a_time(ledger.scripts.admit)  # so that it takes far longer than a decision may
    settings = AdmissionSettings(decision_seconds=1.0)
    desk = Desk(ledger, settings, EnforcerMetrics("test"), ledger.clock, spool=None)
    await desk.decide(replace(request, dry_run=True), who="t", via="t")  # rates are at hand
    clock[0] += 15 * MINUTE
    refused = await desk.decide(replace(request, count=MANY + 1), who="t", via="t")
    assert refused.code is Code.LEDGER_UNAVAILABLE
    assert not desk.aftermath.is_away
    assert (await desk.decide(request, who="t", via="t")).code is Code.OK
    await desk.aftermath.stop()


async def test_a_balance_and_a_transfer_wait_for_the_rest(ledger: Ledger, clock: list[int]) -> None:
    await ledger.accounts.upsert("globex", who="t")
    with pytest.raises(Insufficient):
        await ledger.transfers.transfer("acme", "globex", 2 * CREDIT, key="t1", who="t")
    clock[0] += 15 * MINUTE
    await ledger.transfers.transfer("acme", "globex", (MANY + 1) * CREDIT, key="t2", who="t")
    assert await ledger.client.hlen(NAMES.holds) == 0  # type: ignore[misc]
    await _hold(ledger.client, MANY)
    balance = await ledger.accounts.balance("acme")
    assert (balance.holds, balance.held_micro) == (0, 0)
    assert await ledger.client.hlen(NAMES.hold_of) == 0  # type: ignore[misc]
    assert await ledger.client.hlen(NAMES.held) == 0  # type: ignore[misc]
    assert (await verify(ledger))["ok"]
