"""How far a tier's exhaustion goes: a pure function of what it has, what runs, and what was decided before.

warn: it runs out soon. block: nothing is left for new work. grace: what runs cannot have its window of credits any
more, which is while there still is something left; it is signalled. act: the grace is over, so it is suspended or
stopped, where the policy says so. Credits that come, or a period that starts anew, end it at the next look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ledger.exhaustion import TierState
from ledger.money import HOUR_US


class Stage(IntEnum):
    """The values of `credits_exhaustion_stage`."""

    NONE = 0
    WARN = 1
    BLOCK = 2
    GRACE = 3
    ACT = 4


WORDS = {Stage.NONE: "ok", Stage.WARN: "warn", Stage.BLOCK: "block", Stage.GRACE: "grace"}


_CALM = (5, 4)
"""Without new credits a warning ends once what is left lasts longer than its hours by this."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What happens to a tier that runs out. `then`: block, suspend or stop."""

    warn_us: int
    grace_us: int
    then: str

    def of_org(self, said: Mapping[str, Any]) -> Policy:
        """With what the org's own policy says otherwise; what makes no sense there is passed over."""
        then = said.get("then")
        return Policy(
            _time(said.get("warn_hours_left"), HOUR_US, self.warn_us),
            _time(said.get("grace_minutes"), HOUR_US // 60, self.grace_us),
            then if then in ("block", "suspend", "stop") else self.then,
        )


@dataclass(frozen=True, slots=True)
class TierFacts:
    """A tier at an instant, in micro-credits.

    `counted`: the same instant in the time that enforcers count. `left`: neither expired nor spent. `held`: in holds of
    work that has not started. `wanted`: what running work is to have set aside. `burn`: an hour's use. `ends_us`: when
    its period starts anew. `is_fresh`: all sources with work in it were read lately.
    """

    at_us: int
    left_micro: int
    held_micro: int
    wanted_micro: int
    burn_micro: int
    unlimited: bool = False
    ends_us: int | None = None
    is_fresh: bool = True
    counted_us: int = 0

    @property
    def is_dry(self) -> bool:
        """Whether what runs cannot have its window of credits."""
        return self.wanted_micro > max(0, self.left_micro)


def decide(state: TierState, facts: TierFacts, policy: Policy) -> TierState:
    """The state from now on; `state` itself where nothing changed."""
    stage = _stage(state, facts, policy)
    if stage == state.stage:
        return state
    until = until_counted = 0
    if stage is Stage.GRACE:
        until, until_counted = facts.at_us + policy.grace_us, facts.counted_us + policy.grace_us
    elif stage is Stage.ACT:
        until, until_counted = state.until_us, state.until_counted_us
    # What is suspended goes on once its window is there again: it wants nothing meanwhile, so this is remembered. And
    # who was warned is not told that all is well, and warned again, as often as a job ends and another starts.
    need = facts.wanted_micro if stage is Stage.ACT else max(0, facts.left_micro) if stage is Stage.WARN else 0
    return TierState(stage, facts.at_us, until, need, until_counted)


def _stage(state: TierState, facts: TierFacts, policy: Policy) -> Stage:
    by_balance = _by_balance(state, facts, policy)
    if facts.unlimited:
        return Stage.NONE
    if policy.then == "block":
        return Stage.BLOCK if facts.is_dry else by_balance
    if state.stage == Stage.ACT:
        if facts.is_dry or (
            policy.then == "suspend" and facts.left_micro - facts.held_micro < facts.wanted_micro + state.need_micro
        ):
            return Stage.ACT
        return by_balance
    if not facts.is_dry:
        return by_balance
    if not facts.is_fresh:  # nothing goes further on what may no longer be so
        return Stage(state.stage) if state.stage >= Stage.BLOCK else Stage.BLOCK
    if state.stage == Stage.GRACE:
        is_over = facts.at_us >= state.until_us and facts.counted_us >= state.until_counted_us
        return Stage.ACT if is_over else Stage.GRACE
    return Stage.GRACE


def _by_balance(state: TierState, facts: TierFacts, policy: Policy) -> Stage:
    if facts.left_micro - facts.held_micro - facts.wanted_micro <= 0:
        return Stage.BLOCK
    is_warned = state.stage == Stage.WARN and facts.left_micro <= state.need_micro  # no credits came since
    if facts.burn_micro <= 0:
        return Stage.WARN if is_warned else Stage.NONE
    lasts = facts.left_micro * HOUR_US // facts.burn_micro
    is_short = lasts <= (policy.warn_us * _CALM[0] // _CALM[1] if is_warned else policy.warn_us)
    return Stage.WARN if is_short and (facts.ends_us is None or facts.at_us + lasts < facts.ends_us) else Stage.NONE


def _time(value: object, unit_us: int, otherwise: int) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e6:
        return int(value * unit_us)
    return otherwise
