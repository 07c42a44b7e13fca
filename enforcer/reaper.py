"""Moves orgs through the stages of exhaustion, and acts on what runs where the policy says so.

Every pass decides anew from the ledger; a stage is moved by whoever is first, and every action may be repeated, so
two enforcers do no harm. Nothing is done while the ledger is away (the pass fails) or on stale facts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

import msgspec

from config.settings import Settings
from enforcer.actions.base import ActionError, Actions, Outcome
from enforcer.metrics import EnforcerMetrics
from ledger.accounts import Balance
from ledger.clock import Clock, now_us
from ledger.errors import CreditsError
from ledger.money import HOUR_US, format_micro
from ledger.rates_history import nano_of
from ledger.stages import Funds, Policy, Stage, StageRecord, Suspended, next_stage, policy_of
from ledger.store import Ledger

STALE_ROUNDS: Final = 4
"""Rounds a source may miss before its facts are too old to act on."""
_STALE_US_MIN: Final = 60_000_000
_MINUTE_US: Final = 60_000_000
log = logging.getLogger(__name__)


class Reaper:
    """One enforcer's loop over all orgs. `actions`: by name of the source whose workloads they act on."""

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        actions: Mapping[str, Actions],
        metrics: EnforcerMetrics,
        clock: Clock = now_us,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._actions = actions
        self._metrics = metrics
        self._clock = clock
        given = settings.exhaustion
        self._policy = Policy(
            int(given.warn_hours_left * HOUR_US),
            int(given.grace_minutes * _MINUTE_US),
            int(settings.admission.hold_minutes * _MINUTE_US),
            given.then,
        )
        self._tells = given.webhook is not None

    async def run(self) -> None:
        """Pass after pass, until cancelled."""
        while True:
            try:
                await self.look()
            except (CreditsError, OSError) as error:
                log.warning("no stage was looked at: %s", error)
            except Exception:
                log.exception("no stage was looked at")
            await asyncio.sleep(self._settings.metering.interval_seconds)

    async def look(self) -> None:
        """One pass over all orgs. Raises: LedgerUnavailable: nothing more was done."""
        marks = await self._ledger.charging.source_marks()
        stages: dict[str, int] = {}
        for balance in await self._ledger.accounts.balances():
            record = await self._org(balance, marks)
            stages[balance.org] = record.stage.level
        self._metrics.stages(stages)

    async def _org(self, balance: Balance, marks: Mapping[str, int]) -> StageRecord:
        stored, now = balance.stage_data, self._clock()
        record = StageRecord.decode(stored.encode())
        funds = Funds(
            balance.left_micro, balance.admitted_micro, balance.burn_micro,
            sum(one.burn_micro for one in record.suspended), balance.unlimited,
        )  # fmt: skip
        following = next_stage(record, funds, policy_of(dict(balance.policy), self._policy), now)
        acts = following.stage.level > Stage.BLOCK.level
        if acts and (self._is_off(balance) or not await self._is_fresh(balance.org, marks, now)):
            return record  # what is under way waits; nothing is told or stopped on stale facts
        if following is not record:
            moved = await self._ledger.stages.move(
                balance.org, stored, following, now, balance.left_micro, tells=self._tells
            )
            if not moved:
                return record
            stored = following.encode()
            log.warning("org %s: %s -> %s, %s left", balance.org, record.stage, following.stage,
                        format_micro(balance.left_micro))  # fmt: skip
        reason = reason_of(balance, following)
        if following.stage is Stage.GRACE and following is not record:
            await self._each(balance.org, following, lambda actions, i: actions.signal(i, reason))
        elif following.stage is Stage.STOP:
            await self._each(balance.org, following, lambda actions, i: actions.stop(i, reason))
        elif following.stage is Stage.SUSPEND:
            done = await self._each(balance.org, following, lambda actions, i: actions.suspend(i, reason))
            following = await self._note(balance, stored, following, (*following.suspended, *done), now)
        elif following.suspended and following.stage in (Stage.OK, Stage.WARN):
            left = [one for one in following.suspended if not await self._resumed(one)]
            following = await self._note(balance, stored, following, tuple(left), now)
        return following

    def _is_off(self, balance: Balance) -> bool:
        """Whether admission only watches: then nothing that runs is touched either."""
        return (balance.policy.get("mode") or self._settings.admission.mode) != "enforce"

    async def _is_fresh(self, org: str, marks: Mapping[str, int], now: int) -> bool:
        """Whether every source that meters work of the org has told of it lately."""
        bound = max(_STALE_US_MIN, int(STALE_ROUNDS * self._settings.metering.interval_seconds * 1_000_000))
        burning = await self._ledger.charging.burning_sources(org)
        stale = sorted(source for source in burning if now - marks.get(source, 0) > bound)
        if stale:
            log.warning("org %s: nothing is done to running work, %s is out of date", org, ", ".join(stale))
            self._metrics.count_action("any", "stale")
        return not stale

    async def _each(
        self, org: str, record: StageRecord, act: Callable[[Actions, str], Awaitable[Outcome]]
    ) -> list[Suspended]:
        """Act on every job and app of the org that runs; those that were acted on, with what they cost an hour."""
        state = await self._ledger.charging.load(org)
        held = {(one.source, one.id) for one in record.suspended}
        done: list[Suspended] = []
        for source, runs in state.runs.items():
            actions = self._actions.get(source)
            for run in runs.values():
                pauses = run.suspended and run.suspended[-1][1] is None
                if run.state != "open" or run.kind == "storage" or pauses or (source, run.id) in held:
                    continue
                outcome = Outcome.CANNOT if actions is None else await self._try(act(actions, run.id), source, run.id)
                if outcome is Outcome.DONE:
                    row = state.rows[run.row]
                    table = (await self._ledger.rates.read(run.cluster))[1]
                    nano = nano_of(table.at(self._clock()), row.kind, row.resource, row.app, run.bills_app) if table else 0
                    done.append(Suspended(source, run.id, (nano or 0) // 1000))
        return done

    async def _resumed(self, one: Suspended) -> bool:
        actions = self._actions.get(one.source)
        if actions is None:
            return True  # the source is configured no more: nobody could resume it here
        return await self._try(actions.resume(one.id), one.source, one.id) not in (Outcome.LATER, None)

    async def _try(self, action: Awaitable[Outcome], source: str, workload: str) -> Outcome | None:
        """The outcome, None where the scheduler refused or did not answer: the next pass tries again."""
        try:
            outcome = await action
        except (ActionError, OSError, TimeoutError) as error:
            log.error("%s, workload %s: %s", source, workload, error)
            self._metrics.count_action(source, "failed")
            return None
        self._metrics.count_action(source, outcome.value)
        return outcome

    async def _note(
        self, balance: Balance, stored: str, record: StageRecord, suspended: tuple[Suspended, ...], now: int
    ) -> StageRecord:
        """Keep in the ledger what is suspended, so that any enforcer can resume it."""
        if suspended == record.suspended:
            return record
        changed: StageRecord = msgspec.structs.replace(record, suspended=suspended)
        await self._ledger.stages.move(balance.org, stored, changed, now, balance.left_micro, tell=False)
        return changed


def reason_of(balance: Balance, record: StageRecord) -> str:
    """One sentence for whose work is told, suspended or stopped."""
    ask = balance.contact or f"an owner of org {balance.org}"
    what = {
        Stage.SUSPEND: "It was suspended and goes on by itself once there are credits again.",
        Stage.STOP: "It was stopped.",
    }.get(record.stage, "It will be suspended or stopped soon: save what you have.")
    return f"Org {balance.org} has {format_micro(balance.left_micro)} credits left. {what} Ask {ask} for credits."


def without_secrets(settings: Settings) -> Settings:
    """For logs."""
    return replace(settings)
