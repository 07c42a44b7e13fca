"""Another process that asks for admissions: `python -m tests.admission_worker URL REQUESTS COUNT SEED
[CONCURRENCY [PRESET,...]]`.

Prints a line for each decision: the hold's id, or the code of the refusal.
"""

from __future__ import annotations

import asyncio
import random
import sys

from ledger.admission import AdmissionRequest
from ledger.errors import LedgerUnavailable
from ledger.hold_ids import new_hold_id
from ledger.store import open_ledger


async def main(url: str, requests: int, count: int, seed: int, concurrency: int, presets: list[str]) -> None:
    """Ask, and ask again for the same hold where no answer came."""
    chance = random.Random(seed)
    gate = asyncio.Semaphore(concurrency)

    async with open_ledger(url) as ledger:

        async def one(number: int) -> None:
            request = AdmissionRequest(
                cluster="c", org="acme", project="vision", user="ann", count=count,
                preset=presets[number % len(presets)],
                hold_id=new_hold_id("acme"), workload_id=f"{seed}-{number}" if chance.random() < 0.5 else None,
            )  # fmt: skip
            async with gate:
                while True:
                    try:
                        decision = await ledger.admissions.admit(request)
                        break
                    except LedgerUnavailable:
                        continue
            print(decision.hold_id or decision.code.value, flush=True)

        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        await asyncio.gather(*(one(number) for number in range(requests)))


if __name__ == "__main__":
    numbers = [int(text) for text in (*sys.argv[2:5], *(sys.argv[5:6] or ["64"]))]
    asyncio.run(main(sys.argv[1], *numbers, (sys.argv[6:7] or ["small"])[0].split(",")))
