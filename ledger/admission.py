"""Admission: may this work start, and if so its credits are set aside in the same atomic step."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from ledger import keys, refusal_text
from ledger.accounts import Accounts
from ledger.admission_request import AdmissionRequest as AdmissionRequest
from ledger.admission_request import Terms as Terms
from ledger.admit_calls import AdmitCalls, Asked
from ledger.balances import Balance
from ledger.budget_store import BudgetStore
from ledger.clock import Clock, now_us
from ledger.connect import Client, again
from ledger.errors import UnknownOrg
from ledger.hold_ids import new_hold_id
from ledger.lua import Scripts, common_keys, text, to_the_end
from ledger.model import Code, RatePlan, RateTable
from ledger.money import COST_DENOMINATOR, HOUR_US, UNIT
from ledger.pipelined import OnLate, Pipelined
from ledger.rates_history import nano_of
from ledger.rates_store import RatesStore
from ledger.refusal_text import Circumstances
from ledger.scopes import Scope, Supply, classes_in, preset_of, restricted_in

RATES_SECONDS = 2.0
"""How long rates are used before the ledger is asked whether they are still those."""
RATES_SECONDS_MAX = 30.0
"""How old rates may be while they are read again beside the decisions; after a longer silence they are waited for."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """The answer to an AdmissionRequest; a refusal is a value.

    `tier`: org, project or user, whichever ran out. `available_micro`: what that tier (else the org) has left,
    None where it is not known. `policy_mode`: the org's own mode ("" : none).
    """

    allowed: bool
    code: Code
    reason: str
    tier: str | None = None
    available_micro: int | None = None
    required_micro: int = 0
    hold_id: str | None = None
    hold_expires_us: int | None = None
    policy_mode: str = ""
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Quote:
    """What work would cost: an hour, and in all where its run time is limited; and how long credits last.

    `lasts_us`: how long what is left lasts if it starts, beside what runs (None: for ever, or not known).
    `left_micro`, `available_micro`: as in a balance, but of what such work may use (None: an org that is not known).
    """

    decision: Decision
    hour_micro: int | None
    total_micro: int | None
    balance: Balance | None
    lasts_us: int | None
    first_out: str | None
    left_micro: int | None = None
    available_micro: int | None = None


class Admissions:
    """Decides over requests. Many at once share round trips to the ledger."""

    def __init__(
        self, client: Client, scripts: Scripts, rates: RatesStore, budgets: BudgetStore, clock: Clock | None = None
    ) -> None:
        """`clock` replaces the server's clock in tests."""
        self._client = client
        self.pipelined = Pipelined(client)
        self._calls = AdmitCalls(self.pipelined, scripts.admit, budgets, clock)
        self._scripts = scripts
        self._rates = rates
        self._budget_store = budgets
        self._accounts = Accounts(client, scripts, clock)
        self._given_clock = clock
        self._clock: Clock = clock or now_us
        self._plans: dict[str, tuple[float, RatePlan | None]] = {}
        self._asking: dict[str, asyncio.Task[RatePlan | None]] = {}

    async def admit(
        self, request: AdmissionRequest, terms: Terms | None = None, on_late: OnLate | None = None,
        asked: Asked | None = None,
    ) -> Decision:  # fmt: skip
        """Decide, and hold what it needs. `asked`: what `ask` gave for the same, once it has its answer.

        Raises: LedgerUnavailable (a retry with the same hold_id is safe). When cancelled while the ledger is
            asked, its answer (of admit.lua) goes to `on_late`.
        """
        terms = terms or _TERMS
        if asked is None or self._calls.is_outdated(asked):
            if not request.hold_id:
                request = msgspec.structs.replace(request, hold_id=new_hold_id(request.org))
            now = self._clock()
            # Nearly always the rates are at hand, and nothing is to be waited for.
            plan = self._fresh_plan(request.cluster) or await self.plan(request.cluster)
            nano, refusal = _rate(plan, request, now)
            if refusal is not None:
                return in_mode(refusal, await self.mode_of(request.org))
            amount = unit_micro(nano, request.max_runtime_us, terms.hold_us)
            asked = await self._calls.answered(request, terms, amount, now, on_late)
        return self.allowed(asked) or await self._refused(asked, terms)

    def ask(self, request: AdmissionRequest, terms: Terms, on_late: OnLate) -> Asked | None:
        """The first step of `admit` without waiting, where all is at hand: the request is on its way to the ledger.

        It has the id of its hold. What is to be waited for then is the future in it, which gets an answer or any error
        of the client; `allowed` tells of a yes, `admit` of the rest.
        """
        plan = self._fresh_plan(request.cluster)
        if plan is None:
            return None
        now = self._clock()
        nano, refusal = _rate(plan, request, now)
        if refusal is not None:
            return None
        return self._calls.ask(request, terms, unit_micro(nano, request.max_runtime_us, terms.hold_us), now, on_late)

    def allowed(self, asked: Asked) -> Decision | None:
        """The decision where the answer is a plain yes."""
        code, available, _, hold, expires, novelty, units, policy_mode = asked.answer.result()
        if code != b"ok":
            return None
        request = asked.request
        needed = asked.amount_micro * (request.count or units)
        if available == b"":
            available = None
        if novelty == b"metered":
            reason = refusal_text.goes_on()
        elif novelty == b"unknown":
            reason = refusal_text.unknown_org_let_in(request.org)
        elif hold and available is None and needed:
            reason = f"{refusal_text.set_aside(needed)}."
        else:
            reason = refusal_text.admitted(needed, request.org, available if hold else None, request.count or 1)
        return Decision(
            True, Code.OK, reason, None, available, needed, hold.decode() or None, expires or None,
            policy_mode.decode(), novelty == b"replayed",
        )  # fmt: skip

    async def _refused(self, asked: Asked, terms: Terms) -> Decision:
        """The decision where it is none."""
        code, available, index, _, _, _, units, policy_mode = asked.answer.result()
        request, mode = asked.request, policy_mode.decode()
        needed = asked.amount_micro * (request.count or units)
        if code == b"off":
            return in_mode(_UNCHECKED, mode)
        if code == b"unknown_org":
            return Decision(
                False, Code.UNKNOWN_ORG, refusal_text.unknown_org(request.org), "org", 0, needed, policy_mode=mode
            )
        about = await self._circumstances(request, terms)
        if code == b"budget_exhausted":
            budget = asked.budgets[index - 1]
            said = refusal_text.budget_exhausted(budget, asked.now_us, available, needed, about, request.org)
            tier = "project" if budget.user is None else "user"
            return Decision(False, Code.BUDGET_EXHAUSTED, said, tier, available, needed, policy_mode=mode)
        if about.only_running_is_short:
            available = 0  # as balances say it: nothing is owed yet
        said = refusal_text.no_credits(request.org, available, needed, about)
        return Decision(False, Code.NO_CREDITS, said, "org", available, needed, policy_mode=mode)

    async def quote(self, request: AdmissionRequest, terms: Terms | None = None) -> Quote:
        """The same question without a hold."""
        asked = msgspec.structs.replace(request, dry_run=True, replaces=None, owner=None)
        decision = await self.admit(asked, terms)
        now = self._clock()
        nano, refusal = _rate(await self.plan(request.cluster), request, now)
        count = request.count or 1
        hour = None if refusal is not None else unit_micro(nano, HOUR_US, HOUR_US) * count
        total = None
        if refusal is None and request.max_runtime_us is not None:
            total = unit_micro(nano, request.max_runtime_us, request.max_runtime_us) * count
        try:
            balance = await self._accounts.balance(request.org)
        except UnknownOrg:
            return Quote(decision, hour, total, None, None, decision.tier)
        lasts, first_out = await self._lasts(request, balance, hour, (terms or _TERMS).hold_us)
        left, available = await self._for_work(request, balance)
        return Quote(decision, hour, total, balance, lasts, decision.tier or first_out, left, available)

    async def release(self, org: str, hold_id: str) -> int | None:
        """The job was not started after all: how much was set free (micro-credits), None where there is no hold."""
        arguments = [hold_id, str(self._given_clock()) if self._given_clock else ""]
        answer = await self.pipelined.call(self._scripts.release, common_keys(keys.of_org(org)), arguments)
        return int(answer[1]) if text(answer[0]) == "released" else None

    async def mode_of(self, org: str) -> str:
        """The org's own mode, "" where it has none. Raises: LedgerUnavailable."""
        policy: object = msgspec.json.decode((await self._facts(org)).get("policy") or "{}")
        mode = policy.get("mode") if isinstance(policy, dict) else None
        return mode if isinstance(mode, str) else ""

    async def prepare(self, cluster: str) -> None:
        """Have a cluster's rates at hand before the first request comes."""
        await self.plan(cluster)

    async def plan(self, cluster: str) -> RatePlan | None:
        """The rates in force, at most RATES_SECONDS old, or RATES_SECONDS_MAX where they are being read again.

        Raises: LedgerUnavailable where all that is known is older.
        """
        known = self._plans.get(cluster)
        if known is not None and time.monotonic() - known[0] < RATES_SECONDS:
            return known[1]
        task = self._asking.get(cluster)
        if task is None:
            task = self._asking[cluster] = asyncio.create_task(self._read_plan(cluster))
            task.add_done_callback(lambda done: (self._asking.pop(cluster, None), done.cancelled() or done.exception()))
        if known is not None and known[1] is not None and time.monotonic() - known[0] < RATES_SECONDS_MAX:
            return known[1]  # asked for by the side: a decision does not wait for it
        return await asyncio.shield(task)

    def _fresh_plan(self, cluster: str) -> RatePlan | None:
        """As `plan`; None where it has to be asked."""
        known = self._plans.get(cluster)
        return known[1] if known is not None and time.monotonic() - known[0] < RATES_SECONDS else None

    def plan_at_hand(self, cluster: str) -> RatePlan | None:
        """The rates as last read, None where they were not."""
        known = self._plans.get(cluster)
        return None if known is None else known[1]

    def known_required(self, request: AdmissionRequest, terms: Terms) -> int | None:
        """What a request needs by rates that are at hand, None where they are not: for when the ledger is away."""
        plan = self.plan_at_hand(request.cluster)
        if plan is None:
            return None
        nano = _nano(plan.at(self._clock()), request)
        return None if nano is None else unit_micro(nano, request.max_runtime_us, terms.hold_us) * (request.count or 1)

    async def _read_plan(self, cluster: str) -> RatePlan | None:
        _, plan = await self._rates.read(cluster)
        self._plans[cluster] = time.monotonic(), plan
        return plan

    async def _facts(self, org: str) -> dict[str, str]:
        """Fields of an org; many refusals at once share the answer."""
        given = str(self._given_clock()) if self._given_clock else ""
        names = tuple(common_keys(keys.of_org(org)))
        answer = await to_the_end(lambda: self.pipelined.shared(self._scripts.balance, names, (given,)))
        _, granted, expired, spent, held, running, _ = (int(value) for value in answer[:7])
        fields = {text(k): text(v) for k, v in zip(answer[7::2], answer[8::2], strict=True)}
        return {**fields, "left": str(granted - expired - spent - held), "running": str(running)}

    async def _circumstances(self, request: AdmissionRequest, terms: Terms) -> Circumstances:
        fields = await self._facts(request.org)
        burn = sum(int(v) for k, v in fields.items() if k.startswith("burn:"))
        others: tuple[tuple[Scope, int], ...] = ()
        if "restricted" in fields:
            lefts = restricted_in(fields["restricted"])
            others = tuple(item for item in sorted(lefts.items()) if not item[0].accepts(*_class(request)))
        line = int(fields.get("credit_line") or 0)
        is_short = not others and line == 0 and 0 <= int(fields["left"]) < int(fields["running"])
        return Circumstances(fields.get("contact") or None, burn, terms.buy_url, line, others, is_short)

    async def _lasts(
        self, request: AdmissionRequest, balance: Balance, hour: int | None, hold_us: int
    ) -> tuple[int | None, str | None]:
        """(how long the tier that runs out first lasts, which one that is) once the work runs too."""
        found: list[tuple[int, str]] = []
        if hour is not None and not balance.unlimited and balance.burn_micro + hour > 0:
            usable = min(balance.usable_micro, balance.supply.left_for(*_class(request), {}))
            found.append((max(0, usable) * HOUR_US // (balance.burn_micro + hour), "org"))
        if hour:
            covering = [
                state
                for state in await self._budget_store.states(request.org)
                if state.budget.covers(request.project, request.user)
            ]
            if covering:
                of_project, of_user = await self._burns(request, hold_us)
                for state in covering:
                    left = max(0, state.budget.limit_micro - state.spent_micro)
                    burn = hour + (of_project if state.budget.user is None else of_user)
                    lasts = left * HOUR_US // burn
                    if state.ends_us is None or self._clock() + lasts < state.ends_us:
                        found.append((lasts, "project" if state.budget.user is None else "user"))
        return min(found) if found else (None, None)

    async def _for_work(self, request: AdmissionRequest, balance: Balance) -> tuple[int, int]:
        """(left, available) for such work: without what is restricted to other work, and what that work leaves."""
        if not balance.restricted:
            return balance.left_micro, balance.available_micro
        client: Any = self._client
        aside: Counter[tuple[str, str]] = Counter()
        for name in (keys.of_org(request.org).held, keys.of_org(request.org).running):
            sums = await again(partial(client.hgetall, name))
            aside.update(classes_in({text(field): int(micro) for field, micro in sums.items()}))
        work = _class(request)
        granted = Supply(balance.left_micro + balance.owed_micro - sum(balance.restricted.values()), balance.restricted)
        return granted.left_for(*work, {}), granted.left_for(*work, aside) - aside[work]

    async def _burns(self, request: AdmissionRequest, hold_us: int) -> tuple[int, int]:
        """Micro-credits an hour of what runs in the project, and of the user in it: by what that has set aside."""
        fields = keys.tier_fields(request.project, request.user)[1:]
        client: Any = self._client
        aside = await again(lambda: client.hmget(keys.of_org(request.org).running, fields))
        of_project, of_user = (int(micro or 0) * HOUR_US // hold_us if hold_us else 0 for micro in aside)
        return of_project, of_user


_TERMS = Terms()
_UNCHECKED = Decision(True, Code.OK, "Credits are not checked for this org.")


def in_mode(refusal: Decision, mode: str) -> Decision:
    """A refusal that was made without looking at the org, whose own mode this is ("": none)."""
    return msgspec.structs.replace(_UNCHECKED if mode == "off" else refusal, policy_mode=mode)


def unit_micro(nano: int, max_runtime_us: int | None, hold_us: int) -> int:
    """Micro-credits one unit needs to start at `nano` credits an hour, rounded up."""
    us = hold_us if max_runtime_us is None else min(max_runtime_us, hold_us)
    return -(-nano * UNIT * us // COST_DENOMINATOR)


def _rate(plan: RatePlan | None, request: AdmissionRequest, now: int) -> tuple[int, Decision | None]:
    """(nano-credits an hour, a refusal where it has no rate)."""
    table = plan.at(now) if plan is not None else RateTable()
    nano = _nano(table, request)
    if nano is not None:
        return nano, None
    if table.unpriced == "free":
        return 0, None
    what, name, known = (
        ("preset", request.preset, table.presets) if request.preset else ("app", request.app or "", table.apps)
    )
    return 0, Decision(False, Code.UNPRICED, refusal_text.unpriced(request.cluster, what, name, known))


def _class(request: AdmissionRequest) -> tuple[str, str]:
    app = request.app or ""
    return request.cluster, preset_of(request.kind, request.preset or app, app)


def _nano(table: RateTable, request: AdmissionRequest) -> int | None:
    app = request.app or ""
    return nano_of(table, request.kind, request.preset or app, app, request.bills_app)
