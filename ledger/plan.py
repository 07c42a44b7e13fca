"""A plan: everything one commit writes for one org and one source, and its form on the wire."""

from __future__ import annotations

import calendar
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter

import msgspec

from ledger import keys
from ledger.clock import format_time, from_us
from ledger.lua import common_keys
from ledger.money import COST_DENOMINATOR, HOUR_US, format_micro
from ledger.org_state import Amounts, OrgState, Row
from ledger.runs import hour_of
from ledger.scopes import class_field, preset_of

Slot = tuple[int, int]
"""[since, until) inside one hour and one period of every budget."""


@dataclass(frozen=True, slots=True)
class Correction:
    """Credits given back because a newer fact shortened what was charged."""

    workload: str
    row: Row
    micro: int
    reason: str


@dataclass(slots=True)
class _Hours:
    """Full hours that were charged many at a time.

    `steps`: by how much [micro-credits, runs] of each hour are more from an hour on; `over`: what micro-credits single
    hours have beside that.
    """

    steps: dict[int, list[int]] = field(default_factory=dict)
    over: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What a round does to one org. Empty plans are not committed."""

    org: str
    source: str
    taken_us: int | None = None
    charged: dict[Slot, dict[int, Amounts]] = field(default_factory=dict)
    hourly: dict[int, _Hours] = field(default_factory=dict)
    """By row, what is not in `charged` yet."""
    new_rows: list[int] = field(default_factory=list)
    runs: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    revived: set[str] = field(default_factory=set)
    settled: list[tuple[str, str]] = field(default_factory=list)
    corrections: list[Correction] = field(default_factory=list)
    running: dict[str, int] | None = None

    @property
    def changes(self) -> int:
        """How many run records are written."""
        return len(self.runs) + len(self.ended)

    def is_empty(self) -> bool:
        return not (self.is_charged or self.changes or self.gone or self.settled) and (
            self.taken_us is None and self.running is None
        )

    @property
    def is_charged(self) -> bool:
        """Whether it charges any time, be it for nothing."""
        return bool(self.charged or self.hourly)

    def add(self, slot: Slot, row: int, micro: int, us: int) -> None:
        """Charge (positive) or give back (negative) in one slot, in micro-credits and microseconds billed."""
        rows = self.charged.setdefault(slot, {})
        amounts = rows.get(row)
        if amounts is None:
            amounts = rows[row] = Amounts()
        if micro > 0:
            amounts.micro += micro
        else:
            amounts.refunded_micro -= micro
        if us > 0:
            amounts.us += us
        else:
            amounts.refunded_us -= us

    def add_hours(self, since: int, count: int, row: int, before: int, cost: int) -> None:
        """Charge each of `count` full hours from `since` on, all of it billed, for `cost` (a numerator).

        `before` is what was charged up to `since`, also a numerator. The same as one `add` an hour, but at next to no
        cost for each.
        """
        hours = self.hourly.setdefault(row, _Hours())
        micro, rest = divmod(cost, COST_DENOMINATOR)
        until = since + count * HOUR_US
        for at, sign in ((since, 1), (until, -1)):
            step = hours.steps.setdefault(at, [0, 0])
            step[0] += sign * micro
            step[1] += sign
        if rest:
            carried, over = before % COST_DENOMINATOR, hours.over
            for hour in range(since, until, HOUR_US):
                carried += rest
                if carried >= COST_DENOMINATOR:
                    carried -= COST_DENOMINATOR
                    over[hour] = over.get(hour, 0) + 1

    def tally(self) -> Mapping[Slot, Mapping[int, Amounts]]:
        """What is charged, by slot and row: `hourly` is spread over its hours, and then in `charged`."""
        for row, hours in self.hourly.items():
            micro = runs = 0
            edges = sorted(hours.steps)
            for since, until in pairwise(edges):
                micro += hours.steps[since][0]
                runs += hours.steps[since][1]
                if runs:
                    for hour in range(since, until, HOUR_US):
                        self.add((hour, hour + HOUR_US), row, micro + hours.over.get(hour, 0), runs * HOUR_US)
        self.hourly.clear()
        return self.charged


@dataclass(frozen=True, slots=True)
class Packed:
    """A plan as the charge script takes it."""

    token: str
    script_keys: list[str]
    payload: bytes


def new_token() -> str:
    """Names one commit: unique, so that a lost tail of the log can never make two histories look alike."""
    return secrets.token_hex(12)


def pack(plan: Plan, state: OrgState, now_us: int) -> Packed:
    """The commit of a plan computed from `state`."""
    org = keys.of_org(plan.org)
    token = new_token()
    hours: dict[int, int] = {}
    charges: list[list[str]] = []
    slots: list[list[str]] = []
    budgets: dict[str, int] = {}
    by_hour: dict[tuple[int, int], Amounts] = {}
    for slot, amounts_of in sorted(plan.tally().items(), key=itemgetter(0)):
        since, until = slot
        hour = hour_of(since)
        hours.setdefault(hour, len(hours) + 1)
        spent: dict[str, int] = {}
        for row, amounts in amounts_of.items():
            if amounts.micro:
                work = class_of(state.rows[row]) if state.is_scoped else ""
                spent[work] = spent.get(work, 0) + amounts.micro
            total = by_hour.get((hour, row))
            if total is None:
                by_hour[hour, row] = Amounts(amounts.micro, amounts.us, amounts.refunded_micro, amounts.refunded_us)
            else:
                total.micro += amounts.micro
                total.us += amounts.us
                total.refunded_micro += amounts.refunded_micro
                total.refunded_us += amounts.refunded_us
            net = amounts.micro - amounts.refunded_micro
            if net:
                for budget in state.budgets:
                    if budget.covers(state.rows[row].project, state.rows[row].user):
                        counter = budget.field_at(since)
                        budgets[counter] = budgets.get(counter, 0) + net
        for work, micro in spent.items():
            slots.append([str(since), str(until), str(micro), *([work] if work else [])])
    for (hour, row), sums in by_hour.items():
        charges.append(
            [str(hours[hour]), str(row), str(sums.micro), str(sums.us), str(sums.refunded_micro), str(sums.refunded_us)]
        )
    metered = _workloads(plan.runs)
    payload = {
        "expected": state.token,
        "token": token,
        "budget_rev": state.budget_rev,
        "org": plan.org,
        "source": plan.source,
        "taken_us": "" if plan.taken_us is None else str(plan.taken_us),
        "hours": [str(hour // 1_000_000) for hour in hours],
        "rollups": sorted({name for hour in hours for name in rollups_of(hour)}),
        "rows": [[str(row), msgspec.json.encode(state.rows[row]).decode()] for row in plan.new_rows],
        "charges": charges,
        "slots": slots,
        "budgets": [[counter, str(micro)] for counter, micro in budgets.items()],
        "runs": _flat(plan.runs),
        "ended": _flat(plan.ended),
        "gone": list(plan.gone),
        "metered": sorted(metered),
        "unmetered": sorted(_workloads(plan.gone) - metered),
        "revived": list(plan.revived),
        "settled": plan.settled,
        "running": _running(plan, state),
        "burn": "" if plan.running is None else str(_burn(state, plan.source)),
        "corrections": [_correction(plan.source, token, n, c, now_us) for n, c in enumerate(plan.corrections)],
    }
    names = [*common_keys(org), org.rows, org.spent, org.hours, org.runs, org.ended, org.grants, org.budget_spent]
    names += [org.running_of(plan.source), org.rollups, org.metered, org.settled, *(org.bucket(hour) for hour in hours)]
    return Packed(token, names, msgspec.msgpack.encode(payload))


def class_of(row: Row) -> str:
    """The class of work that restricted grants tell apart."""
    return class_field(row.cluster, preset_of(row.kind, row.resource, row.app))


def _workloads(fields: Iterable[str]) -> set[str]:
    """Names of jobs and apps among fields of `runs`, as `holdof` has them."""
    found = set()
    for run in fields:
        cluster, kind, name, _ = run.split(keys.US, 3)
        if kind != "storage":
            found.add(f"{cluster}{keys.US}{name}")
    return found


def rollups_of(us: int) -> tuple[str, str]:
    """Names of the roll-ups, by day and by month, that an instant is in."""
    moment = from_us(us)
    day = calendar.timegm((moment.year, moment.month, moment.day, 0, 0, 0))
    return f"d{day}", f"m{calendar.timegm((moment.year, moment.month, 1, 0, 0, 0))}"


def _flat(records: dict[str, str]) -> list[str]:
    return [part for item in records.items() for part in item]


def _running(plan: Plan, state: OrgState) -> Sequence[tuple[str, str, str]]:
    if plan.running is None:
        return []
    before = state.running.get(plan.source, {})
    return [
        (tier, str(plan.running.get(tier, 0) - before.get(tier, 0)), str(plan.running.get(tier, 0)))
        for tier in sorted({*before, *plan.running})
        if plan.running.get(tier, 0) != before.get(tier, 0)
    ]


def _burn(state: OrgState, source: str) -> int:
    # numerator per microsecond -> micro-credits an hour: x HOUR_US / COST_DENOMINATOR = / 1e12
    return sum(live.per_us for live in state.live.get(source, {}).values()) // 10**12


def _correction(source: str, token: str, number: int, correction: Correction, now_us: int) -> list[str]:
    key = f"correction:{token}:{number}"
    entry = {
        "type": "correction",
        "at": format_time(now_us),
        "who": f"exporter:{source}",
        "credits": format_micro(correction.micro),
        "source": "refund",
        "workload": correction.workload,
        "project": correction.row.project,
        "user": correction.row.user,
        "reason": correction.reason,
        "key": key,
    }
    record = {
        "key": key,
        "digest": "",
        "credits": entry["credits"],
        "source": "refund",
        "reason": correction.reason,
        "granted_at": entry["at"],
        "effective_at": entry["at"],
        "expires_at": None,
        "who": entry["who"],
    }
    return [key, msgspec.json.encode(record).decode(), str(correction.micro), msgspec.json.encode(entry).decode()]
