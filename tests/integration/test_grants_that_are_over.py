"""A grant whose time is over is refused, unless it was given before: then it is answered again."""

from __future__ import annotations

import pytest

from ledger.errors import InvalidRequest
from tests.histories import HOUR, T0
from tests.integration.test_charges_equal_the_model import bench

pytestmark = pytest.mark.redis


async def test_a_grant_that_is_over_is_refused_but_a_retry_of_an_old_one_is_not(valkey_url: str) -> None:
    clock = [T0]
    async with bench(valkey_url, clock) as bench_:
        grant = bench_.ledger.accounts.grant
        assert not (await grant("acme", 5, key="k", who="t", expires_us=T0 + HOUR)).replayed
        clock[0] = T0 + 2 * HOUR
        assert (await grant("acme", 5, key="k", who="t", expires_us=T0 + HOUR)).replayed
        with pytest.raises(InvalidRequest, match="is over"):
            await grant("acme", 5, key="other", who="t", expires_us=T0 + HOUR)
