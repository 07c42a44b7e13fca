"""When Slurm's accounting must be asked, and how far back, so that no finished run is missed.

squeue forgets a finished job after MinJobAge, and the run before a requeue at once; accounting has both, but
its records come late: by seconds as a rule, by hours when slurmdbd was away. A finished run told twice costs
nothing, so more is asked than is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from exporter.sources.slurm_run import JobRun, Phase

_log = logging.getLogger(__name__)

_SECOND: Final = 1_000_000
ROUTINE_US: Final = 300 * _SECOND
"""Accounting is asked at least this often."""
OVERLAP_US: Final = 3600 * _SECOND
"""How far behind the last answer each question goes: records may be this late, with nothing pointing at them."""
SETTLE_US: Final = 30 * _SECOND
"""How long accounting is asked in every round after something happened that squeue does not show."""
AWAITED_US: Final = 600 * _SECOND
"""How long a run that vanished from squeue counts as not known to have ended."""
FORGOTTEN_US: Final = 7 * 86_400 * _SECOND
"""After this, nobody waits any longer for the record of a run that vanished."""

RunKey = tuple[int, int]


class AccountingWatch:
    """Remembers from one round to the next what squeue showed; all instants in microseconds since 1970."""

    def __init__(self, lookback_us: int) -> None:
        self._lookback_us = lookback_us
        self._covered_us: int | None = None
        self._last_us: int | None = None
        self._urgent_until_us = 0
        self._live: set[RunKey] = set()
        self._missing: dict[RunKey, int] = {}
        self._restarts: dict[int, int] = {}

    def look(self, taken_us: int, since_us: int | None, runs: Iterable[JobRun], min_job_age_us: int) -> int | None:
        """Take in what squeue listed at `taken_us`: from when on accounting must be asked, None for not now."""
        listed = {run.key: run for run in runs if run.start is not None}
        restarts = {run.job_id: run.restarts for run in runs if run.restarts}
        last_us = self._last_us
        unseen = last_us is None or taken_us - last_us > min_job_age_us // 2
        requeued = any(count > self._restarts.get(job_id, 0) for job_id, count in restarts.items())
        for key in self._live - listed.keys():
            self._missing[key] = last_us or taken_us
        for key in self._missing.keys() & listed.keys():
            del self._missing[key]
        self._live = {key for key, run in listed.items() if run.phase is not Phase.ENDED}
        self._restarts = restarts
        self._last_us = taken_us
        if unseen or requeued or self._missing:
            self._urgent_until_us = max(self._urgent_until_us, taken_us + SETTLE_US)
        return self._question(taken_us, since_us)

    def _question(self, taken_us: int, since_us: int | None) -> int | None:
        if self._covered_us is None:
            return (taken_us if since_us is None else min(since_us, taken_us)) - self._lookback_us
        urgent = taken_us <= self._urgent_until_us or any(self._awaited(taken_us))
        if not urgent and taken_us - self._covered_us < ROUTINE_US:
            return None
        known_us = min(self._covered_us, taken_us if since_us is None else since_us)
        return min([known_us - OVERLAP_US, *self._missing.values()])

    def answered(self, taken_us: int, keys: Iterable[RunKey]) -> None:
        """Accounting answered a question of the round of `taken_us`, with these finished runs."""
        self._covered_us = taken_us
        for key in self._missing.keys() & set(keys):
            del self._missing[key]
        for key, seen_us in list(self._missing.items()):
            if taken_us - seen_us > FORGOTTEN_US:
                _log.warning("job %d: accounting has no end of the run that started at %d", *key)
                del self._missing[key]

    def whole(self, taken_us: int) -> bool:
        """Whether every run that is gone from squeue is known to have ended, or was waited for long enough."""
        return not any(self._awaited(taken_us))

    def _awaited(self, taken_us: int) -> Iterable[RunKey]:
        return (key for key, seen_us in self._missing.items() if taken_us - seen_us <= AWAITED_US)
