"""Keeps the ledger small and its reports fast: sums by day and month, and old details given up.

It reads a lot, so a process of its own does it, now and then, and rounds and scrapes do not wait.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from config.settings import Settings
from ledger.errors import CreditsError
from ledger.retention import retain
from ledger.rollups import roll_up
from ledger.store import open_ledger

log = logging.getLogger(__name__)
FIRST_SECONDS: Final = 120.0
EVERY_SECONDS: Final = 6 * 3600.0
_NICE: Final = 10


class Upkeep:
    """Does what is due, again and again."""

    def __init__(self, settings: Settings) -> None:
        self._question = json.dumps(
            {
                "url": settings.redis.url,
                "data_dir": str(settings.data_dir),
                "run_days": settings.retention.run_days,
                "hour_days": settings.retention.hour_days,
                "journal_days": settings.retention.journal_days,
            }
        ).encode()

    async def run(self, first_seconds: float = FIRST_SECONDS, every_seconds: float = EVERY_SECONDS) -> None:
        """Until cancelled. What fails is told, and done the next time."""
        await asyncio.sleep(first_seconds)
        while True:
            try:
                await self.once()
            except Exception:
                log.exception("The ledger's upkeep failed")
            await asyncio.sleep(every_seconds)

    async def once(self) -> None:
        """What is due now."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "exporter.upkeep"),
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
            log.error("The ledger's upkeep failed: %s", lines[-1] if lines else f"status {child.returncode}")
            return
        done = json.loads(answer)
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


def main() -> None:
    """The child: the question comes on stdin, since the URL may hold a password."""
    os.nice(_NICE)
    try:
        result = asyncio.run(_keep(json.load(sys.stdin)))
    except CreditsError as error:
        sys.exit(str(error))
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
