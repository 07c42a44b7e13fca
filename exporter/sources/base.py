"""What a source of workloads is: asked for a snapshot, it says what its scheduler runs and what has ended."""

from __future__ import annotations

from typing import Protocol

from ledger.errors import CreditsError
from ledger.model import Snapshot


class SourceError(CreditsError):
    """The source gave nothing usable; the message names the source and what would help."""


class Source(Protocol):
    """One scheduler, seen from outside.

    A source keeps nothing that charges depend on: it may be restarted, doubled or asked twice at any time.
    A record it cannot use is left out and counted in `Snapshot.unbillable`, by one of the reasons in
    `names`; where that record may be running, the snapshot is not `complete`.
    """

    @property
    def name(self) -> str:
        """The metric label `source`, unique among the configured sources."""

    @property
    def cluster(self) -> str:
        """The cluster whose rates apply to what this source sees."""

    async def fetch(self, since_us: int | None) -> Snapshot:
        """What the scheduler runs and stores now, and what ended after `since_us`.

        `since_us` is the instant up to which this source is charged already, None before the first time.
        Raises: SourceError, for everything the scheduler or the way to it can do wrong.
        """

    async def close(self) -> None:
        """Give back connections and processes; a closed source is not asked again."""
