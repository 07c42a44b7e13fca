"""Times of grants that no part of the ledger could hold are refused: one of them would stop all that follows."""

from __future__ import annotations

import pytest

from ledger.clock import parse_time
from ledger.errors import InvalidRequest
from ledger.verify import verify
from tests.histories import T0
from tests.integration.test_charges_equal_the_model import bench

pytestmark = pytest.mark.redis


@pytest.mark.parametrize(
    ("effective", "expires", "words"),
    [
        ("1969-12-31T23:59:59.999999Z", None, "effective_at 1969-12-31T23:59:59.999999Z: expected a time between"),
        (None, "1960-01-01T00:00:00Z", "expires_at 1960-01-01T00:00:00Z: expected a time between"),
        (None, "9999-01-01T00:00:00Z", "expires_at 9999-01-01T00:00:00Z: expected a time between"),
        ("9998-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "effective_at 9998-01-01T00:00:00Z: expected a time between"),
    ],
)
async def test_a_time_out_of_bounds_is_refused_and_changes_nothing(
    effective: str | None, expires: str | None, words: str, valkey_url: str
) -> None:
    async with bench(valkey_url, [T0]) as bench_:
        accounts = bench_.ledger.accounts
        await accounts.grant("acme", 7, key="good", who="t")
        with pytest.raises(InvalidRequest, match=words):
            await accounts.grant(
                "acme", 5, key="bad", who="t",
                effective_us=effective and parse_time(effective), expires_us=expires and parse_time(expires),
            )  # fmt: skip
        assert (await accounts.balance("acme")).granted_micro == 7
        assert [grant.key for grant in await accounts.grants("acme")] == ["good"]
        # The first and the last instant that can be held.
        await accounts.grant("acme", 5, key="edges", who="t", effective_us=0, expires_us=2**53 - 1)
        assert (await accounts.balance("acme")).available_micro == 12
        assert (await verify(bench_.ledger))["ok"]
