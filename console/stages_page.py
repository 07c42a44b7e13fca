"""Stages: which org, project or user is running out or has, since when, and what is done about what runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from console.desk import Desk
from console.texts import STAGES
from ledger import keys
from ledger.exhaustion import ORG_TIER, ExhaustionState, TierState
from ledger.scopes import is_class

_READ_AT_ONCE: Final = 64
_ROWS_MAX: Final = 500
_ACTS_MAX: Final = 20
_WORDS: Final = {1: "warn", 2: "block", 3: "grace"}
_LAST: Final = 4
LAST: Final = "act"
"""The stage after the grace, where nothing says whether it is to suspend or to stop."""
_ORDER: Final = ("ok", "warn", "block", "grace", "suspend", LAST, "stop")
_STAGES: Final = {**STAGES, LAST: ("Suspended or stopped", "What runs is suspended or stopped, as the policy says.")}
_DONE: Final = {"signal": "told", "suspend": "suspended", "stop": "stopped", "cannot": "out of reach"}


@dataclass(frozen=True, slots=True)
class TierRow:
    """A tier in a stage. `done`: what was done to how many workloads; `acts`: (source, workload, what, when), some."""

    org: str
    tier: str
    stage: str
    since_us: int
    until_us: int
    done: dict[str, int] = field(default_factory=dict)
    acts: Sequence[tuple[str, str, str, int]] = ()


class StagesPage:
    """One page."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """Raises: LedgerUnavailable."""
        orgs = await self._desk.ledger.accounts.orgs()
        rows: list[TierRow] = []
        async with self._desk.turns:
            for begin in range(0, len(orgs), _READ_AT_ONCE):
                part = orgs[begin : begin + _READ_AT_ONCE]
                states = await asyncio.gather(*(self._desk.ledger.exhaustion.read(org) for org in part))
                for org, state in zip(part, states, strict=True):
                    if any(tier.stage > 0 for tier in state.stages.values()):
                        rows += tier_rows(org, state, (await self._desk.ledger.accounts.balance(org)).acting)
        rows.sort(key=lambda row: (-_ORDER.index(row.stage), row.org, row.tier))
        return self._desk.pages.render(
            request, "stages.html", rows=rows[:_ROWS_MAX], count=len(rows), stages=_STAGES, done=_DONE
        )


def tier_rows(org: str, state: ExhaustionState, acting: str) -> list[TierRow]:
    """The tiers of an org that are in a stage. `acting`: what is done about all that runs of the org, "" if nothing."""
    found = []
    for name, tier in state.stages.items():
        if tier.stage <= 0:
            continue
        acts = [(source, work, act.what, act.at_us) for (of, source, work), act in state.acted.items() if of == name]
        done = dict(Counter(act[2] for act in acts))
        found.append(
            TierRow(
                org, tier_title(name), _word(tier, done, acting if name == ORG_TIER else ""), tier.since_us,
                tier.until_us, done, acts[:_ACTS_MAX],
            )
        )  # fmt: skip
    return found


def tier_title(name: str) -> str:
    """Whom a tier is about, in words."""
    if name == ORG_TIER:
        return "the whole org"
    parts = name.split(keys.US)
    if is_class(name):
        return f"work on {parts[2] or 'no preset'} in cluster {parts[1]}"
    if len(parts) == 4:
        project, user, kind, period = parts
        whose = f"project {project}" if kind == "p" else f"user {user} in project {project}"
        return f"{whose}, budget of the {period}" if period != "total" else f"{whose}, budget in all"
    return name.replace(keys.US, " ")


def _word(tier: TierState, done: dict[str, int], acting: str) -> str:
    if tier.stage < _LAST:
        return _WORDS.get(tier.stage, "warn")
    return acting or ("suspend" if "suspend" in done else "stop" if "stop" in done else LAST)
