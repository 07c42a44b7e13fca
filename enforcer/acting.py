"""What is done to the work of a tier that runs out: told first, and acted upon once it has had its whole grace.

The grace is each workload's own: it begins when its signal was delivered, and is over when both the wall clock and the
time that was counted meanwhile (see grace.py) say so. A signal that fails is tried again in every
round; what could not be told for a whole grace of trying is acted upon all the same. What was noted about an earlier
run of the same workload counts for nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

from enforcer.actions.base import ActionError, Actions, Outcome
from enforcer.stages import Policy, Stage
from ledger.clock import Clock
from ledger.exhaustion import ORG_TIER, Act, RunningWork, TierState
from ledger.refusal_text import Circumstances, running_out
from ledger.scopes import is_class
from ledger.store import Ledger

SIGNALLED, SUSPENDED, STOPPED, CANNOT = "signal", "suspend", "stop", "cannot"
TRYING: Final = "trying"
"""A signal that was not delivered yet, since when, and when it was tried last."""
SUSPENDING: Final = "suspending"
"""Noted before it is asked for: whether it was done is not known where no answer comes, and it has to be undone."""
_RESTS: Final = (SUSPENDED, SUSPENDING)
_AT_ONCE: Final = 8
Acts = MutableMapping[tuple[str, str, str], Act]
"""(tier, source, workload) -> the last thing that was done."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Case:
    """A tier that runs out, for those who act. `whose`: in words; `renews_us`: when its period starts anew."""

    org: str
    tier: str
    whose: str
    state: TierState
    policy: Policy
    about: Circumstances
    renews_us: int | None = None

    @property
    def since_us(self) -> int:
        """When its credits became too few."""
        return self.state.since_us if self.state.stage == Stage.GRACE else self.state.until_us - self.policy.grace_us


class Acting:
    """Signals, suspends, stops and resumes. `check` raises where another enforcer does so by now."""

    def __init__(
        self, ledger: Ledger, actions: Mapping[str, Actions], check: Callable[[], None], clock: Clock, counted: Clock,
        gap_us: int,
    ) -> None:  # fmt: skip
        """`actions` by the name of the source. `gap_us`: so long without a try, and trying begins anew."""
        self._ledger = ledger
        self._actions = actions
        self._check = check
        self._clock = clock
        self._counted = counted
        self._gap_us = gap_us

    async def act(self, case: Case, fresh: Sequence[RunningWork], acts: Acts) -> None:
        """Do to each workload what its turn is. Raises: LeaseLost, LedgerUnavailable."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(work: RunningWork) -> None:
            async with gate:
                await self._turn(case, work, acts.get((case.tier, work.source, work.id)))

        done = await asyncio.gather(*(one(work) for work in fresh), return_exceptions=True)
        for error in done:  # all have ended by now: nothing goes on behind the back of the next round
            if isinstance(error, BaseException):
                raise error

    async def undo(self, org: str, tier: str, source: str, workload: str, acts: Acts) -> None:
        """What was suspended goes on, unless another tier wants it suspended; what was only told is forgotten."""
        is_last = not any(
            act.what in _RESTS and name != tier and (its_source, its_id) == (source, workload)
            for (name, its_source, its_id), act in acts.items()
        )
        if acts[tier, source, workload].what in _RESTS and is_last and source in self._actions:
            self._check()
            try:
                if await self._actions[source].resume(workload) is Outcome.LATER:
                    return
            except ActionError as error:
                log.warning("org %s: %s cannot go on yet: %s", org, workload, error)
                return
            log.info("org %s: %s goes on", org, workload)
        await self._ledger.exhaustion.note(org, tier, source, workload, None)
        del acts[tier, source, workload]

    async def _turn(self, case: Case, work: RunningWork, act: Act | None) -> None:
        if act is not None and act.what not in _RESTS and _is_of_another_run(act, work):
            act = None
        last = SUSPENDED if case.policy.then == "suspend" else STOPPED
        if act is not None and act.what in (last, CANNOT):
            return
        if act is None or act.what == TRYING:
            act = await self._signal(case, work, act)
        if act is None or case.state.stage != Stage.ACT:
            return
        if act.what not in (SIGNALLED, TRYING) or self._is_over(act, case.policy.grace_us):
            await self._finish(case, work, last)

    def _is_over(self, act: Act, grace_us: int) -> bool:
        begun_us = act.since_us if act.what == TRYING else act.at_us
        return self._clock() - begun_us >= grace_us and self._counted() - act.counted_us >= grace_us

    async def _signal(self, case: Case, work: RunningWork, act: Act | None) -> Act | None:
        """What is known of it then: delivered, tried since, or None where there is nobody to tell."""
        until = self._clock() + case.policy.grace_us
        self._check()
        try:
            outcome = await self._actions[work.source].signal(work.id, self._reason(case, until))
        except ActionError as error:
            log.warning("org %s: signal of %s: %s", case.org, work.id, error)
            outcome = Outcome.LATER
        now, counted = self._clock(), self._counted()
        if outcome is Outcome.OVER:
            return None
        if outcome is Outcome.LATER:
            since = now, counted
            if act is not None and now - act.at_us <= self._gap_us:
                since = act.since_us, act.counted_us
            act = Act(TRYING, now, *since, work.started_us)
        else:  # where a scheduler has no signal, there is nothing to deliver, and the grace is as long
            act = Act(SIGNALLED, now, 0, counted, work.started_us)
            log.info("org %s: signal of %s: %s", case.org, work.id, outcome.value)
        await self._ledger.exhaustion.note(case.org, case.tier, work.source, work.id, act)
        return act

    async def _finish(self, case: Case, work: RunningWork, what: str) -> None:
        actions = self._actions[work.source]
        self._check()
        if what == SUSPENDED:
            await self._note(case, work, SUSPENDING)
        call = actions.suspend if what == SUSPENDED else actions.stop
        try:
            outcome = await call(work.id, self._reason(case, None))
        except ActionError as error:
            log.warning("org %s: %s of %s: %s", case.org, what, work.id, error)
            return  # tried again at the next look
        if outcome is Outcome.DONE:
            await self._note(case, work, what)
            log.info("org %s: %s of %s: done", case.org, what, work.id)
        elif outcome is Outcome.CANNOT:
            log.warning("org %s: %s runs on a scheduler that cannot %s it", case.org, work.id, what)
            await self._note(case, work, CANNOT)

    async def _note(self, case: Case, work: RunningWork, what: str) -> None:
        act = Act(what, self._clock(), run_us=work.started_us)
        await self._ledger.exhaustion.note(case.org, case.tier, work.source, work.id, act)

    @staticmethod
    def _reason(case: Case, until_us: int | None) -> str:
        """For the person whose work it is. `until_us`: the end of its grace, None where that is over."""
        return running_out(
            case.whose, case.since_us, case.policy.then, until_us, case.org, case.about,
            is_budget=case.tier != ORG_TIER and not is_class(case.tier), renews_us=case.renews_us,
        )  # fmt: skip


def _is_of_another_run(act: Act, work: RunningWork) -> bool:
    """By its start, where that was noted: what was done may seem to be later than a clock that was set back since."""
    return (act.run_us or act.at_us) < work.started_us
