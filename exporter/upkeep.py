"""Keeps the ledger small and its reports fast: sums by day and month, and old details given up."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from config.settings import Settings
from exporter.aside import again_and_again, answer, ask
from ledger.retention import retain
from ledger.rollups import roll_up
from ledger.store import open_ledger

log = logging.getLogger(__name__)
FIRST_SECONDS: Final = 120.0
EVERY_SECONDS: Final = 6 * 3600.0


class Upkeep:
    """Does what is due, again and again."""

    def __init__(self, settings: Settings) -> None:
        self._question = {
            "url": settings.redis.url,
            "data_dir": str(settings.data_dir),
            "run_days": settings.retention.run_days,
            "hour_days": settings.retention.hour_days,
            "journal_days": settings.retention.journal_days,
        }

    async def run(self, first_seconds: float = FIRST_SECONDS, every_seconds: float = EVERY_SECONDS) -> None:
        """Until cancelled."""
        await again_and_again("The ledger's upkeep", self.once, first_seconds, every_seconds)

    async def once(self) -> None:
        """What is due now. Raises: Unfinished."""
        done = await ask("exporter.upkeep", self._question)
        if any(done.values()):
            log.info(
                "Upkeep: %(rollups)d days and months added up; %(runs)d old runs, %(hours)d old hours and %(entries)d "
                "old journal entries folded into sums.",
                done,
            )


async def _keep(question: dict[str, Any]) -> dict[str, int]:
    async with open_ledger(question["url"], Path(question["data_dir"])) as ledger:
        now = ledger.clock()
        days = {name: question[name] for name in ("run_days", "hour_days", "journal_days")}
        done = await retain(ledger, now, **days)
        return {"rollups": await roll_up(ledger, now), **asdict(done)}


if __name__ == "__main__":
    answer(_keep)
