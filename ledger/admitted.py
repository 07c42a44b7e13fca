"""Which of an org's jobs were admitted before, so that a scheduler that starts one anew is not refused."""

from __future__ import annotations

from typing import Any, Final

from ledger import keys
from ledger.clock import Clock, now_us
from ledger.connect import Client, again

REMEMBERED_US: Final = 30 * 86_400_000_000


class Admitted:
    """Names of jobs by when they were last admitted; forgotten after 30 days."""

    def __init__(self, client: Client, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._clock: Clock = clock or now_us

    async def add(self, org: str, cluster: str, job: str) -> None:
        """Remember one."""
        name, now = keys.of_org(org).admitted, self._clock()

        async def write() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zadd(name, {f"{cluster}{keys.US}{job}": now})
                pipe.zremrangebyscore(name, "-inf", now - REMEMBERED_US)
                await pipe.execute()

        await again(write)

    async def has(self, org: str, cluster: str, job: str) -> bool:
        """Whether it was admitted within 30 days."""
        member = f"{cluster}{keys.US}{job}"
        score = await again(lambda: self._client.zscore(keys.of_org(org).admitted, member))
        return score is not None and float(score) > self._clock() - REMEMBERED_US
