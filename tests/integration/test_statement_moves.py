"""Statements add up, month to month, whatever moves credits: grants, corrections, transfers, purchases, refunds."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.clock import parse_time
from ledger.errors import Insufficient, InvalidRequest
from ledger.purchase_step import Paid, Reversal
from ledger.purchases import Purchases
from ledger.statement import statement
from ledger.verify import verify
from tests.histories import HOUR
from tests.usage_lab import UsageLab, job, usage_lab

pytestmark = pytest.mark.redis
START = parse_time("2026-09-10T07:00:00Z")
MONTHS = ("2026-08", "2026-09", "2026-10", "2026-11", "2026-12")
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
times = st.integers(0, 60 * 24 * 4).map(lambda n: START + n * HOUR // 4)
ORGS = ("acme", "globex")
MOVES = ("grant", "work", "end", "correct", "transfer", "buy", "refund", "won")


async def _move(lab: UsageLab, data: st.DataObject, what: str, n: int, work: list[Any], orders: list[Any]) -> None:
    ledger, at = lab.ledger, lab.clock[0]
    org = data.draw(st.sampled_from(ORGS))
    amount = data.draw(st.integers(1, 3 * 10**9))
    till = Purchases(ledger.client, ledger.scripts, ledger.clock, data.draw(st.sampled_from(["overdraft", "forgive"])))
    if what == "grant":
        effective, expires = data.draw(st.one_of(st.none(), times)), data.draw(st.one_of(st.none(), times))
        if expires is not None and expires <= max(at, effective or 0):
            expires = None
        await ledger.accounts.grant(
            org, amount, key=f"g{n}", who="test", effective_us=effective, expires_us=expires,
            presets=data.draw(st.sampled_from([(), ("cpu-small",)])),
        )  # fmt: skip
    elif what == "work":
        work.append(job(f"j{n}", min(at, data.draw(times)), org=org,
            preset=data.draw(st.sampled_from(["cpu-small", "gpu-large"]))))  # fmt: skip
    elif what == "end" and work:
        last = work[-1]
        work[-1] = job(last.id, last.started_us, last.started_us + HOUR, org=last.org, preset=last.resource)
    elif what == "correct":
        grants = await ledger.accounts.grants(org)
        if grants:
            of = data.draw(st.sampled_from(sorted(one.key for one in grants)))
            with suppress(InvalidRequest):  # it would take more than the grant was
                await ledger.corrections.correct(
                    org, amount * data.draw(st.sampled_from([-1, 1])), corrects=of, key=f"c{n}", reason="r", who="t"
                )
    elif what == "transfer":
        with suppress(Insufficient):
            await ledger.transfers.transfer(org, ORGS[org == "acme"], amount, key=f"t{n}", who="t", reason="r")
    elif what == "buy":
        order = await till.order(org, amount, 500, "usd", key=f"k{n}", who="t")
        await till.paid(Paid(org, order.id, f"pi_{n}", 500, "usd"))
        orders.append((order, f"pi_{n}"))
    elif what in ("refund", "won") and orders:
        order, payment = data.draw(st.sampled_from(orders))
        taken = data.draw(st.integers(1, 500)) if what == "refund" else 0
        await till.returned(Reversal(order.org, order.id, payment, "dp", "dispute", n, taken, "usd"))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
async def test_every_closing_balance_is_the_next_opening_one_and_the_last_is_the_balance(
    data: st.DataObject, valkey_url: str
) -> None:
    async with usage_lab(valkey_url, epoch=START) as lab:
        for org in ORGS:
            await lab.ledger.accounts.upsert(org, who="test")
        work: list[Any] = []
        orders: list[Any] = []
        for n, at in enumerate(sorted(data.draw(st.lists(times, min_size=2, max_size=10, unique=True), "steps"))):
            lab.clock[0] = max(lab.clock[0], at)
            await _move(lab, data, data.draw(st.sampled_from(MOVES)), n, work, orders)
            if data.draw(st.booleans()):
                await lab.take(at, work)
        zone = data.draw(ZONES)
        for org in ORGS:
            found = [await statement(lab.ledger, org, month, zone) for month in MONTHS]
            # The statement itself asserts that opening, entries and charges come to its closing balance.
            assert all(a.closing_micro == b.opening_micro and a.to_us == b.from_us for a, b in pairwise(found))
            balance = await lab.ledger.accounts.balance(org)
            assert found[0].opening_micro == 0
            assert found[-1].closing_micro == balance.left_micro
        assert not (await verify(lab.ledger))["differences"]
