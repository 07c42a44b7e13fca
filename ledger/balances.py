"""What an org has: all figures of one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ledger.lua import text
from ledger.money import HOUR_US
from ledger.scopes import Scope, Supply, classes_in, restricted_in


@dataclass(frozen=True, slots=True)
class Balance:
    """What an org has, all of one instant. available = granted - expired - spent - held, always.

    It may be as far below 0 as `credit_line_micro`. `restricted`: what is left of grants that pay for some work only.
    `owed_micro`: what no grant paid, which is more than the overdraft where there are restricted ones. `aside_micro`:
    what running work is to have set aside then, by class (cluster, preset), ("", "") for what is not told apart.

    `burn_micro`: micro-credits an hour that what runs now costs. `overdraft_micro`: spent beyond what counts
    as granted. `holds`: how many admission holds there are.
    """

    org: str
    at_us: int
    granted_micro: int
    expired_micro: int
    spent_micro: int
    held_micro: int
    unlimited: bool
    burn_micro: int
    holds: int
    granted_by_source: Mapping[str, int]
    known: bool
    contact: str | None
    policy: Mapping[str, Any]
    credit_line_micro: int = 0
    restricted: Mapping[Scope, int] = field(default_factory=dict)
    owed_micro: int = 0
    aside_micro: Mapping[tuple[str, str], int] = field(default_factory=dict)
    revision: str = "0"
    """Of what admins set: another one after each change of it, never the same again."""
    acting: str = ""
    """`grace`, `suspend` or `stop` while something is done about what runs (see ledger/exhaustion.py)."""
    expired_most_micro: int = 0
    """The most that ever was: late charges of time before a grant's end, and corrections of it, make it less."""
    withdrawn_micro: int = 0
    restored_micro: int = 0
    """granted = sum of `granted_by_source` - withdrawn + restored, and less grants that have not begun."""

    @property
    def left_micro(self) -> int:
        """Granted and neither expired nor spent; negative in overdraft."""
        return self.granted_micro - self.expired_micro - self.spent_micro

    @property
    def available_micro(self) -> int:
        return self.left_micro - self.held_micro

    @property
    def usable_micro(self) -> int:
        """What there is before what runs runs out: what is left, and the credit line."""
        return self.left_micro + self.credit_line_micro

    @property
    def supply(self) -> Supply:
        """The same, told apart by what it may be used for."""
        free = self.left_micro + self.owed_micro - sum(self.restricted.values())
        return Supply(free + max(0, self.credit_line_micro - self.owed_micro), self.restricted)

    @property
    def overdraft_micro(self) -> int:
        return max(0, -self.left_micro)

    @property
    def exhausted_us(self) -> int | None:
        """When nothing is left at the present burn; None while nothing burns or the org is unlimited. With restricted
        grants: when something that runs now can no longer be paid for."""
        if self.unlimited or self.burn_micro <= 0:
            return None
        lasts = max(0, self.usable_micro) * HOUR_US // self.burn_micro
        if self.restricted:
            lasts = min(lasts, self.supply.lasts_us(self.burn_micro, self.aside_micro))
        return self.at_us + lasts

    @property
    def stage(self) -> str:
        """`ok`, `warn` (less than a day left), `block` (nothing available), or what is done about it: `acting`."""
        if self.unlimited:
            return "ok"
        if self.acting:
            return self.acting
        if self.available_micro + self.credit_line_micro <= 0:
            return "block"
        exhausted = self.exhausted_us
        return "warn" if exhausted is not None and exhausted - self.at_us < 24 * HOUR_US else "ok"


def read_balance(org: str, answer: list[Any]) -> Balance:
    at, granted, expired, spent, held, running, holds = (int(value) for value in answer[:7])
    fields = {text(k): text(v) for k, v in zip(answer[7::2], answer[8::2], strict=True)}
    unlimited = fields.get("unlimited") == "1"
    left = granted - expired - spent
    line = int(fields.get("credit_line") or 0)
    aside = classes_in({name: int(micro) for name, micro in msgspec.json.decode(fields.get("aside", "{}")).items()})
    aside["", ""] = running - sum(aside.values())
    if not unlimited:
        # What running work is to have set aside is held as far as there is something left to hold.
        running = min(running, max(0, left + line - held))
    return Balance(
        org=org,
        at_us=at,
        granted_micro=granted,
        expired_micro=expired,
        spent_micro=spent,
        held_micro=held + running,
        unlimited=unlimited,
        burn_micro=sum(int(v) for k, v in fields.items() if k.startswith("burn:")),
        holds=holds,
        granted_by_source={k.removeprefix("granted:"): int(v) for k, v in fields.items() if k.startswith("granted:")},
        known=fields.get("known") == "1",
        contact=fields.get("contact"),
        policy=msgspec.json.decode(fields["policy"]) if fields.get("policy") else {},
        credit_line_micro=line,
        restricted=restricted_in(fields.get("restricted", "{}")),
        owed_micro=int(fields.get("owed", 0)),
        aside_micro=aside,
        revision=fields.get("settings_rev", "0"),
        acting=fields.get("acting", ""),
        expired_most_micro=int(fields.get("expired_most", 0)),
        withdrawn_micro=int(fields.get("withdrawn", 0)),
        restored_micro=int(fields.get("restored", 0)),
    )
