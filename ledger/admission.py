"""Admission: may this work start, and if so its credits are set aside in the same atomic step."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from ledger import keys, refusal_text
from ledger.accounts import Accounts, Balance
from ledger.budget_store import BudgetStore
from ledger.budgets import Budget
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client
from ledger.errors import LedgerUnavailable, UnknownOrg
from ledger.hold_ids import new_hold_id
from ledger.lua import Scripts, common_keys, text
from ledger.model import Code, RatePlan, RateTable
from ledger.money import COST_DENOMINATOR, HOUR_US, MICRO_MAX, UNIT
from ledger.pipelined import OnLate, Pipelined
from ledger.rates_history import nano_of
from ledger.rates_store import RatesStore
from ledger.refusal_text import Circumstances

RATES_SECONDS = 2.0
"""How long rates are used before the ledger is asked whether they are still those."""
RATES_SECONDS_MAX = 30.0
"""How old rates may be while they are read again beside the decisions; after a longer silence they are waited for."""
BUDGETS_MAX = 10_000
"""Orgs whose budgets are kept in memory."""
STALE_MAX = 5


class AdmissionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Work that wants to start, `count` times over (an array, replicas): all of it or none.

    `kind` is job or app; `preset` may be absent for an app that has a rate of its own. `replaces`: the hold that
    the work has already (count None: as many as it has left). `owner`: id of the work it is a part of, whose
    hold passes over. `hold_id`: that of the hold to make, so that a request can be repeated; "": a new one.
    """

    cluster: str
    org: str
    project: str = ""
    user: str = ""
    kind: str = "job"
    preset: str | None = None
    app: str | None = None
    workload_id: str | None = None
    max_runtime_us: int | None = None
    count: int | None = 1
    dry_run: bool = False
    replaces: str | None = None
    owner: str | None = None
    hold_id: str = ""
    bills_app: bool = True
    """False where another workload carries the app's own rate (a pod of an app instance)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of work: credits for `hold_us`, or for its time limit if that is shorter."""

    hold_us: int = 900_000_000
    unknown_org: str = "deny"
    buy_url: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
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
    """

    decision: Decision
    hour_micro: int | None
    total_micro: int | None
    balance: Balance | None
    lasts_us: int | None
    first_out: str | None


class Admissions:
    """Decides over requests. Many at once share round trips to the ledger."""

    def __init__(
        self, client: Client, scripts: Scripts, rates: RatesStore, budgets: BudgetStore, clock: Clock | None = None
    ) -> None:
        """`clock` replaces the server's clock in tests."""
        self.pipelined = Pipelined(client)
        self._scripts = scripts
        self._rates = rates
        self._budget_store = budgets
        self._accounts = Accounts(client, scripts, clock)
        self._given_clock = clock
        self._clock: Clock = clock or now_us
        self._plans: dict[str, tuple[float, RatePlan | None]] = {}
        self._asking: dict[str, asyncio.Task[RatePlan | None]] = {}
        self._budgets: dict[str, tuple[str, tuple[Budget, ...]]] = {}
        self._reading: dict[str, asyncio.Task[tuple[str, tuple[Budget, ...]]]] = {}

    async def admit(
        self, request: AdmissionRequest, terms: Terms | None = None, on_late: OnLate | None = None
    ) -> Decision:
        """Decide, and hold what it needs.

        Raises: LedgerUnavailable (a retry with the same hold_id is safe). When cancelled while the ledger is
            asked, its answer (of admit.lua) goes to `on_late`.
        """
        terms = terms or _TERMS
        now = self._clock()
        nano, refusal = await self._rate(request, now)
        if refusal is not None:
            return refusal
        amount = unit_micro(nano, request.max_runtime_us, terms.hold_us)
        answer, budgets = await self._ask(request, terms, amount, now, on_late)
        code, available, index, hold, expires, novelty, required, mode = [part.decode() for part in answer]
        needed = int(required) if request.count is None else amount * request.count
        if code == "ok":
            left = int(available)
            reason = refusal_text.admitted(needed, request.org, left if hold else None, request.count or 1)
            return Decision(
                True, Code.OK, reason,
                available_micro=left, required_micro=needed, hold_id=hold or None,
                hold_expires_us=int(expires) if expires else None, policy_mode=mode, replayed=novelty == "replayed",
            )  # fmt: skip
        if code == "off":
            return Decision(True, Code.OK, "Credits are not checked for this org.", policy_mode=mode)
        if code == "unknown_org":
            return Decision(
                False, Code.UNKNOWN_ORG, refusal_text.unknown_org(request.org), "org", 0, needed, policy_mode=mode
            )
        about = await self._circumstances(request.org, terms)
        if code == "budget_exhausted":
            budget = budgets[int(index) - 1]
            said = refusal_text.budget_exhausted(budget, now, int(available), needed, about, request.org)
            tier = "project" if budget.user is None else "user"
            return Decision(False, Code.BUDGET_EXHAUSTED, said, tier, int(available), needed, policy_mode=mode)
        said = refusal_text.no_credits(request.org, int(available), needed, about)
        return Decision(False, Code.NO_CREDITS, said, "org", int(available), needed, policy_mode=mode)

    async def quote(self, request: AdmissionRequest, terms: Terms | None = None) -> Quote:
        """The same question without a hold."""
        asked = msgspec.structs.replace(request, dry_run=True, replaces=None, owner=None)
        decision = await self.admit(asked, terms)
        now = self._clock()
        nano, refusal = await self._rate(request, now)
        count = request.count or 1
        hour = None if refusal is not None else unit_micro(nano, HOUR_US, HOUR_US) * count
        total = None
        if refusal is None and request.max_runtime_us is not None:
            total = unit_micro(nano, request.max_runtime_us, request.max_runtime_us) * count
        try:
            balance = await self._accounts.balance(request.org)
        except UnknownOrg:
            return Quote(decision, hour, total, None, None, decision.tier)
        lasts, first_out = await self._lasts(request, balance, hour)
        return Quote(decision, hour, total, balance, lasts, decision.tier or first_out)

    async def release(self, org: str, hold_id: str) -> int | None:
        """The job was not started after all: how much was set free (micro-credits), None where there is no hold."""
        arguments = [hold_id, str(self._given_clock()) if self._given_clock else ""]
        answer = await self.pipelined.call(self._scripts.release, common_keys(keys.of_org(org)), arguments)
        return int(answer[1]) if text(answer[0]) == "released" else None

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

    async def _rate(self, request: AdmissionRequest, now: int) -> tuple[int, Decision | None]:
        plan = await self.plan(request.cluster)
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

    async def _ask(
        self, request: AdmissionRequest, terms: Terms, amount: int, now: int, on_late: OnLate | None
    ) -> tuple[Any, tuple[Budget, ...]]:
        tiers = keys.tier_fields(request.project, request.user)
        workload = f"{request.cluster}{keys.US}{request.workload_id}" if request.workload_id else ""
        expires = now + terms.hold_us
        hold = request.hold_id or new_hold_id(request.org)
        units = "" if request.count is None else str(request.count)
        # More than can be counted is more than anyone has; the script sees that it is.
        sent = str(min(amount, MICRO_MAX + 1))
        record = _RECORD.encode(
            {
                "amount": sent, "left": units or "1", "tiers": tiers, "workload": workload or None,
                "expires_us": str(expires), "limit_us": request.max_runtime_us, "cluster": request.cluster,
                "project": request.project, "user": request.user, "preset": request.preset, "app": request.app,
                "kind": request.kind, "at": format_time(now),
            }
        )  # fmt: skip
        script_keys = _script_keys(request.org)
        given = str(self._given_clock()) if self._given_clock else ""
        for _ in range(STALE_MAX):
            revision, all_budgets = await self._budgets_of(request.org)
            budgets = tuple(b for b in all_budgets if b.covers(request.project, request.user))
            packed = _PACK.encode(
                {
                    "hold": hold, "record": record.decode(), "workload": workload, "replaces": request.replaces or "",
                    "owner": f"{request.cluster}{keys.US}{request.owner}" if request.owner else "",
                    "amount": sent, "units": units, "expires_us": str(expires), "tiers": tiers,
                    "budgets": [
                        (b.field_at(now), str(b.limit_micro), "2" if b.user is None else "3") for b in budgets
                    ],
                    "budget_rev": revision, "unknown_org": terms.unknown_org,
                    "dry_run": "1" if request.dry_run else "",
                }
            )  # fmt: skip
            answer = await self.pipelined.call(self._scripts.admit, script_keys, [packed, given], on_late)
            if answer[0] != b"stale":
                return answer, budgets
            self._budgets.pop(request.org, None)
        raise LedgerUnavailable(f"the budgets of org {request.org!r} change all the time; a retry is safe")

    async def _budgets_of(self, org: str) -> tuple[str, tuple[Budget, ...]]:
        known = self._budgets.get(org)
        if known is None:
            if len(self._budgets) >= BUDGETS_MAX:
                self._budgets.clear()
            # Many may wait for the same answer: it is asked for once.
            task = self._reading.get(org)
            if task is None:
                task = self._reading[org] = asyncio.create_task(self._budget_store.read(org))
                task.add_done_callback(lambda done: self._budgets_read(org, done))
            known = await asyncio.shield(task)
        return known

    def _budgets_read(self, org: str, task: asyncio.Task[tuple[str, tuple[Budget, ...]]]) -> None:
        self._reading.pop(org, None)
        if not task.cancelled() and task.exception() is None:
            self._budgets[org] = task.result()

    async def _circumstances(self, org: str, terms: Terms) -> Circumstances:
        given = str(self._given_clock()) if self._given_clock else ""
        answer = await self.pipelined.call(self._scripts.balance, common_keys(keys.of_org(org)), [given])
        fields = {text(k): text(v) for k, v in zip(answer[7::2], answer[8::2], strict=True)}
        burn = sum(int(v) for k, v in fields.items() if k.startswith("burn:"))
        return Circumstances(fields.get("contact") or None, burn, terms.buy_url)

    async def _lasts(
        self, request: AdmissionRequest, balance: Balance, hour: int | None
    ) -> tuple[int | None, str | None]:
        """(how long the tier that runs out first lasts, which one that is) once the work runs too."""
        found: list[tuple[int, str]] = []
        if hour is not None and not balance.unlimited and balance.burn_micro + hour > 0:
            found.append((max(0, balance.left_micro) * HOUR_US // (balance.burn_micro + hour), "org"))
        if hour:
            for state in await self._budget_store.states(request.org):
                if state.budget.covers(request.project, request.user):
                    left = max(0, state.budget.limit_micro - state.spent_micro)
                    lasts = left * HOUR_US // hour
                    if state.ends_us is None or self._clock() + lasts < state.ends_us:
                        found.append((lasts, "project" if state.budget.user is None else "user"))
        return min(found) if found else (None, None)


_TERMS = Terms()
_RECORD = msgspec.json.Encoder()
_PACK = msgspec.msgpack.Encoder()


def unit_micro(nano: int, max_runtime_us: int | None, hold_us: int) -> int:
    """Micro-credits one unit needs to start at `nano` credits an hour, rounded up."""
    us = hold_us if max_runtime_us is None else min(max_runtime_us, hold_us)
    return -(-nano * UNIT * us // COST_DENOMINATOR)


@lru_cache(maxsize=4096)
def _script_keys(org: str) -> tuple[str, ...]:
    names = keys.of_org(org)
    return (*common_keys(names), names.budget_spent)


def _nano(table: RateTable, request: AdmissionRequest) -> int | None:
    app = request.app or ""
    return nano_of(table, request.kind, request.preset or app, app, request.bills_app)
