"""How metering is doing, for metrics and logs: plain figures of this process."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field

from ledger.errors import CreditsError

log = logging.getLogger("exporter")


@dataclass(slots=True)
class SourceHealth:
    """One source. Instants are microseconds since 1970, None before the first."""

    name: str
    cluster: str
    tried: bool = False
    """Whether a round of it ended, well or not, since this process started, and what it did is shown."""
    up: bool = False
    """Whether it gave a usable snapshot when it was last asked."""
    snapshot_us: int | None = None
    """When it last gave a usable snapshot."""
    fetch_seconds: float | None = None
    round_seconds: float | None = None
    charged_us: int | None = None
    """Up to when everything it reports is charged."""
    failures: int = 0
    """Rounds that failed in a row, for whatever reason."""


@dataclass(slots=True)
class LedgerHealth:
    """Whether the ledger answered when it was last asked."""

    up: bool = True


@dataclass(slots=True)
class Once:
    """Logs each kind of failure once until things are well again: the same line each round would fill the log."""

    what: str
    _told: set[str] = field(default_factory=set)

    def failed(self, error: BaseException, remark: str = "") -> None:
        """Tell, with a traceback where it is nothing that was to be expected."""
        kind = re.sub(r"\d+", "#", f"{type(error).__name__}: {error}")
        if kind not in self._told:
            self._told.add(kind)
            unexpected = not isinstance(error, CreditsError)
            text = f"{type(error).__name__}: {error}" if unexpected else str(error)
            log.error("%s: %s%s", self.what, text, remark, exc_info=error if unexpected else None)

    def warn(self, kind: str, text: str) -> None:
        """Tell of something that passes by itself."""
        if kind not in self._told:
            self._told.add(kind)
            log.warning("%s: %s", self.what, text)

    def well(self) -> None:
        """Everything works; say so where something did not."""
        if self._told:
            self._told.clear()
            log.info("%s: works again.", self.what)
