"""What a source could not charge: how many records of each reason, and some of them by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

EXAMPLES_MAX: Final = 3
"""How many records of a reason are named in the log: enough to begin to look."""

_SHOWN_MAX: Final = 120


class Uncharged(Counter[str]):
    """Reason -> how many. `examples`: the ids of the first of them, as the log names them."""

    def __init__(self) -> None:
        super().__init__()
        self.examples: dict[str, list[str]] = {}

    def add(self, reason: str, which: str | None = None) -> None:
        """One more record; `which` is its id, where that is known."""
        self[reason] += 1
        if which and self.wants(reason):
            # An id that made a record unusable may hold anything, and goes into a log.
            shown = which[:_SHOWN_MAX] if which[:_SHOWN_MAX].isprintable() else ascii(which[:_SHOWN_MAX])
            self.examples.setdefault(reason, []).append(shown)

    def join(self, counts: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> None:
        """Those of another part of the source."""
        self.update(counts)
        for reason, found in examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += found[: EXAMPLES_MAX - len(kept)]

    def wants(self, reason: str) -> bool:
        """Whether one more id would be kept."""
        return len(self.examples.get(reason, ())) < EXAMPLES_MAX
