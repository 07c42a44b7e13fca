"""Which of an org's pods were admitted before, so that a scheduler that starts one anew is not refused."""

from __future__ import annotations

import hashlib
from typing import Any, Final

from ledger import keys
from ledger.clock import Clock, now_us
from ledger.connect import Client, again

REMEMBERED_US: Final = 30 * 86_400_000_000
KEPT: Final = 100_000
"""Of an org; the oldest are forgotten."""


class Admitted:
    """Work by all that tells it apart, by when it was last admitted and paid for; forgotten after 30 days."""

    def __init__(self, client: Client, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._clock: Clock = clock or now_us

    async def add(self, org: str, *identity: str) -> None:
        """Remember one. Raises: LedgerUnavailable."""
        name, now = keys.of_org(org).admitted, self._clock()

        async def write() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zadd(name, {_digest(identity): now})
                pipe.zremrangebyscore(name, "-inf", now - REMEMBERED_US)
                pipe.zremrangebyrank(name, 0, -KEPT - 1)
                await pipe.execute()

        await again(write)

    async def has(self, org: str, *identity: str) -> bool:
        """Whether it was admitted within 30 days. Raises: LedgerUnavailable."""
        score = await again(lambda: self._client.zscore(keys.of_org(org).admitted, _digest(identity)))
        return score is not None and float(score) > self._clock() - REMEMBERED_US


def _digest(identity: tuple[str, ...]) -> str:
    return hashlib.sha256(keys.US.join(identity).encode()).hexdigest()[:32]
