"""Proves on a live ledger that its figures agree: `credits verify`.

Nothing is taken from one figure that another is checked against: run records are priced anew from the rate
history, buckets, rows, grants, holds and the journal are added up each for itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import msgspec

from ledger import keys
from ledger.budgets import decode_budgets
from ledger.clock import parse_time
from ledger.connect import again
from ledger.errors import UnknownOrg
from ledger.findings import Findings, Hashes
from ledger.lua import text
from ledger.money import COST_DENOMINATOR, HOUR_US
from ledger.org_state import Amounts, decode_amounts, decode_rows
from ledger.periods import PERIODS
from ledger.rates_history import line_of
from ledger.rollups import check_rollups
from ledger.runs import Run
from ledger.store import Ledger
from ledger.usage_reader import DAY_US, read_horizon
from ledger.verify_grants import check_grants, check_transfers
from ledger.verify_holds import check_holds

FIELDS = ("micro", "us", "refunded_micro", "refunded_us")
Progress = Callable[[int, int], None]
"""(orgs done, orgs in all)"""


async def verify(ledger: Ledger, org: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Check every org (or one): `{"ok": bool, "checked": {...}, "differences": [...]}`, and `orphan_holds` if any.

    Each org is read in one transaction, so that rounds and grants under way do no harm. Orphan holds set credits aside
    for work that is charged or over already; the figures agree all the same, and they end by their expiry, so they
    are no difference. A hold that is still there after its expiry is one.
    Raises: LedgerUnavailable, LedgerDamaged.
    """
    orgs = [org] if org is not None else await ledger.accounts.orgs()
    checked: dict[str, int] = defaultdict(int)
    differences: list[dict[str, str | None]] = []
    orphans: list[dict[str, str | None]] = []
    for number, name in enumerate(orgs):
        await _Org(ledger, name, checked, differences, orphans).check()
        if progress:
            progress(number + 1, len(orgs))
    checked["orgs"] = len(orgs)
    result = {"ok": not differences, "checked": dict(checked), "differences": differences}
    return {**result, "orphan_holds": orphans} if orphans else result


class _Org:
    def __init__(
        self, ledger: Ledger, org: str, checked: dict[str, int], differences: list[dict[str, str | None]],
        orphans: list[dict[str, str | None]],
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._org = org
        self._keys = keys.of_org(org)
        self._found = Findings(org, checked, differences)
        self._orphans = orphans

    async def check(self) -> None:
        now_us = await self._end_holds()
        hashes, buckets, expiry, journal = await self._read()
        fields = {text(k): text(v) for k, v in hashes[self._keys.org].items()}
        totals = decode_amounts(hashes[self._keys.spent])
        self._found.same("spent", int(fields.get("spent", 0)), "rows", sum(a.micro for a in totals.values()))
        self._buckets(totals, buckets)
        await self._runs(fields, hashes, totals)
        check_grants(self._found, fields, hashes, totals, journal)
        await check_transfers(self._found, self._ledger)
        self._orphans += check_holds(self._found, hashes, expiry, now_us)
        self._budgets(hashes, buckets, journal, (await read_horizon(self._ledger)).hours_us)
        copies, wrong = await check_rollups(self._ledger, self._org)
        self._found.checked["roll-ups"] += copies
        for name in wrong:
            self._found.differ(f"roll-up {name}", "its sums are not those of its hours")

    async def _end_holds(self) -> int:
        """Those whose time is over, as everybody who looks at an org does. Until when (us)."""
        try:
            return (await self._ledger.accounts.balance(self._org)).at_us
        except UnknownOrg:
            return 0

    async def _read(
        self,
    ) -> tuple[Hashes, dict[int, dict[int, Amounts]], dict[str, int], list[Any]]:
        names = self._keys
        client: Any = self._ledger.client

        async def read() -> tuple[Any, ...]:
            hours = [int(h) for h in await client.zrange(names.hours, 0, -1)]
            known = await client.hkeys(names.org)
            sources = [text(k).removeprefix("mark:") for k in known if text(k).startswith("mark:")]
            wanted = [
                names.org, names.rows, names.spent, names.runs, names.ended, names.grants, names.purse, names.holds,
                names.hold_of, names.held, names.running, names.budgets, names.budget_spent, names.forgotten,
                names.withdrawals, names.payments, names.purchases,
                *(names.running_of(source) for source in sources),
            ]  # fmt: skip
            async with client.pipeline(transaction=True) as pipe:
                pipe.zrange(names.hours, 0, -1)
                pipe.zrange(names.hold_expiry, 0, -1, withscores=True)
                pipe.xrange(names.journal)
                pipe.smembers(names.metered)
                for name in wanted:
                    pipe.hgetall(name)
                for hour in hours:
                    pipe.hgetall(names.bucket(hour * 1_000_000))
                answer: list[Any] = await pipe.execute()
            return hours, wanted, answer

        while True:
            hours, wanted, answer = await again(read)
            if [int(h) for h in answer[0]] == hours:
                break
        self._metered({text(workload) for workload in answer[3]}, answer[4 + wanted.index(names.runs)])
        hashes = dict(zip(wanted, answer[4 : 4 + len(wanted)], strict=True))
        buckets = dict(zip(hours, (decode_amounts(b) for b in answer[4 + len(wanted) :]), strict=True))
        return hashes, buckets, {text(hold): int(ms) for hold, ms in answer[1]}, answer[2]

    def _metered(self, workloads: set[str], runs: dict[bytes, bytes]) -> None:
        """Those that count as charged now, so that they need no hold, are."""
        charged = set()
        for field in runs:
            cluster, kind, name, _ = text(field).split(keys.US, 3)
            charged.add(f"{cluster}{keys.US}{name}" if kind != "storage" else "")
        for workload in workloads - charged:
            self._found.differ(f"workload {workload!r}", "counts as charged now, but is not")

    def _buckets(self, totals: dict[int, Amounts], buckets: dict[int, dict[int, Amounts]]) -> None:
        sums: dict[int, Amounts] = defaultdict(Amounts)
        for bucket in buckets.values():
            self._found.checked["buckets"] += 1
            for row, amounts in bucket.items():
                for name in FIELDS:
                    setattr(sums[row], name, getattr(sums[row], name) + getattr(amounts, name))
        self._rows("hourly buckets", totals, sums)

    async def _runs(self, fields: dict[str, str], hashes: Hashes, totals: dict[int, Amounts]) -> None:
        rows = decode_rows(hashes[self._keys.rows])
        self._found.checked["rows"] += len(rows)
        sums: dict[int, Amounts] = defaultdict(Amounts, decode_amounts(hashes[self._keys.forgotten]))
        plans = {cluster: (await self._ledger.rates.read(cluster))[1] for cluster in {row.cluster for row in rows}}
        for data in (*hashes[self._keys.runs].values(), *hashes[self._keys.ended].values()):
            self._found.checked["workloads"] += 1
            run = Run.decode(self._org, data)
            row = rows[run.row]
            run.line = line_of(plans[row.cluster], row.kind, row.resource, row.app, run.bills_app)
            mark = fields.get(f"mark:{run.source}")
            cost, us = run.cumulative(run.charged_until(None if mark is None else int(mark)))
            total = sums[run.row]
            total.micro += cost // COST_DENOMINATOR + run.refunded_micro
            total.us += us + run.refunded_us
            total.refunded_micro += run.refunded_micro
            total.refunded_us += run.refunded_us
        self._rows("workloads", totals, sums)

    def _budgets(
        self,
        hashes: Hashes,
        buckets: dict[int, dict[int, Amounts]],
        journal: list[Any],
        hours_us: int,
    ) -> None:
        """Budget counters of periods that start and end where buckets do (`hours_us`: days before), against these.

        A counter is whole from the period on in which the budget was set last; of earlier ones it may have only
        what was charged late.
        """
        set_us: dict[tuple[str, str | None, str], int] = {}
        for _, item in journal:
            entry = msgspec.json.decode(item[b"entry"])
            if entry["type"] == "budget":
                set_us[entry["project"], entry["user"], entry["period"]] = parse_time(entry["at"])
        rows = decode_rows(hashes[self._keys.rows])
        counters = {text(k): int(v) for k, v in hashes[self._keys.budget_spent].items()}
        for budget in decode_budgets(hashes[self._keys.budgets]):
            self._found.checked["budgets"] += 1
            sums: dict[str, int] = defaultdict(int)
            exact = budget.period in PERIODS
            for hour, bucket in buckets.items():
                start, end = budget.period_at(hour * 1_000_000)
                grain = DAY_US if hour * 1_000_000 < hours_us else HOUR_US
                exact = exact and not start % grain and not (end or 0) % grain
                for row, amounts in bucket.items():
                    if budget.covers(rows[row].project, rows[row].user):
                        sums[f"{budget.id}{keys.US}{start}"] += amounts.micro - amounts.refunded_micro
            if exact:
                whole = budget.period_at(set_us[budget.project, budget.user, budget.period])[0]
                mine = {}
                for counter, micro in counters.items():
                    name, _, since = counter.rpartition(keys.US)
                    # Starts of an earlier time zone or day of the week are not starts any more.
                    if name == budget.id and int(since) >= whole and budget.period_at(int(since))[0] == int(since):
                        mine[counter] = micro
                self._found.sums(f"budget {budget.id!r}", mine, "hourly buckets", sums, only_known=True)

    def _rows(self, what: str, totals: dict[int, Amounts], sums: dict[int, Amounts]) -> None:
        for row in sorted(totals.keys() | sums.keys()):
            for name in FIELDS:
                have = getattr(totals.get(row, Amounts()), name)
                self._found.same(f"row {row} {name}", have, what, getattr(sums.get(row, Amounts()), name))
