"""A part of `verify`: grants, payments, corrections and transfers, against the journal and what was spent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from ledger import keys
from ledger.accounts import PAYMENT_PREFIX, GrantRecord
from ledger.connect import again
from ledger.findings import Findings, Hashes
from ledger.lua import text
from ledger.money import format_micro, parse_credits
from ledger.org_state import Amounts
from ledger.purchase_step import Order, Payment
from ledger.scopes import Scope
from ledger.store import Ledger
from ledger.transfers import DONE, PENDING, Transfer

SIGNS = {"grant": 1, "correction": 1, "restoration": 1, "withdrawal": -1, "transfer": 1}
"""Journal entries that change what is granted. Corrections and transfers say themselves which way."""


def check_grants(
    found: Findings, fields: Mapping[str, str], hashes: Hashes, totals: Mapping[int, Amounts], journal: list[Any]
) -> None:
    """What was granted is what grants, less what was taken of them, and the journal say; and it pays what was spent.

    `fields`: of the org's own hash; `totals`: of its rows.
    """
    names = keys.of_org(found.org)
    taken = _purchases(found, fields, hashes)
    records = [msgspec.json.decode(data, type=GrantRecord) for data in hashes[names.grants].values()]
    found.checked["grants"] += len(records)
    granted = sum(parse_credits(record.credits) for record in records) - taken
    by_source: dict[str, int] = defaultdict(int)
    for record in records:
        by_source[record.source] += parse_credits(record.credits)
    found.same("granted", int(fields.get("granted", 0)), "grants", granted)
    for source, micro in by_source.items():
        found.same(f"granted by {source}", int(fields.get(f"granted:{source}", 0)), "grants", micro)
    entries = [msgspec.json.decode(item[b"entry"]) for _, item in journal]
    found.checked["journal entries"] += len(entries)
    journaled = sum(SIGNS[e["type"]] * parse_credits(e["credits"]) for e in entries if e["type"] in SIGNS)
    journaled += int(fields.get("journaled", 0))  # by entries that are not kept any more
    found.same("granted", int(fields.get("granted", 0)), "journal", journaled)
    left = sum(int(entry.split(b"|")[2]) for entry in hashes[names.purse].values())
    paid = granted - left
    owed = int(fields.get("debt", 0))
    owed += sum(int(debt.split("|")[0]) for debt in msgspec.json.decode(fields.get("debts", "{}")).values())
    found.same("spent", int(fields.get("spent", 0)), "taken from grants and overdraft", paid + owed)
    _purse(found, {record.key: record for record in records}, hashes[names.purse])
    refunded = sum(a.refunded_micro for a in totals.values())
    found.same("refunded", int(fields.get("refunded", 0)), "rows", refunded)


def _purse(found: Findings, records: Mapping[str, GrantRecord], purse: Mapping[bytes, bytes]) -> None:
    """What is left of a grant is no more than was granted, and for the same work."""
    for key, entry in purse.items():
        record = records.get(text(key))
        if record is None:
            continue  # what was restored of a payment
        left, *scope = entry.split(b"|", 3)[2:]
        if int(left) > parse_credits(record.credits):
            found.differ(f"grant {record.key!r}", f"has {format_micro(int(left))} left of {record.credits}")
        if (Scope.decode(scope[0]) if scope else Scope()) != Scope(record.presets, record.clusters):
            found.differ(f"grant {record.key!r}", "does not pay for what its record says")


def _purchases(found: Findings, fields: Mapping[str, str], hashes: Hashes) -> int:
    """Every payment has its grant, and what was taken back of it; returns what was taken of all grants, also by
    corrections and transfers."""
    names = keys.of_org(found.org)
    sums: dict[str, int] = defaultdict(int)
    of_payments: dict[str, int] = defaultdict(int)
    for data in hashes[names.withdrawals].values():
        entry = msgspec.json.decode(data)
        taken = -SIGNS[entry["type"]] * parse_credits(entry["credits"])
        sums["restored" if taken < 0 else "withdrawn"] += abs(taken)
        if "payment" in entry:
            of_payments[entry["payment"]] += taken
    found.checked["withdrawals"] += len(hashes[names.withdrawals])
    found.same("withdrawn", int(fields.get("withdrawn", 0)), "withdrawals", sums["withdrawn"])
    found.same("restored", int(fields.get("restored", 0)), "restorations", sums["restored"])
    for data in hashes[names.payments].values():
        payment = msgspec.json.decode(data, type=Payment)
        found.checked["payments"] += 1
        found.same(f"taken of {payment.id}", int(payment.taken), "withdrawals", of_payments[payment.id])
        grant = hashes[names.grants].get(f"{PAYMENT_PREFIX}{payment.id}".encode())
        order = hashes[names.purchases].get(payment.order.encode())
        granted = 0 if grant is None else parse_credits(msgspec.json.decode(grant, type=GrantRecord).credits)
        ordered = 0 if order is None or not payment.paid else msgspec.json.decode(order, type=Order).micro
        found.same(f"granted for {payment.id}", granted, "its order", ordered)
    return sums["withdrawn"] - sums["restored"]


async def check_transfers(found: Findings, ledger: Ledger) -> None:
    """What is said to have arrived at another org did, and what came from another org left it."""
    names = keys.of_org(found.org)
    records = await again(lambda: ledger.client.hvals(names.transfers))
    for transfer in (msgspec.json.decode(data, type=Transfer) for data in records):
        found.checked["transfers"] += 1
        received, field = keys.of_org(transfer.target).received, f"i{transfer.key}"
        there = text(await again(partial(ledger.client.hget, received, field)))
        if transfer.state != PENDING and there != ("given" if transfer.state == DONE else "refused"):
            found.differ(
                f"transfer {transfer.key!r} to org {transfer.target!r}",
                f"is {transfer.state}, but there it is {there or 'not known'}", transfer.credits,
            )  # fmt: skip
    client: Any = ledger.client
    came = await again(lambda: client.hgetall(names.received))
    for key in (text(field)[1:] for field, how in came.items() if field.startswith(b"i") and how == b"given"):
        claim = await again(partial(client.hget, keys.TRANSFERS, f"k{key}"))
        source = None if claim is None else msgspec.json.decode(claim)["from"]
        if source is None or await ledger.transfers.get(source, key) is None:
            found.differ(f"transfer {key!r}", f"came, but org {source or 'that it is from'} does not know of it")
