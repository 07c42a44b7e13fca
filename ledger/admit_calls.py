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
from ledger.connect import again
from ledger.errors import LedgerUnavailable
from ledger.lua import Script, common_keys
from ledger.money import MICRO_MAX
from ledger.pipelined import OnLate, Pipelined

ORGS_MAX = 10_000
"""Orgs whose budgets are kept in memory."""
COVERS_MAX = 10_000
"""Users in projects of one org for whom it is kept which budgets they are under."""
STALE_MAX = 5
_FOR_EVER_US = 2**63


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


class Asked(NamedTuple):
    """A request that admit.lua was asked about: its answer comes, or has come."""

    request: AdmissionRequest
    amount_micro: int
    """What one unit needs."""
    now_us: int
    budgets: tuple[Budget, ...]
    """Those it is under; the answer counts in them."""
    known: _OrgBudgets
    answer: asyncio.Future[list[Any]]


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

    def ask(
        self, request: AdmissionRequest, terms: Terms, amount_micro: int, now: int, on_late: OnLate | None
    ) -> Asked | None:
        """A request (with the id of its hold), whose unit needs `amount_micro`, is on its way; None where the budgets
        of its org have to be read first. When given up, its answer goes to `on_late`."""
        known = self._budgets.get(request.org)
        if known is None:
            return None
        work = _work(
            request.cluster, request.org, request.project, request.user, request.kind, request.preset, request.app,
            request.source, request.max_runtime_us,
        )  # fmt: skip
        cover = known.cover(request.project, request.user, now)
        workload = f"{request.cluster}{keys.US}{request.workload_id}" if request.workload_id else ""
        owner = f"{request.cluster}{keys.US}{request.owner}" if request.owner else ""
        expires = now + (max(terms.hold_us, LISTED_US) if request.source else terms.hold_us)
        # More than can be counted is more than anyone has; the script sees that it is.
        amount = amount_micro if amount_micro <= MICRO_MAX else MICRO_MAX + 1
        units = request.count or 0
        if units > MICRO_MAX:
            units = MICRO_MAX
        # Amounts, units and the expiry are strings, as Lua would make them inexact when it writes the record.
        record = (
            f'{{"amount":"{amount}","left":"{units or 1}","expires_us":"{expires}","at":"{format_time(now)}",'
            f'"workload":{_JSON.encode(workload).decode() if workload else "null"},{work.record}'
        )
        packed = _PACK.encode((
            request.hold_id, record, workload, request.replaces or "", owner, amount, units, expires, work.of_project,
            work.of_user, cover.packed, known.revision, terms.unknown_org, request.dry_run, request.was_let_in,
        ))  # fmt: skip
        given = (str(self._given_clock()),) if self._given_clock else _NO_CLOCK
        answer = self._pipelined.among(self._script, work.names, given, packed, on_late)
        return Asked(request, amount_micro, now, cover.budgets, known, answer)

    def is_outdated(self, asked: Asked) -> bool:
        """Whether the script wants to be asked again, with the budgets as they are by then."""
        code, org = asked.answer.result()[0], asked.request.org
        if code == b"stale" and self._budgets.get(org) is asked.known:
            del self._budgets[org]
        return code in (b"more", b"stale")

    async def answered(
        self, request: AdmissionRequest, terms: Terms, amount_micro: int, now: int, on_late: OnLate | None
    ) -> Asked:
        """As `ask`, with its answer, however often that takes. Raises: LedgerUnavailable."""

        async def once() -> Asked:
            asked = self.ask(request, terms, amount_micro, now, on_late)
            while asked is None:
                await self._read(request.org)
                asked = self.ask(request, terms, amount_micro, now, on_late)
            await asked.answer
            return asked

        stale = 0
        while stale < STALE_MAX:
            asked = await again(once)
            if not self.is_outdated(asked):
                return asked
            stale += asked.answer.result()[0] == b"stale"
        raise LedgerUnavailable(f"the budgets of org {request.org!r} change all the time; a retry is safe")

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
_NO_CLOCK = ("",)


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


class _Work(NamedTuple):
    """What does not change from one request for the same work to the next."""

    names: tuple[str, ...]
    """The script's keys."""
    of_project: str
    of_user: str
    record: str
    """The end of the JSON of a hold's record."""


@lru_cache(maxsize=4096)  # the same few users come again and again
def _work(
    cluster: str, org: str, project: str, user: str, kind: str, preset: str | None, app: str | None, source: str,
    limit_us: int | None,
) -> _Work:  # fmt: skip
    names = keys.of_org(org)
    tiers = keys.tier_fields(project, user)
    record = _JSON.encode({
        "tiers": tiers, "limit_us": limit_us, "cluster": cluster, "project": project, "user": user, "preset": preset,
        "app": app, "kind": kind, "source": source,
    })  # fmt: skip
    return _Work(
        (*common_keys(names), names.budget_spent, names.metered, names.settled), tiers[1], tiers[2],
        record.decode().removeprefix("{"),
    )  # fmt: skip
