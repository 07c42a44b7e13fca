"""Sources: where workloads come from, how far each is charged, and what could not be charged.

This is what the ledger knows. How long an answer took, or the error of the last one, only the exporter does: it is in
its metrics and its log.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from console.desk import Desk
from ledger.source_marks import source_marks

_ORGS_MAX: Final = 500
_READ_AT_ONCE: Final = 16
_STALE_SECONDS_MIN: Final = 60.0
_STALE_ROUNDS: Final = 4
REASONS: Final = {
    "unpriced": "no rate",
    "no_preset": "no preset",
    "no_org": "no org",
    "malformed": "malformed",
    "bad_name": "bad name",
    "too_late": "listed too late",
}


@dataclass(frozen=True, slots=True)
class KnownSource:
    """`state`: `ok`, `late`, `never` (nothing was charged yet) or `gone` (not in the settings of this process)."""

    name: str
    kind: str
    cluster: str
    state: str
    taken_us: int | None = None
    lag_us: int = 0
    workloads: int | None = None
    unbillable: Mapping[str, int] = field(default_factory=dict)


class SourcesPage:
    """One page. `configured`: (name, type, cluster) of the settings; `interval_seconds`: how often they are asked."""

    def __init__(self, desk: Desk, configured: Sequence[tuple[str, str, str]], interval_seconds: float) -> None:
        self._desk = desk
        self._configured = configured
        # As the enforcer sees it: what is older is no reason to stop anything.
        self._stale_us = int(max(_STALE_SECONDS_MIN, _STALE_ROUNDS * interval_seconds) * 1_000_000)

    async def page(self, request: web.Request) -> web.Response:
        """Raises: LedgerUnavailable."""
        marks = {mark.name: mark for mark in await source_marks(self._desk.ledger.client)}
        running = await self._running()
        about = {name: (kind, cluster) for name, kind, cluster in self._configured}
        now = self._desk.ledger.clock()
        found = []
        for name in [*about, *sorted(marks.keys() - about.keys())]:
            mark, (kind, cluster) = marks.get(name), about.get(name, ("", ""))
            taken = None if mark is None else mark.taken_us
            lag = 0 if taken is None else max(0, now - taken)
            state = "never" if taken is None else "late" if lag > self._stale_us else "ok"
            found.append(
                KnownSource(
                    name, kind, cluster, state if name in about else "gone", taken, lag,
                    None if running is None else running[name], {} if mark is None else mark.unbillable,
                )
            )  # fmt: skip
        return self._desk.pages.render(
            request, "sources.html", sources=found, reasons=REASONS, stale_us=self._stale_us, orgs_max=_ORGS_MAX
        )

    async def _running(self) -> Counter[str] | None:
        """Jobs and apps that run, by source; None where there are too many orgs to count on a page."""
        orgs = await self._desk.ledger.accounts.orgs()
        if len(orgs) > _ORGS_MAX:
            return None
        counts: Counter[str] = Counter()
        async with self._desk.turns:
            for begin in range(0, len(orgs), _READ_AT_ONCE):
                part = orgs[begin : begin + _READ_AT_ONCE]
                for work in await asyncio.gather(*(self._desk.ledger.exhaustion.running_work(org) for org in part)):
                    counts.update(one.source for one in work)
        return counts
