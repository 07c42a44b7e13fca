"""What a balance is a share of: what the grants gave that have something left."""

from __future__ import annotations

import pytest

from ledger.grant_list import granted_in_use
from tests.histories import HOUR, T0
from tests.integration.test_charges_equal_the_model import bench

pytestmark = pytest.mark.redis


async def test_grants_count_in_full_while_something_is_left_of_them_and_they_are_in_force(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        ledger = bench_.ledger

        async def in_use() -> int:
            return await granted_in_use(ledger, "acme", (await ledger.accounts.balance("acme")).at_us)

        await ledger.accounts.upsert("acme", who="t")
        assert await in_use() == 0
        await ledger.accounts.grant("acme", 1000, key="year", who="t", expires_us=T0 + 10 * HOUR)
        await ledger.accounts.grant("acme", 70, key="gift", who="t", expires_us=T0 + 2 * HOUR)
        await ledger.accounts.grant("acme", 500, key="later", who="t", effective_us=T0 + HOUR)
        assert await in_use() == 1070
        await ledger.corrections.correct("acme", -300, corrects="year", key="c", reason="r", who="t")
        assert await in_use() == 770
        await ledger.corrections.correct("acme", 40, corrects="gift", key="d", reason="r", who="t")
        assert await in_use() == 810
        clock[0] = T0 + HOUR
        assert await in_use() == 1310
        clock[0] = T0 + 2 * HOUR
        assert await in_use() == 1200


async def test_a_grant_that_is_used_up_counts_no_more(valkey_url: str) -> None:
    async with bench(valkey_url, [T0]) as bench_:
        ledger = bench_.ledger
        await ledger.accounts.grant("acme", 100, key="small", who="t", expires_us=T0 + HOUR)
        await ledger.accounts.grant("acme", 1000, key="large", who="t")
        await ledger.accounts.grant("other", 1, key="o", who="t")
        await ledger.transfers.transfer("acme", "other", 100, key="t", reason="r", who="t")
        balance = await ledger.accounts.balance("acme")
        assert balance.available_micro == 1000
        assert await granted_in_use(ledger, "acme", balance.at_us) == 1000
