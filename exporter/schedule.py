"""When rounds happen: one job for each source, so that none waits for another."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from exporter.source_rounds import SourceRounds

log = logging.getLogger(__name__)
DRAIN_SECONDS: Final = 20.0
"""How long a commit under way is waited for at the end."""
_LOOK_SECONDS: Final = 1.0


class Schedule:
    """Every `interval_seconds` a round of each source: never two of one at once, missed ones are made up by one.

    When a round happens decides nothing but how fresh the totals are: charges go up to the instant of the
    snapshot, and a snapshot older than the last one changes nothing that it said. So a clock that goes back
    stops charging until it has caught up, and charges nothing twice; the rounds themselves go on.
    """

    def __init__(
        self,
        jobs: Sequence[SourceRounds],
        interval_seconds: float,
        wall: Callable[[], float] = time.time,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        """`wall`: the clock that is watched for going back, in seconds."""
        self._jobs = list(jobs)
        self._interval = interval_seconds
        self._wall = wall
        self._drain_seconds = drain_seconds
        self._scheduler: Any = None
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with a round of each source now."""
        # Skipped runs are told by `overdue`, once; failures by the rounds themselves.
        logging.getLogger("apscheduler").setLevel(logging.CRITICAL)
        by_name = {job.health.name: job for job in self._jobs}
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        for name, job in by_name.items():
            self._scheduler.add_job(
                job.run,
                IntervalTrigger(seconds=self._interval, timezone=UTC),
                id=name,
                max_instances=1,
                coalesce=True,
                misfire_grace_time=None,
                next_run_time=datetime.now(UTC),
            )
        self._scheduler.add_listener(lambda event: by_name[event.job_id].overdue(), EVENT_JOB_MAX_INSTANCES)
        self._scheduler.start()
        self._watch = asyncio.create_task(self._watch_clock(), name="clock watch")

    async def stop(self) -> None:
        """No more rounds: what is asked is given up, what is committed is waited for."""
        if self._watch is not None:
            self._watch.cancel()
        self._scheduler.pause()
        deadline = time.monotonic() + self._drain_seconds
        while under_way := [task for job in self._jobs if (task := job.give_up()) is not None]:
            rest = deadline - time.monotonic()
            if rest <= 0:
                log.warning("A commit that does not end is given up; the next start goes on from what is written.")
                break
            await asyncio.wait(under_way, timeout=min(rest, _LOOK_SECONDS))
        self._scheduler.shutdown(wait=False)
        await asyncio.gather(*under_way, return_exceptions=True)

    async def _watch_clock(self) -> None:
        """Rounds are scheduled by the wall clock: where that goes back, they would not happen until it caught up."""
        ahead = self._wall() - time.monotonic()
        while True:
            await asyncio.sleep(min(_LOOK_SECONDS, self._interval))
            now = self._wall() - time.monotonic()
            if now < ahead - self._interval:
                log.warning("The clock went back by %.0f s; nothing is charged twice.", ahead - now)
                for job in self._scheduler.get_jobs():
                    job.modify(next_run_time=datetime.now(UTC))
            ahead = now
