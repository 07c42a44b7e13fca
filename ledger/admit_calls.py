"""Calls of admit.lua: what it is sent for a request, with the budgets that the request is under."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from ledger import keys
from ledger.admission_request import LISTED_US, AdmissionRequest, Terms
from ledger.budget_store import BudgetStore
from ledger.budgets import Budget
from ledger.clock import Clock, format_time
from ledger.errors import LedgerUnavailable
from ledger.hold_ids import new_hold_id
from ledger.lua import Script, common_keys
from ledger.money import MICRO_MAX
from ledger.pipelined import OnLate, Pipelined

ORGS_MAX = 10_000
"""Orgs whose budgets are kept in memory."""
COVERS_MAX = 10_000
"""Users in projects of one org for whom it is kept which budgets they are under."""
STALE_MAX = 5
_FOR_EVER_US = 2**63


class _Hold(msgspec.Struct, gc=False):
    """A hold's record; amounts, units and its expiry are strings, as Lua would make them inexact when it writes it."""

    amount: str
    left: str
    tiers: tuple[str, str, str]
    workload: str | None
    expires_us: str
    limit_us: int | None
    cluster: str
    project: str
    user: str
    preset: str | None
    app: str | None
    kind: str
    at: str
    source: str


class _Cover(NamedTuple):
    """The budgets that a user in a project is under, as long as their present periods last: [since_us, until_us)."""

    budgets: tuple[Budget, ...]
    packed: str
    since_us: int
    until_us: int


class _OrgBudgets:
    """All budgets of an org, at one revision."""

    def __init__(self, revision: str, budgets: tuple[Budget, ...]) -> None:
        self.revision = revision
        self._budgets = budgets
        self._covers: dict[tuple[str, str], _Cover] = {}

    def cover(self, project: str, user: str, now: int) -> _Cover:
        if not self._budgets:
            return _NO_COVER
        known = self._covers.get((project, user))
        if known is None or not known.since_us <= now < known.until_us:
            if len(self._covers) >= COVERS_MAX:
                self._covers.clear()
            budgets = tuple(budget for budget in self._budgets if budget.covers(project, user))
            known = self._covers[project, user] = _cover(budgets, project, user, now)
        return known


class AdmitCalls:
    """Asks admit.lua, and again where budgets changed meanwhile. What asks at the same time shares a call."""

    def __init__(self, pipelined: Pipelined, script: Script, budgets: BudgetStore, clock: Clock | None) -> None:
        """`clock` replaces the server's clock in tests."""
        self._pipelined = pipelined
        self._script = script
        self._store = budgets
        self._given_clock = clock
        self._budgets: dict[str, _OrgBudgets] = {}
        self._reading: dict[str, asyncio.Task[_OrgBudgets]] = {}

    async def ask(
        self,
        request: AdmissionRequest,
        terms: Terms,
        amount_micro: int,
        now: int,
        on_late: OnLate | None,
    ) -> tuple[list[Any], tuple[Budget, ...]]:
        """(the script's answer, the budgets it counts in) for a request whose unit needs `amount_micro`.

        Raises: LedgerUnavailable. When cancelled while the ledger is asked, its answer goes to `on_late`.
        """
        org, cluster, project, user = request.org, request.cluster, request.project, request.user
        tiers = keys.tier_fields(project, user)
        workload = f"{cluster}{keys.US}{request.workload_id}" if request.workload_id else ""
        owner = f"{cluster}{keys.US}{request.owner}" if request.owner else ""
        hold = request.hold_id or new_hold_id(org)
        expires = now + (max(terms.hold_us, LISTED_US) if request.source else terms.hold_us)
        # More than can be counted is more than anyone has; the script sees that it is.
        amount, units = min(amount_micro, MICRO_MAX + 1), min(request.count or 0, MICRO_MAX)
        record = _JSON.encode(
            _Hold(
                str(amount), str(units or 1), tiers, workload or None, str(expires), request.max_runtime_us,
                cluster, project, user, request.preset, request.app, request.kind, format_time(now),
                request.source,
            )
        ).decode()  # fmt: skip
        names = _script_keys(org)
        given = str(self._given_clock()) if self._given_clock else ""
        stale = 0
        while stale < STALE_MAX:
            known = self._budgets.get(org) or await self._read(org)
            cover = known.cover(project, user, now)
            packed = _PACK.encode((
                hold, record, workload, request.replaces or "", owner, amount, units, expires, tiers[1], tiers[2],
                cover.packed, known.revision, terms.unknown_org, request.dry_run, request.was_let_in,
            ))  # fmt: skip
            answer = await self._pipelined.among(self._script, names, (given,), packed, on_late)
            if answer[0] == b"more":
                continue
            if answer[0] != b"stale":
                return answer, cover.budgets
            stale += 1
            if self._budgets.get(org) is known:
                del self._budgets[org]
        raise LedgerUnavailable(f"the budgets of org {org!r} change all the time; a retry is safe")

    async def _read(self, org: str) -> _OrgBudgets:
        # Many may wait for the same answer: it is asked for once.
        task = self._reading.get(org)
        if task is None:
            task = self._reading[org] = asyncio.create_task(self._read_anew(org))
            task.add_done_callback(lambda done: (self._reading.pop(org), done.cancelled() or done.exception()))
        return await asyncio.shield(task)

    async def _read_anew(self, org: str) -> _OrgBudgets:
        found = _OrgBudgets(*await self._store.read(org))
        if len(self._budgets) >= ORGS_MAX:
            self._budgets.clear()
        self._budgets[org] = found
        return found


_JSON = msgspec.json.Encoder()
_PACK = msgspec.msgpack.Encoder()
_NO_COVER = _Cover((), "", 0, _FOR_EVER_US)


def _cover(budgets: tuple[Budget, ...], project: str, user: str, now: int) -> _Cover:
    if not budgets:
        return _NO_COVER
    _, of_project, of_user = keys.tier_fields(project, user)
    tiers = [of_project if budget.user is None else of_user for budget in budgets]
    packed = _JSON.encode(
        [(budget.field_at(now), budget.limit_micro, tier) for budget, tier in zip(budgets, tiers, strict=True)]
    )
    periods = [budget.period_at(now) for budget in budgets]
    until = min(_FOR_EVER_US if end is None else end for _, end in periods)
    return _Cover(budgets, packed.decode(), max(start for start, _ in periods), until)


@lru_cache(maxsize=4096)
def _script_keys(org: str) -> tuple[str, ...]:
    names = keys.of_org(org)
    return (*common_keys(names), names.budget_spent, names.metered, names.settled)
