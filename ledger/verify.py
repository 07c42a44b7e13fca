"""Proves on a live ledger that its figures agree: `credits verify`.

Nothing is taken from one figure that another is checked against: run records are priced anew from the rate
history, buckets, rows, grants, holds and the journal are added up each for itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from ledger import keys
from ledger.accounts import PAYMENT_PREFIX, GrantRecord
from ledger.budgets import decode_budgets
from ledger.clock import format_time, parse_time
from ledger.connect import again
from ledger.errors import UnknownOrg
from ledger.lua import text
from ledger.money import COST_DENOMINATOR, HOUR_US, format_micro, parse_credits
from ledger.org_state import Amounts, decode_amounts, decode_rows
from ledger.periods import PERIODS
from ledger.purchase_step import Order, Payment
from ledger.rates_history import line_of
from ledger.rollups import check_rollups
from ledger.runs import NEVER, OPEN, Run
from ledger.scopes import Scope, class_field
from ledger.store import Ledger
from ledger.transfers import DONE, PENDING, Transfer
from ledger.usage_reader import DAY_US, read_horizon

FIELDS = ("micro", "us", "refunded_micro", "refunded_us")
SIGNS = {"grant": 1, "correction": 1, "restoration": 1, "withdrawal": -1, "transfer": 1}
"""Journal entries that change what is granted. Corrections and transfers say themselves which way."""
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
        self._checked = checked
        self._differences = differences
        self._orphans = orphans

    async def check(self) -> None:
        now_us = await self._end_holds()
        hashes, buckets, expiry, journal = await self._read()
        fields = {text(k): text(v) for k, v in hashes[self._keys.org].items()}
        totals = decode_amounts(hashes[self._keys.spent])
        self._same("spent", int(fields.get("spent", 0)), "rows", sum(a.micro for a in totals.values()))
        self._buckets(totals, buckets)
        await self._runs(fields, hashes, totals)
        taken = self._purchases(fields, hashes)
        self._grants(fields, hashes, totals, journal, taken)
        await self._transfers()
        self._holds(hashes, expiry, now_us)
        self._budgets(hashes, buckets, journal, (await read_horizon(self._ledger)).hours_us)
        copies, wrong = await check_rollups(self._ledger, self._org)
        self._checked["roll-ups"] += copies
        for name in wrong:
            self._differ(f"roll-up {name}", "its sums are not those of its hours")

    async def _end_holds(self) -> int:
        """Those whose time is over, as everybody who looks at an org does. Until when (us)."""
        try:
            return (await self._ledger.accounts.balance(self._org)).at_us
        except UnknownOrg:
            return 0

    async def _read(
        self,
    ) -> tuple[dict[str, dict[bytes, bytes]], dict[int, dict[int, Amounts]], dict[str, int], list[Any]]:
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
            self._differ(f"workload {workload!r}", "counts as charged now, but is not")

    def _buckets(self, totals: dict[int, Amounts], buckets: dict[int, dict[int, Amounts]]) -> None:
        sums: dict[int, Amounts] = defaultdict(Amounts)
        for bucket in buckets.values():
            self._checked["buckets"] += 1
            for row, amounts in bucket.items():
                for name in FIELDS:
                    setattr(sums[row], name, getattr(sums[row], name) + getattr(amounts, name))
        self._rows("hourly buckets", totals, sums)

    async def _runs(
        self, fields: dict[str, str], hashes: dict[str, dict[bytes, bytes]], totals: dict[int, Amounts]
    ) -> None:
        rows = decode_rows(hashes[self._keys.rows])
        self._checked["rows"] += len(rows)
        sums: dict[int, Amounts] = defaultdict(Amounts, decode_amounts(hashes[self._keys.forgotten]))
        plans = {cluster: (await self._ledger.rates.read(cluster))[1] for cluster in {row.cluster for row in rows}}
        for data in (*hashes[self._keys.runs].values(), *hashes[self._keys.ended].values()):
            self._checked["workloads"] += 1
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

    def _grants(
        self,
        fields: dict[str, str],
        hashes: dict[str, dict[bytes, bytes]],
        totals: dict[int, Amounts],
        journal: list[Any],
        taken: int,
    ) -> None:
        """`taken`: what refunds and disputes of payments took back of the grants."""
        records = [msgspec.json.decode(data, type=GrantRecord) for data in hashes[self._keys.grants].values()]
        self._checked["grants"] += len(records)
        granted = sum(parse_credits(record.credits) for record in records) - taken
        by_source: dict[str, int] = defaultdict(int)
        for record in records:
            by_source[record.source] += parse_credits(record.credits)
        self._same("granted", int(fields.get("granted", 0)), "grants", granted)
        for source, micro in by_source.items():
            self._same(f"granted by {source}", int(fields.get(f"granted:{source}", 0)), "grants", micro)
        entries = [msgspec.json.decode(item[b"entry"]) for _, item in journal]
        self._checked["journal entries"] += len(entries)
        journaled = sum(SIGNS[e["type"]] * parse_credits(e["credits"]) for e in entries if e["type"] in SIGNS)
        journaled += int(fields.get("journaled", 0))  # by entries that are not kept any more
        self._same("granted", int(fields.get("granted", 0)), "journal", journaled)
        left = sum(int(entry.split(b"|")[2]) for entry in hashes[self._keys.purse].values())
        paid = granted - left
        owed = int(fields.get("debt", 0))
        owed += sum(int(debt.split("|")[0]) for debt in msgspec.json.decode(fields.get("debts", "{}")).values())
        self._same("spent", int(fields.get("spent", 0)), "taken from grants and overdraft", paid + owed)
        self._purse({record.key: record for record in records}, hashes[self._keys.purse])
        refunded = sum(a.refunded_micro for a in totals.values())
        self._same("refunded", int(fields.get("refunded", 0)), "rows", refunded)

    def _purse(self, records: Mapping[str, GrantRecord], purse: Mapping[bytes, bytes]) -> None:
        """What is left of a grant is no more than was granted, and for the same work."""
        for key, entry in purse.items():
            record = records.get(text(key))
            if record is None:
                continue  # what was restored of a payment
            left, *scope = entry.split(b"|", 3)[2:]
            if int(left) > parse_credits(record.credits):
                self._differ(f"grant {record.key!r}", f"has {format_micro(int(left))} left of {record.credits}")
            if (Scope.decode(scope[0]) if scope else Scope()) != Scope(record.presets, record.clusters):
                self._differ(f"grant {record.key!r}", "does not pay for what its record says")

    def _purchases(self, fields: dict[str, str], hashes: dict[str, dict[bytes, bytes]]) -> int:
        """Every payment has its grant, and what was taken back of it; returns what was taken of all grants, also by
        corrections and transfers."""
        sums: dict[str, int] = defaultdict(int)
        of_payments: dict[str, int] = defaultdict(int)
        for data in hashes[self._keys.withdrawals].values():
            entry = msgspec.json.decode(data)
            taken = -SIGNS[entry["type"]] * parse_credits(entry["credits"])
            sums["restored" if taken < 0 else "withdrawn"] += abs(taken)
            if "payment" in entry:
                of_payments[entry["payment"]] += taken
        self._checked["withdrawals"] += len(hashes[self._keys.withdrawals])
        self._same("withdrawn", int(fields.get("withdrawn", 0)), "withdrawals", sums["withdrawn"])
        self._same("restored", int(fields.get("restored", 0)), "restorations", sums["restored"])
        for data in hashes[self._keys.payments].values():
            payment = msgspec.json.decode(data, type=Payment)
            self._checked["payments"] += 1
            self._same(f"taken of {payment.id}", int(payment.taken), "withdrawals", of_payments[payment.id])
            grant = hashes[self._keys.grants].get(f"{PAYMENT_PREFIX}{payment.id}".encode())
            order = hashes[self._keys.purchases].get(payment.order.encode())
            granted = 0 if grant is None else parse_credits(msgspec.json.decode(grant, type=GrantRecord).credits)
            ordered = 0 if order is None or not payment.paid else msgspec.json.decode(order, type=Order).micro
            self._same(f"granted for {payment.id}", granted, "its order", ordered)
        return sums["withdrawn"] - sums["restored"]

    async def _transfers(self) -> None:
        """What is said to have arrived at another org did, and what came from another org left it."""
        records = await again(lambda: self._ledger.client.hvals(self._keys.transfers))
        for transfer in (msgspec.json.decode(data, type=Transfer) for data in records):
            self._checked["transfers"] += 1
            received, field = keys.of_org(transfer.target).received, f"i{transfer.key}"
            found = text(await again(partial(self._ledger.client.hget, received, field)))
            if transfer.state != PENDING and found != ("given" if transfer.state == DONE else "refused"):
                self._differ(
                    f"transfer {transfer.key!r} to org {transfer.target!r}",
                    f"is {transfer.state}, but there it is {found or 'not known'}", transfer.credits,
                )  # fmt: skip
        client: Any = self._ledger.client
        came = await again(lambda: client.hgetall(self._keys.received))
        for key in (text(field)[1:] for field, how in came.items() if field.startswith(b"i") and how == b"given"):
            claim = await again(partial(client.hget, keys.TRANSFERS, f"k{key}"))
            source = None if claim is None else msgspec.json.decode(claim)["from"]
            if source is None or await self._ledger.transfers.get(source, key) is None:
                self._differ(f"transfer {key!r}", f"came, but org {source or 'that it is from'} does not know of it")

    def _holds(self, hashes: dict[str, dict[bytes, bytes]], expiry: dict[str, int], now_us: int) -> None:
        tiers: dict[str, int] = defaultdict(int)
        holds = {text(i): msgspec.json.decode(data) for i, data in hashes[self._keys.holds].items()}
        self._checked["holds"] += len(holds)
        for hold in holds.values():
            for tier in hold["tiers"]:
                tiers[tier] += int(hold["amount"]) * int(hold["left"])
        self._sums("held", {text(k): int(v) for k, v in hashes[self._keys.held].items()}, "holds", tiers)
        told_apart = [tier for tier in tiers if tier.startswith(class_field("", "")[:2])]
        if told_apart:
            self._same("held, by class of work", sum(tiers[tier] for tier in told_apart), "holds", tiers[""])
        for hold_id in holds.keys() ^ expiry.keys():
            self._differ(f"hold {hold_id}", "has no expiry" if hold_id in holds else "expires but is not there")
        for hold_id in holds.keys() & expiry.keys():
            if expiry[hold_id] * 1000 <= now_us:
                self._differ(f"hold {hold_id}", f"should have ended at {format_time(expiry[hold_id] * 1000)}")
        self._orphan_holds(hashes, holds, expiry)
        for workload, named in hashes[self._keys.hold_of].items():
            if text(named) not in holds:
                self._differ(f"workload {text(workload)!r}", f"names hold {text(named)}, which is not there")
        parts: dict[str, int] = defaultdict(int)
        for name, values in hashes.items():
            if name.startswith(f"{self._keys.running}:"):
                for tier, micro in values.items():
                    parts[text(tier)] += int(micro)
        running = {text(k): int(v) for k, v in hashes[self._keys.running].items()}
        self._sums("to be held for running work", running, "sources", parts)

    def _orphan_holds(
        self, hashes: dict[str, dict[bytes, bytes]], holds: dict[str, Any], expiry: dict[str, int]
    ) -> None:
        """Holds of work that is charged now, or was until after they were made."""
        if not any(hold["workload"] for hold in holds.values()):
            return
        last_us: dict[str, int] = {}
        for data in (*hashes[self._keys.runs].values(), *hashes[self._keys.ended].values()):
            run = Run.decode(self._org, data)
            if run.kind != "storage":
                name = f"{run.cluster}{keys.US}{run.id}"
                last_us[name] = max(last_us.get(name, 0), NEVER if run.state == OPEN else run.ended_us or run.until_us)
        for hold_id, hold in holds.items():
            until_us = last_us.get(hold["workload"] or "", 0)
            if until_us <= parse_time(hold["at"]):
                continue
            self._orphans.append(
                {
                    "org": self._org, "hold_id": hold_id, "cluster": hold["cluster"], "project": hold["project"],
                    "user": hold["user"], "workload": hold["workload"].partition(keys.US)[2],
                    "credits": format_micro(int(hold["amount"]) * int(hold["left"])), "held_at": hold["at"],
                    "expires_at": format_time(expiry[hold_id] * 1000) if hold_id in expiry else None,
                    "why": "its work is charged already" if until_us == NEVER else "its work has ended",
                }
            )  # fmt: skip

    def _budgets(
        self,
        hashes: dict[str, dict[bytes, bytes]],
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
            self._checked["budgets"] += 1
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
                self._sums(f"budget {budget.id!r}", mine, "hourly buckets", sums, only_known=True)

    def _rows(self, what: str, totals: dict[int, Amounts], sums: dict[int, Amounts]) -> None:
        for row in sorted(totals.keys() | sums.keys()):
            for name in FIELDS:
                have = getattr(totals.get(row, Amounts()), name)
                self._same(f"row {row} {name}", have, what, getattr(sums.get(row, Amounts()), name))

    def _sums(
        self, what: str, have: dict[str, int], other: str, sums: dict[str, int], *, only_known: bool = False
    ) -> None:
        for name in sorted(have.keys() if only_known else have.keys() | sums.keys()):
            self._same(f"{what} {name!r}", have.get(name, 0), other, sums.get(name, 0))

    def _same(self, what: str, have: int, other: str, expected: int) -> None:
        if have != expected:
            is_time = "_us" in what or what.endswith(" us")
            unit = str if is_time else format_micro
            self._differ(
                what,
                f"{unit(have)}, but {other} add up to {unit(expected)} (difference {unit(have - expected)})",
                None if is_time else format_micro(have - expected),
            )

    def _differ(self, what: str, message: str, amount: str | None = None) -> None:
        """`amount`: credits by which two figures differ, None where it is not about credits."""
        self._differences.append({"org": self._org, "what": what, "difference": message, "credits": amount})
