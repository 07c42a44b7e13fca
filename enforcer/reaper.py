"""Looks at every org again and again, puts its tiers into their stages, and acts on what runs where that says so.

Nothing is done on what a source said too long ago, nor while the ledger is away: then a look ends in an exception.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from config.settings import AdmissionSettings, Settings
from enforcer.acting import Acting, Case
from enforcer.actions.base import Actions
from enforcer.actions.factory import actions_of
from enforcer.grace import CountedTime
from enforcer.lease import Lease, LeaseLost
from enforcer.metrics import EnforcerMetrics
from enforcer.notify import Notifier
from enforcer.stages import WORDS, Policy, Stage, TierFacts, decide
from enforcer.work_tiers import work_tiers
from ledger import keys
from ledger.balances import Balance
from ledger.budget_store import BudgetState
from ledger.clock import Clock, format_time, monotonic_us
from ledger.errors import CreditsError, LedgerUnavailable, UnknownOrg
from ledger.exhaustion import ORG_TIER, Act, ExhaustionState, RunningWork, TierState
from ledger.keys import tier_fields
from ledger.money import HOUR_US, format_micro
from ledger.refusal_text import Circumstances, budget_text
from ledger.store import Ledger

_LEASE_ROUNDS: Final = 3
_LEASE_SECONDS_MIN: Final = 3.0
_STOP_SECONDS: Final = 2.0
_MINUTE_US: Final = 60_000_000
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Tier:
    """One tier of an org at one look."""

    name: str
    title: str
    facts: TierFacts
    state: TierState
    project: str | None = None
    user: str | None = None
    field: str = ""
    """Of `held` and `running`."""
    work: tuple[str, str] | None = None
    """Only what runs in this cluster on this preset."""
    only_new: bool = False
    """Whether what runs is left to other tiers."""

    def covers(self, work: RunningWork) -> bool:
        if self.work is not None:
            return (work.cluster, work.preset) == self.work
        return self.project is None or (work.project == self.project and self.user in (None, work.user))


class Reaper:
    """One look is `round()`; several enforcers take turns by a lease in the ledger."""

    def __init__(
        self, ledger: Ledger, policy: Policy, admission: AdmissionSettings, actions: Mapping[str, Actions],
        metrics: EnforcerMetrics, clock: Clock, *, interval_seconds: float, notifier: Notifier | None = None,
        monotonic: Clock = monotonic_us,
    ) -> None:  # fmt: skip
        """`actions` by the name of the source. `monotonic`: by which graces are counted."""
        self._ledger = ledger
        self._policy = policy
        self._admission = admission
        self._actions = actions
        self._metrics = metrics
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._stale_us = int(max(60.0, 4 * interval_seconds) * 1_000_000)
        self._hold_us = int(admission.hold_minutes * _MINUTE_US)
        self._notifier = notifier
        self._lease = Lease(ledger.exhaustion, max(_LEASE_SECONDS_MIN, _LEASE_ROUNDS * interval_seconds))
        self._monotonic = monotonic
        self._seen: dict[str, tuple[int | None, int]] = {}
        """By source its last mark, and since when it is known."""
        self._counted = CountedTime(ledger.exhaustion, monotonic)
        self._acting = Acting(ledger, actions, self._lease.check, clock, self._counted.now, self._stale_us)
        self._delivery: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have `run` end after the look it is at."""
        self._stopping.set()

    async def run(self) -> None:
        """Looks until it is stopped."""
        while not self._stopping.is_set():
            try:
                if await self.round():
                    self._deliver()
            except CreditsError as error:
                log.warning("nothing is stopped or resumed for now: %s", error)
            except Exception:
                log.exception("a look at the orgs failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_seconds):
                    await self._stopping.wait()
        if self._delivery is not None:
            self._delivery.cancel()
            await asyncio.wait({self._delivery})
        await self._lease.give_up()

    async def round(self) -> bool:
        """One look at all orgs; False where another enforcer does it. Raises: LedgerUnavailable."""
        goes_on = self._lease.is_ours
        if not await self._lease.take():
            self._metrics.stages = {}
            return False
        await self._counted.look(goes_on=goes_on)
        stages: dict[str, int] = {}
        try:
            async with self._lease.kept():
                marks = await self._ledger.charging.source_marks()
                self._note(marks)
                for org in await self._ledger.accounts.orgs():
                    try:
                        stages[org] = await self._look(org, marks)
                    except UnknownOrg:
                        continue
                    except (LeaseLost, LedgerUnavailable):
                        raise
                    except Exception:
                        log.exception("a look at org %s failed; the others are looked at all the same", org)
        except LeaseLost as lost:
            log.warning("%s", lost)
            self._metrics.stages = {}
            return False
        self._metrics.stages = stages
        return True

    def _deliver(self) -> None:
        """Beside the looks: a receiver that is slow keeps nobody running on."""
        if self._notifier is not None and (self._delivery is None or self._delivery.done()):
            self._delivery = asyncio.create_task(self._send(self._notifier))

    @staticmethod
    async def _send(notifier: Notifier) -> None:
        try:
            await notifier.deliver()
        except CreditsError as error:
            log.warning("events wait to be sent: %s", error)
        except Exception:
            log.exception("events cannot be sent")

    async def _look(self, org: str, marks: Mapping[str, int]) -> int:
        self._lease.check()
        balance = await self._ledger.accounts.balance(org)
        state = await self._ledger.exhaustion.read(org)
        for event in state.outbox:
            await self._pass_on(org, event)
        budgets = await self._ledger.budgets.states(org)
        policy = self._policy.of_org(balance.policy)
        own_mode = balance.policy.get("mode")
        modes = [own_mode] if own_mode else [self._admission.mode, *self._admission.clusters.values()]
        if "enforce" not in modes:  # what is only tried out stops nothing
            policy = Policy(policy.warn_us, policy.grace_us, "block")
        now = self._clock()
        tiers = _tiers(org, balance, budgets, state, now, self._hold_us)
        work: list[RunningWork] = []
        unsure: Mapping[str, int] = {}
        # What runs is only read, which is long for a large org, where something may have to be done about it.
        if any(max(tier.state.stage, decide(tier.state, tier.facts, policy).stage) >= Stage.GRACE for tier in tiers):
            work = await self._ledger.exhaustion.running_work(org)
            stale = [source for source in marks if not self._is_fresh(source, marks, now)]
            unsure = await self._ledger.exhaustion.set_aside(org, stale)
        acted = dict(state.acted)
        stage, said = Stage.NONE, balance.acting
        for tier in tiers:
            mine = [one for one in work if tier.covers(one) and self._may_act(one, own_mode)]
            fresh = [one for one in mine if self._is_fresh(one.source, marks, now)]
            # Enough of what it wants has to be known from sources that were read lately, also those we cannot act on.
            only_by_stale = (
                tier.facts.is_dry
                and not replace(tier.facts, wanted_micro=tier.facts.wanted_micro - unsure.get(tier.field, 0)).is_dry
            )
            is_fresh = not only_by_stale and len(fresh) == len(mine)
            facts = replace(tier.facts, is_fresh=is_fresh, counted_us=self._counted.now())
            its_policy = replace(policy, then="block") if tier.only_new else policy
            after = decide(tier.state, facts, its_policy)
            if after != tier.state:
                await self._enter(org, tier, after, its_policy)
                said = _acting(after.stage, its_policy) if tier.name == ORG_TIER else said
            if tier.name == ORG_TIER or tier.work is not None:
                stage = max(stage, Stage(after.stage))
            await self._act(org, tier, after, its_policy, [] if only_by_stale else fresh, acted, balance)
        known = {tier.name for tier in tiers}
        for name in state.stages.keys() - known:  # its budget was removed
            await self._ledger.exhaustion.write(org, name, state.stages[name], None, None)
        for name, source, workload in [one for one in acted if one[0] not in known]:
            await self._acting.undo(org, name, source, workload, acted)
        if said != _acting(stage, policy):
            await self._ledger.exhaustion.say_acting(org, _acting(stage, policy))
        return stage

    def _note(self, marks: Mapping[str, int]) -> None:
        now = self._monotonic()
        self._seen = {
            source: before if (before := self._seen.get(source, (None, 0)))[0] == mark else (mark, now)
            for source, mark in marks.items()
        }

    def _is_fresh(self, source: str, marks: Mapping[str, int], now: int) -> bool:
        """By the clocks, and by how long ago its mark was another one: clocks that were set back make all look new."""
        _, since_us = self._seen.get(source, (None, 0))
        age_us = max(now - marks.get(source, 0), self._monotonic() - since_us)
        return source in marks and age_us <= self._stale_us

    def _may_act(self, work: RunningWork, own_mode: str | None) -> bool:
        """By the mode that admission goes by: an org's own before its cluster's, unless that is off."""
        mode = self._admission.mode_of(work.cluster)
        return work.source in self._actions and mode != "off" and (own_mode or mode) == "enforce"

    async def _enter(self, org: str, tier: _Tier, after: TierState, policy: Policy) -> None:
        word = WORDS.get(Stage(after.stage), policy.then)
        # The same whoever writes it, so that nobody who is told twice takes it for two.
        named = keys.US.join((org, tier.name, word, str(after.since_us)))
        entry = {
            "type": "stage", "event": hashlib.sha256(named.encode()).hexdigest()[:16],
            "at": format_time(self._clock()), "who": "enforcer",
            "org": org, "stage": word, "before": WORDS.get(Stage(tier.state.stage), policy.then),
            "tier": "org" if tier.project is None else "project" if tier.user is None else "user",
            "project": tier.project, "user": tier.user, "left": format_micro(tier.facts.left_micro),
            "burn_rate": format_micro(tier.facts.burn_micro),
            "until": format_time(after.until_us) if after.stage == Stage.GRACE else None,
            "reason": f"{tier.title}: {word}",
        }  # fmt: skip
        event = None if self._notifier is None else msgspec.json.encode(entry)
        state = None if after.stage == Stage.NONE else after
        if not await self._ledger.exhaustion.write(org, tier.name, tier.state, state, entry, event):
            raise LeaseLost(f"Another enforcer is at work on org {org}.")
        whose = tier.title if tier.project is None else f"org {org}: {tier.title}"
        log.info("%s: from %s to %s", whose, entry["before"], word)
        if event is not None:
            await self._pass_on(org, event)

    async def _pass_on(self, org: str, event: bytes) -> None:
        """From the org's outbox to where events wait to be sent; done again after a crash, with the same id."""
        if self._notifier is not None:
            await self._notifier.note(msgspec.json.decode(event))
        await self._ledger.exhaustion.passed_on(org, event)

    async def _act(
        self, org: str, tier: _Tier, after: TierState, policy: Policy, fresh: Sequence[RunningWork],
        acted: dict[tuple[str, str, str], Act], balance: Balance,
    ) -> None:  # fmt: skip
        if after.stage < Stage.GRACE:
            for name, source, workload in [one for one in acted if one[0] == tier.name]:
                await self._acting.undo(org, name, source, workload, acted)
            return
        if not tier.facts.is_dry:
            fresh = []  # what is suspended needs more than there is, but what runs has enough
        about = Circumstances(balance.contact or None, balance.burn_micro, self._admission.buy_url)
        whose = tier.title if tier.project is None else f"the {tier.title}"
        case = Case(org, tier.name, whose, after, policy, about, tier.facts.ends_us)
        await self._acting.act(case, fresh, acted)


@asynccontextmanager
async def reaping(ledger: Ledger, settings: Settings, metrics: EnforcerMetrics, clock: Clock) -> AsyncIterator[Reaper]:
    """A reaper that looks for as long as the block lasts."""
    given = settings.exhaustion
    actions = actions_of(settings.sources)
    hook = given.webhook
    notifier = Notifier(ledger, None if hook is None else hook.url, None if hook is None else hook.secret)
    policy = Policy(int(given.warn_hours_left * HOUR_US), int(given.grace_minutes * _MINUTE_US), given.then)
    reaper = Reaper(
        ledger, policy, settings.admission, actions, metrics, clock,
        interval_seconds=settings.metering.interval_seconds, notifier=notifier,
    )  # fmt: skip
    task = asyncio.create_task(reaper.run())
    try:
        yield reaper
    finally:
        reaper.stop()
        await asyncio.wait({task}, timeout=_STOP_SECONDS)
        task.cancel()
        for one in actions.values():
            await one.close()
        await notifier.close()


def _tiers(
    org: str, balance: Balance, budgets: Sequence[BudgetState], state: ExhaustionState, now: int, hold_us: int
) -> list[_Tier]:
    wanted = state.running.get("", 0)
    facts = TierFacts(now, balance.usable_micro, state.held.get("", 0), wanted, balance.burn_micro, balance.unlimited)
    classes = work_tiers(org, balance, state, now, hold_us)
    before = state.stages.get(ORG_TIER, TierState())
    tiers = [_Tier(ORG_TIER, f"org {org}", facts, before, only_new=bool(classes))]
    for name, title, work, its_facts in classes:
        before = state.stages.get(name, TierState())
        tiers.append(_Tier(name, title, its_facts, before, field=name, work=work))
    for one in budgets:
        budget = one.budget
        field = tier_fields(budget.project, budget.user or "")[1 if budget.user is None else 2]
        wanted = state.running.get(field, 0)
        facts = TierFacts(
            now, budget.limit_micro - one.spent_micro, state.held.get(field, 0), wanted,
            wanted * HOUR_US // hold_us if hold_us else 0, ends_us=one.ends_us,
        )  # fmt: skip
        title = budget_text(budget.project, budget.user, budget.period)
        before = state.stages.get(budget.id, TierState())
        tiers.append(_Tier(budget.id, title, facts, before, budget.project, budget.user, field))
    return tiers


def _acting(stage: int, policy: Policy) -> str:
    return WORDS.get(Stage(stage), policy.then) if stage >= Stage.GRACE else ""
