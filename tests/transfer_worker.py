"""A transfer in a process of its own that stops before or after one of its steps, to be killed there.

`python -m tests.transfer_worker URL STEP WHEN FROM TO MICRO KEY`: says `here` when it stands still. STEP is one of
claim, take, give, end; WHEN is before, or after: then the step is on disk and its answer was never seen.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from ledger.lua import Script
from ledger.store import open_ledger

STEPS = ("claim", "take", "give", "end")


class _Stops(Script):
    """A script at which the process stands still for ever."""

    when: str

    async def __call__(self, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        return await self._stop(super().__call__, names, arguments)

    async def durably(self, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        return await self._stop(super().durably, names, arguments)

    async def _stop(self, call: Any, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        if self.when == "after":
            await call(names, arguments)
        print("here", flush=True)
        await asyncio.Event().wait()


async def main(url: str, step: str, when: str, source: str, target: str, micro: str, key: str) -> None:
    async with open_ledger(url, epoch_us=0) as ledger:
        script: Script = getattr(ledger.transfers, f"_{step}")
        stops = _Stops(ledger.client, script.name)
        stops.when = when
        setattr(ledger.transfers, f"_{step}", stops)
        await ledger.transfers.transfer(source, target, int(micro), key=key, who="test")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
