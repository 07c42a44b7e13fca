"""Orgs with restricted grants run out class by class: work that a grant still pays for goes on beside work that none
pays for any more. A class is a tier of its own then."""

from __future__ import annotations

from typing import NamedTuple

from enforcer.stages import Stage, TierFacts
from ledger.balances import Balance
from ledger.exhaustion import ExhaustionState
from ledger.money import HOUR_US
from ledger.scopes import class_field, classes_in, is_class

_OF_NO_CLASS = ("", "")


class WorkTier(NamedTuple):
    """A class of work at an instant: name of the tier, and field of `held` and `running`; (cluster, preset)."""

    name: str
    title: str
    work: tuple[str, str]
    facts: TierFacts


def work_tiers(org: str, balance: Balance, state: ExhaustionState, now: int, hold_us: int) -> list[WorkTier]:
    """Classes that run, are held or were acted upon; none where nothing is told apart, as in orgs without such grants.

    Each has what is left for it while all others get what they can, also those that are suspended and wait for it.
    """
    running, held = classes_in(state.running), classes_in(state.held)
    stages = classes_in({name: 0 for name in state.stages if is_class(name)})
    needs = {work: state.stages[class_field(*work)] for work in stages}
    others = {work: running.get(work, 0) for work in {*running, *held, *stages}}
    for work, at in needs.items():
        others[work] += at.need_micro if at.stage == Stage.ACT else 0
    # What a source has not told apart yet is nobody's in particular, so no restricted grant counts for it.
    others[_OF_NO_CLASS] = state.running.get("", 0) - sum(running.values())
    found = []
    for work in sorted(others.keys() - {_OF_NO_CLASS}):
        cluster, preset = work
        wanted = running.get(work, 0)
        left = balance.supply.left_for(cluster, preset, others)
        burn = wanted * HOUR_US // hold_us if hold_us else 0
        facts = TierFacts(now, left, held.get(work, 0), wanted, burn, balance.unlimited)
        what = f"preset {preset} of cluster {cluster}" if preset else f"work without a preset in cluster {cluster}"
        found.append(WorkTier(class_field(*work), f"org {org} ({what})", work, facts))
    return found
