"""Somebody who moves credits between orgs without end, to be killed: `python -m tests.transfer_chaos URL SEED ORG...`.

Random bodies under few keys, so that several of these ask for the same transfers, and for others under the same keys.
Every transfer that was acknowledged is said: `key from to micro`.
"""

from __future__ import annotations

import asyncio
import random
import sys

from ledger.errors import IdempotencyConflict, Insufficient, LedgerUnavailable
from ledger.store import open_ledger

KEYS = 40


def body(key: int, orgs: list[str]) -> tuple[str, str, int]:
    """What the transfer of a key is, in every process."""
    chance = random.Random(key)
    source, target = chance.sample(orgs, 2)
    return source, target, chance.randrange(1, 6_000_000)


async def main(url: str, seed: str, *orgs: str) -> None:
    chance = random.Random(seed)
    async with open_ledger(url, epoch_us=0) as ledger:
        print("here", flush=True)
        while True:
            key = chance.randrange(KEYS)
            source, target, micro = body(key, list(orgs))
            try:
                if chance.random() < 0.1:
                    await ledger.transfers.sweep()
                await ledger.transfers.transfer(source, target, micro, key=str(key), who="test")
                print(key, source, target, micro, flush=True)
                if chance.random() < 0.2:
                    await ledger.transfers.transfer(target, source, micro + 1, key=str(key), who="test")
                    print("moved twice", flush=True)
            except (IdempotencyConflict, Insufficient, LedgerUnavailable):
                await asyncio.sleep(0.005)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
