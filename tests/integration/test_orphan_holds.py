"""`credits verify` lists holds of work that is charged or over already, and finds those that did not end in time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ledger import keys
from ledger.clock import format_time
from ledger.connect import Client
from ledger.model import Observation, Snapshot
from ledger.verify import verify
from ledger.waiting_holds import Listing, WaitingHolds
from tests.histories import HOUR, MINUTE, T0
from tests.integration.test_charges_equal_the_model import Bench, bench
from tests.integration.test_holds_end_with_their_jobs import admitted

pytestmark = pytest.mark.redis


async def put_hold(
    client: Client, name: str, workload: str | None, at_us: int, expires_us: int, source: str = ""
) -> None:
    """As one that was made when its work was not metered yet, or that nothing ended."""
    names, redis = keys.of_org("acme"), client
    whole = None if workload is None else f"default{keys.US}{workload}"
    record = {
        "amount": "5", "left": "2", "tiers": ["", "px", "ux"], "workload": whole, "expires_us": str(expires_us),
        "cluster": "default", "project": "x", "user": "ann", "preset": "p", "app": None, "kind": "job",
        "at": format_time(at_us), "source": source,
    }  # fmt: skip
    sent: Any = redis
    await sent.hset(names.holds, name, json.dumps(record))
    await sent.zadd(names.hold_expiry, {name: expires_us // 1000})
    if whole is not None:
        await sent.hset(names.hold_of, whole, name)
    for tier in record["tiers"]:  # type: ignore[union-attr]
        await sent.hincrby(names.held, tier, 10)


def job(name: str, started: int, ended: int | None = None) -> Observation:
    return Observation(name, "job", "acme", "x", "ann", "p", "", started, ended)


async def running(bench_: Bench, clock: list[int]) -> None:
    """Job `runs` is charged, `over` was until ten minutes ago."""
    await admitted(bench_)
    clock[0] = T0 + HOUR
    listed = [job("runs", T0), job("over", T0, T0 + 50 * MINUTE)]
    await bench_.take(Snapshot("test", "default", clock[0], listed))


async def test_orphan_holds_are_listed_and_are_no_difference(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await running(bench_, clock)
        client, later = bench_.ledger.client, clock[0] + 10 * MINUTE
        await put_hold(client, "acme.1", "runs", T0 + 55 * MINUTE, later)
        await put_hold(client, "acme.2", "over", T0 + 40 * MINUTE, later)
        await put_hold(client, "acme.3", "over", T0 + 55 * MINUTE, later)  # submitted anew under its old id
        await put_hold(client, "acme.4", "waits", T0, later)
        await put_hold(client, "acme.5", None, T0, later)
        result = await verify(bench_.ledger)
        assert (result["ok"], result["differences"]) == (True, [])
        found = sorted((hold["hold_id"], hold["workload"], hold["why"]) for hold in result["orphan_holds"])
        assert found == [
            ("acme.1", "runs", "its work is charged already"), ("acme.2", "over", "its work has ended"),
        ]  # fmt: skip
        assert result["orphan_holds"][0]["credits"] == "0.00001"
        assert result["orphan_holds"][0]["expires_at"] == format_time(later)
        clock[0] = later
        result = await verify(bench_.ledger)  # they end by themselves
        assert result["ok"]
        assert "orphan_holds" not in result


async def test_orphan_holds_of_what_a_source_lists_end_soon(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await running(bench_, clock)
        client, later = bench_.ledger.client, clock[0] + HOUR
        await put_hold(client, "acme.1", "runs", T0 + 55 * MINUTE, later, source="test")
        await put_hold(client, "acme.2", "over", T0 + 40 * MINUTE, later, source="test")
        await put_hold(client, "acme.3", "waits", T0 + 40 * MINUTE, later, source="test")
        assert len((await verify(bench_.ledger))["orphan_holds"]) == 2
        holds = WaitingHolds(client, 15 * MINUTE, lambda: clock[0], "default", "test")
        await holds.end_unlisted(["acme"], Listing(clock[0], frozenset(), {"waits"}), MINUTE)
        clock[0] += MINUTE
        result = await verify(bench_.ledger)
        assert (result["ok"], "orphan_holds" in result) == (True, False)
        assert await client.hkeys(keys.of_org("acme").hold_of) == [f"default{keys.US}waits".encode()]  # type: ignore[misc]


async def test_a_hold_that_outlives_its_expiry_is_a_difference(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        await running(bench_, clock)
        accounts = bench_.ledger.accounts
        balance = await accounts.balance("acme")

        async def ends_nothing(org: str) -> Any:
            return balance

        monkeypatch.setattr(accounts, "balance", ends_nothing)
        await put_hold(bench_.ledger.client, "acme.1", None, T0, clock[0] - MINUTE)
        result = await verify(bench_.ledger)
        assert not result["ok"]
        assert [difference["difference"] for difference in result["differences"]] == [
            f"should have ended at {format_time(clock[0] - MINUTE)}"
        ]
