"""Setting, removing and reading budgets. A new one counts what its current period has spent already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import msgspec

from ledger import keys
from ledger.budgets import Budget, budget_id, decode_budgets
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.errors import Changed, InvalidRequest, LedgerUnavailable
from ledger.lua import Scripts, text
from ledger.money import COST_DENOMINATOR, HOUR_US, MICRO_MAX, format_micro
from ledger.names import check_name
from ledger.org_state import Amounts, Row, decode_amounts, decode_rows
from ledger.periods import PERIODS
from ledger.rates_history import line_of
from ledger.rates_store import RatesStore
from ledger.runs import Run, hour_of

TRIES = 50
"""Reads of an org whose rounds commit in between, before it is given up."""


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget and its current period [starts, ends); `held_micro`: in holds and for running work.

    `tag`: what the budgets of the project (or of the user in it) are, of all periods; as `if_tag` takes it.
    """

    budget: Budget
    starts_us: int
    ends_us: int | None
    spent_micro: int
    held_micro: int
    tag: str

    @property
    def remaining_micro(self) -> int:
        """What may still be held or spent; negative when more was spent than the budget is now."""
        return self.budget.limit_micro - self.spent_micro - self.held_micro


class BudgetStore:
    """Budgets of all orgs."""

    def __init__(self, client: Client, scripts: Scripts, rates: RatesStore, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._scripts = scripts
        self._rates = rates
        self._clock: Clock = clock or now_us

    async def read(self, org: str) -> tuple[str, tuple[Budget, ...]]:
        """(revision, budgets) of one instant."""
        names = keys.of_org(org)

        async def ask() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hget(names.org, "budget_rev")
                pipe.hgetall(names.budgets)
                answer: list[Any] = await pipe.execute()
                return answer

        revision, fields = await again(ask)
        return text(revision) or "0", decode_budgets(fields)

    async def states(self, org: str) -> list[BudgetState]:
        """All budgets of an org with what their current periods have left, by project, user and period."""
        names = keys.of_org(org)

        async def ask() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                for name in (names.budgets, names.budget_spent, names.held, names.running):
                    pipe.hgetall(name)
                answer: list[Any] = await pipe.execute()
                return answer

        fields, *sums = await again(ask)
        spent, held, running = ({text(k): int(v) for k, v in part.items()} for part in sums)
        now = self._clock()
        found = []
        for budget in decode_budgets(fields):
            tier = keys.tier_fields(budget.project, budget.user or "")[1 if budget.user is None else 2]
            starts, ends = budget.period_at(now)
            used = spent.get(budget.field_at(now), 0)
            reserved = held.get(tier, 0) + running.get(tier, 0)
            tag = _tag(fields, budget.project, budget.user)
            found.append(BudgetState(budget, starts, ends, used, reserved, tag))
        order = {period: number for number, period in enumerate(PERIODS)}
        return sorted(found, key=lambda s: (s.budget.project, s.budget.user or "", order[s.budget.period]))

    async def put(
        self,
        org: str,
        project: str,
        user: str | None,
        limit_micro: int,
        *,
        who: str,
        address: str | None = None,
        if_tag: str | None = None,
        period: str = "month",
        timezone: str = "UTC",
        week_start: int = 0,
    ) -> BudgetState:
        """Cap what a project, or a user in it, may spend in a period; there is one budget for each of the four.

        0 is zero: nothing may be spent. `if_tag`: only if the budgets of the project (or user) still are these
        (`*`: only if there are any).
        Raises: InvalidRequest; Changed where they are others; LedgerUnavailable (a retry is safe).
        """
        check_name("org", org)
        budget = _checked(
            Budget(budget_id(project, user, period), project, user, limit_micro, period, timezone, week_start)
        )
        names = keys.of_org(org)
        await again(lambda: self._client.sadd(keys.ORGS, org))
        for _ in range(TRIES):
            now = self._clock()
            token, revision, spent = await self._spent(org, budget, now)
            entry = {
                "type": "budget", "at": format_time(now), "who": who, "from": address, "project": project, "user": user,
                "credits": format_micro(limit_micro), "period": period, "timezone": timezone, "week_start": week_start,
            }  # fmt: skip
            arguments = [token, revision, budget.id, msgspec.json.encode(budget), budget.field_at(now), str(spent)]
            script_keys = [names.org, names.budgets, names.budget_spent, names.journal]
            arguments += [msgspec.json.encode(entry), if_tag or "", *_ids(project, user)]
            said, *more = await self._scripts.budget_set.durably(script_keys, arguments)
            if text(said) == "changed":
                raise _changed(project, user)
            if text(said) != "conflict":
                at_once = BudgetState(budget, *budget.period_at(now), spent, 0, "")  # should it be gone already
                found = (state for state in await self.states(org) if state.budget.id == budget.id)
                return replace(next(found, at_once), tag=text(more[1]))
        raise LedgerUnavailable(f"org {org!r} is charged so often that its usage could not be read; a retry is safe")

    async def remove(
        self, org: str, project: str, user: str | None, *, who: str, address: str | None = None,
        if_tag: str | None = None, period: str | None = None,
    ) -> list[Budget]:  # fmt: skip
        """Remove the budgets of a project (or of a user in it), of one period or of all; what was removed.

        `if_tag` as in `put`. Raises: Changed, LedgerUnavailable.
        """
        names = keys.of_org(org)
        _, budgets = await self.read(org)
        removed = [
            budget
            for budget in budgets
            if (budget.project, budget.user) == (project, user) and period in (None, budget.period)
        ]
        if not removed:
            return []
        ids = _ids(project, user)
        arguments: list[Any] = [if_tag or "", str(len(ids)), *ids]
        for budget in removed:
            entry = {
                "type": "budget_removed", "at": format_time(self._clock()), "who": who, "from": address,
                "project": project, "user": user, "credits": format_micro(budget.limit_micro), "period": budget.period,
            }  # fmt: skip
            arguments += [budget.id, budget.id + keys.US, msgspec.json.encode(entry)]
        script_keys = [names.org, names.budgets, names.budget_spent, names.journal]
        if text((await self._scripts.budget_remove.durably(script_keys, arguments))[0]) == "changed":
            raise _changed(project, user)
        return removed

    async def _spent(self, org: str, budget: Budget, now: int) -> tuple[str, str, int]:
        """(commit, revision, micro-credits spent in the budget's current period) of one instant."""
        names = keys.of_org(org)
        starts, _ = budget.period_at(now)
        cut = starts % HOUR_US != 0  # the period starts inside an hour, so a bucket is no answer for it
        first = hour_of(starts) + (HOUR_US if cut else 0)

        async def ask() -> list[Any]:
            hours = []
            if budget.period != "total":
                hours = await self._client.zrangebyscore(names.hours, first // 1_000_000, "+inf")
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.zrangebyscore(names.hours, first // 1_000_000, "+inf")
                pipe.hmget(names.org, ["commit", "budget_rev"])
                pipe.hgetall(names.rows)
                for name in [names.bucket(int(hour) * 1_000_000) for hour in hours] if hours else [names.spent]:
                    pipe.hgetall(name)
                if cut:
                    pipe.hgetall(names.runs)
                    pipe.hgetall(names.ended)
                    pipe.hgetall(names.org)
                answer: list[Any] = await pipe.execute()
                # Without an hour in the period, the sums of all time stood in for the buckets: they do not count.
                return [hours, bool(hours) or budget.period == "total", *answer]

        while True:
            hours, counts, hours_now, (token, revision), row_fields, *parts = await again(ask)
            if budget.period == "total" or hours == hours_now:
                break
        rows = decode_rows(row_fields)
        buckets = parts[:-3] if cut else parts
        spent = sum(_net(decode_amounts(bucket), rows, budget) for bucket in buckets) if counts else 0
        if cut:
            runs, ended, facts = parts[-3:]
            marks = {text(k): int(v) for k, v in facts.items() if k.startswith(b"mark:")}
            spent += await self._inside(org, [*runs.values(), *ended.values()], rows, marks, budget, starts, first)
        return text(token), text(revision) or "0", spent

    async def _inside(
        self, org: str, records: Iterable[bytes], rows: list[Row], marks: dict[str, int], budget: Budget,
        since: int, until: int,
    ) -> int:  # fmt: skip
        """What was spent in [since, until), out of the runs themselves."""
        plans = {cluster: (await self._rates.read(cluster))[1] for cluster in {row.cluster for row in rows}}
        spent = 0
        for data in records:
            run = Run.decode(org, data)
            row = rows[run.row]
            if not budget.covers(row.project, row.user):
                continue
            run.line = line_of(plans[row.cluster], row.kind, row.resource, row.app, run.bills_app)
            charged = run.charged_until(marks.get(f"mark:{run.source}"))
            before, after = (run.cumulative(min(us, charged))[0] // COST_DENOMINATOR for us in (since, until))
            spent += after - before
        return spent


def _tag(fields: dict[bytes, bytes], project: str, user: str | None) -> str:
    # As scripts/budget_set.lua makes it, which compares it in the step that changes something.
    records = b"".join(fields.get(one.encode(), b"") + b"\n" for one in _ids(project, user))
    return hashlib.sha1(records, usedforsecurity=False).hexdigest()


def _ids(project: str, user: str | None) -> list[str]:
    return [budget_id(project, user, period) for period in PERIODS]


def _changed(project: str, user: str | None) -> Changed:
    of_user = "" if user is None else f", user {user!r}"
    return Changed(f"The budgets of project {project!r}{of_user} are not those that were read; read them again.")


def _net(amounts: dict[int, Amounts], rows: list[Row], budget: Budget) -> int:
    return sum(
        sums.micro - sums.refunded_micro
        for row, sums in amounts.items()
        if budget.covers(rows[row].project, rows[row].user)
    )


def _checked(budget: Budget) -> Budget:
    check_name("project", budget.project)
    if budget.user is not None:
        check_name("user", budget.user)
    if not 0 <= budget.limit_micro <= MICRO_MAX:
        raise InvalidRequest(
            f"credits {format_micro(budget.limit_micro)}: a budget is 0 to {format_micro(MICRO_MAX)} credits"
        )
    if budget.period not in PERIODS:
        raise InvalidRequest(f"period {budget.period!r}: expected one of {', '.join(PERIODS)}")
    if not 0 <= budget.week_start <= 6:
        raise InvalidRequest(f"week_start {budget.week_start}: expected 0 (Monday) to 6 (Sunday)")
    try:
        ZoneInfo(budget.timezone)
    except (KeyError, ValueError, OSError):
        near = get_close_matches(budget.timezone[:64], available_timezones(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidRequest(
            f"timezone {budget.timezone[:64]!r}: expected a name like UTC or Europe/Berlin{hint}"
        ) from None
    return budget
