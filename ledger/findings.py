"""What a check of the ledger finds: figures that should be the same and are not."""

from __future__ import annotations

from ledger.money import format_micro

Hashes = dict[str, dict[bytes, bytes]]
"""Hashes of an org by their keys, as the server gives them."""


class Findings:
    """Of one org. `checked`: how much of what was looked at, in all; `differences`: where they are added."""

    def __init__(self, org: str, checked: dict[str, int], differences: list[dict[str, str | None]]) -> None:
        self.org = org
        self.checked = checked
        self._differences = differences

    def sums(
        self, what: str, have: dict[str, int], other: str, sums: dict[str, int], *, only_known: bool = False
    ) -> None:
        """Sums by name; `only_known`: of those that are kept."""
        for name in sorted(have.keys() if only_known else have.keys() | sums.keys()):
            self.same(f"{what} {name!r}", have.get(name, 0), other, sums.get(name, 0))

    def same(self, what: str, have: int, other: str, expected: int) -> None:
        """Micro-credits, or microseconds where `what` says so."""
        if have != expected:
            is_time = "_us" in what or what.endswith(" us")
            unit = str if is_time else format_micro
            self.differ(
                what,
                f"{unit(have)}, but {other} add up to {unit(expected)} (difference {unit(have - expected)})",
                None if is_time else format_micro(have - expected),
            )

    def differ(self, what: str, message: str, amount: str | None = None) -> None:
        """`amount`: credits by which two figures differ, None where it is not about credits."""
        self._differences.append({"org": self.org, "what": what, "difference": message, "credits": amount})
