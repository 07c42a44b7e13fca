"""Checks the ledger's totals against their parts now and then, in a process of its own.

A check reads the whole ledger, which takes processor time and memory that rounds and scrapes are not to wait for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ledger.clock import Clock, now_us
from ledger.errors import CreditsError
from ledger.money import parse_credits
from ledger.store import open_ledger
from ledger.verify import verify

log = logging.getLogger(__name__)
FIRST_SECONDS: Final = 60.0
EVERY_SECONDS: Final = 6 * 3600.0
_NICE: Final = 10
_TOLD_MAX: Final = 5


class Verification:
    """The outcome of the last check. `drift_micro` None: none was made yet."""

    def __init__(self, url: str, data_dir: Path, clock: Clock = now_us) -> None:
        self.drift_micro: int | None = None
        self.checked_us: int | None = None
        self._question = json.dumps({"url": url, "data_dir": str(data_dir)}).encode()
        self._clock = clock

    async def run(self, first_seconds: float = FIRST_SECONDS, every_seconds: float = EVERY_SECONDS) -> None:
        """Check again and again, until cancelled."""
        await asyncio.sleep(first_seconds)
        while True:
            try:
                await self.check()
            except Exception:
                log.exception("The ledger could not be checked")
            await asyncio.sleep(every_seconds)

    async def check(self) -> None:
        """Check once. A check that fails leaves the outcome of the last one, and is told."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "exporter.verification"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the exporter, which ends it
        )
        try:
            answer, errors = await child.communicate(self._question)
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        if child.returncode != 0:
            lines = errors.decode("utf-8", "replace").strip().splitlines()
            log.error("The ledger could not be checked: %s", lines[-1] if lines else f"status {child.returncode}")
            return
        self._take(json.loads(answer))

    def _take(self, result: dict[str, Any]) -> None:
        differences = result["differences"]
        self.drift_micro = drift(differences)
        self.checked_us = self._clock()
        for one in differences[:_TOLD_MAX]:
            log.error("The ledger's figures differ: org %s: %s: %s", one["org"], one["what"], one["difference"])
        if differences:
            log.error("%d differences in all; `credits verify` lists them.", len(differences))


def drift(differences: list[dict[str, Any]]) -> int:
    """The largest difference, in micro-credits; never 0 where there is any."""
    amounts = [abs(parse_credits(one["credits"])) if one["credits"] is not None else 0 for one in differences]
    return max(1, *amounts) if amounts else 0


async def _verify(question: dict[str, str]) -> dict[str, Any]:
    async with open_ledger(question["url"], Path(question["data_dir"])) as ledger:
        return await verify(ledger)


def main() -> None:
    """The child: the question comes on stdin, since the URL may hold a password."""
    os.nice(_NICE)
    try:
        result = asyncio.run(_verify(json.load(sys.stdin)))
    except CreditsError as error:
        sys.exit(str(error))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
