"""Checks the ledger's totals against their parts now and then."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from exporter.aside import again_and_again, answer, ask
from ledger.clock import Clock, now_us
from ledger.money import parse_credits
from ledger.store import open_ledger
from ledger.verify import verify

log = logging.getLogger(__name__)
FIRST_SECONDS: Final = 60.0
EVERY_SECONDS: Final = 6 * 3600.0
_TOLD_MAX: Final = 5


class Verification:
    """The outcome of the last check. `drift_micro` None: none was made yet."""

    def __init__(self, url: str, data_dir: Path, clock: Clock = now_us) -> None:
        self.drift_micro: int | None = None
        self.checked_us: int | None = None
        self._question = {"url": url, "data_dir": str(data_dir)}
        self._clock = clock

    async def run(self, first_seconds: float = FIRST_SECONDS, every_seconds: float = EVERY_SECONDS) -> None:
        """Check again and again, until cancelled."""
        await again_and_again("The ledger's check", self.check, first_seconds, every_seconds)

    async def check(self) -> None:
        """Check once. A check that fails leaves the outcome of the last one. Raises: Unfinished."""
        self._take(await ask("exporter.verification", self._question))

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


if __name__ == "__main__":
    answer(_verify)
