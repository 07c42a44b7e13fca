"""Restricted grants: for which work they pay, and what is left for work of a class once others are paid for.

A class of work is its cluster and preset. Grants that pay the same classes are one scope. Work of a class is paid for
by unrestricted grants and by the scopes that accept it, so that what is left for it is a question of flow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from ledger.errors import InvalidRequest
from ledger.keys import US
from ledger.money import HOUR_US
from ledger.names import check_name

SCOPES_MAX = 6
"""Different restrictions that an org's grants may have at a time: every set of them is looked at for a decision."""
NAMES_MAX = 50
_PREFIX = f"c{US}"


class Scope(NamedTuple):
    """What a restricted grant pays for: names in order, each once; none: any. One of the two is not empty."""

    presets: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()

    def accepts(self, cluster: str, preset: str) -> bool:
        """`preset` "": work that has none (storage, an app by itself)."""
        return (not self.clusters or cluster in self.clusters) and (not self.presets or preset in self.presets)

    def encode(self) -> str:
        """As the purse has it: the same text for the same scope."""
        parts = {"clusters": self.clusters, "presets": self.presets}
        return msgspec.json.encode({name: names for name, names in parts.items() if names}).decode()

    @classmethod
    def decode(cls, text: str | bytes) -> Scope:
        parts: dict[str, Any] = msgspec.json.decode(text)
        return cls(tuple(parts.get("presets", ())), tuple(parts.get("clusters", ())))


def make_scope(presets: Iterable[str], clusters: Iterable[str]) -> Scope | None:
    """None where nothing is restricted. Raises: InvalidRequest for what is no name, or for too many."""
    found = []
    for what, names in (("preset", presets), ("cluster", clusters)):
        checked = tuple(sorted({check_name(what, name) for name in names}))
        if len(checked) > NAMES_MAX:
            raise InvalidRequest(f"{what}s: a grant may be restricted to at most {NAMES_MAX}; leave some out")
        found.append(checked)
    scope = Scope(*found)
    return scope if any(scope) else None


def restricted_in(text: str) -> dict[Scope, int]:
    """What is left by scope, as the balance script says it."""
    lefts: dict[str, str] = msgspec.json.decode(text)
    return {Scope.decode(scope): int(micro) for scope, micro in lefts.items()}


def preset_of(kind: str, resource: str, app: str) -> str:
    """The preset that work runs on, "" where it runs on none: storage, or an app without a preset."""
    return "" if kind == "storage" or resource == app else resource


def class_field(cluster: str, preset: str) -> str:
    """A class of work: field of `held` and `running`, and what charges and debts are kept by."""
    return f"{_PREFIX}{cluster}{US}{preset}"


def is_class(field: str) -> bool:
    """Whether a field of sums, or a name of a tier, is a class of work."""
    return field.startswith(_PREFIX) and field.count(US) == 2


def classes_in(fields: Mapping[str, int]) -> dict[tuple[str, str], int]:
    """(cluster, preset) -> amount, of the fields of `held` or `running` that are classes."""
    return {
        (cluster, preset): micro
        for field, micro in fields.items()
        if field.startswith(_PREFIX)
        for cluster, _, preset in [field.removeprefix(_PREFIX).partition(US)]
    }


@dataclass(frozen=True, slots=True)
class Supply:
    """What is left for work: `free_micro` for any, and of each scope."""

    free_micro: int
    by_scope: Mapping[Scope, int]

    def lasts_us(self, burn_micro: int, aside: Mapping[tuple[str, str], int]) -> int:
        """How long until work of some class cannot be paid, where all of it uses `burn_micro` (> 0) an hour, each class
        in proportion to what it has set aside; where nothing is set aside, by what no scope is needed for.

        Until then no set of scopes is asked for more than it has by work that has no other.
        """
        scopes = [(scope, micro) for scope, micro in self.by_scope.items() if micro > 0]
        asking = {work: micro for work, micro in aside.items() if micro > 0} or {("", ""): 1}
        lasts = []
        for chosen in range(1 << len(scopes)):
            others = [scope for n, (scope, _) in enumerate(scopes) if not chosen >> n & 1]
            supply = max(0, self.free_micro) + sum(micro for n, (_, micro) in enumerate(scopes) if chosen >> n & 1)
            asked = sum(micro for work, micro in asking.items() if not any(one.accepts(*work) for one in others))
            if asked:
                lasts.append(supply * HOUR_US * sum(asking.values()) // (burn_micro * asked))
        return min(lasts)

    def left_for(self, cluster: str, preset: str, others: Mapping[tuple[str, str], int]) -> int:
        """What a class of work can get at most while `others` (class -> micro-credits) get as much as they can.

        The difference of two maximum flows, each the least cut over all sets of scopes.
        """
        scopes = [(scope, micro) for scope, micro in self.by_scope.items() if micro > 0]

        def mask_of(work: tuple[str, str]) -> int:
            return sum(1 << n for n, (scope, _) in enumerate(scopes) if scope.accepts(*work))

        demands = [(mask_of(work), micro) for work, micro in others.items() if work != (cluster, preset)]
        mine = mask_of((cluster, preset))
        with_mine = without = None
        for chosen in range(1 << len(scopes)):
            cut = max(0, self.free_micro) + sum(micro for n, (_, micro) in enumerate(scopes) if chosen >> n & 1)
            cut += sum(micro for mask, micro in demands if mask & ~chosen)
            without = cut if without is None else min(without, cut)
            if not mine & ~chosen:
                with_mine = cut if with_mine is None else min(with_mine, cut)
        assert with_mine is not None
        assert without is not None
        # Nothing is asked for by more than there is: the cut that asks nobody.
        return with_mine - min(without, sum(micro for _, micro in demands))
