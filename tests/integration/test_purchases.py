"""Credits are what was paid less what was returned, whatever order the news come in and wherever it crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.clock import from_us
from ledger.connect import Client, connect
from ledger.errors import IdempotencyConflict, InvalidRequest, LedgerUnavailable
from ledger.grant_list import granted_in_use
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.money import MICRO_MAX
from ledger.purchase_step import Order, Paid, Reversal
from ledger.purchases import Purchases
from ledger.statement import statement
from ledger.store import Ledger
from ledger.verify import verify
from tests.histories import HOUR, MINUTE, T0
from tests.integration.test_charges_equal_the_model import Bench, bench
from tests.shop import Stumbling

pytestmark = pytest.mark.redis
CREDIT = 1_000_000


class Till:
    """A ledger and its purchases, with news of one org at hand."""

    def __init__(self, ledger: Ledger, refunds: str = "overdraft") -> None:
        self.ledger = ledger
        self.purchases = Purchases(ledger.client, ledger.scripts, ledger.clock, refunds)

    async def order(self, micro: int = 10 * CREDIT, amount: int = 500, key: str = "k") -> Order:
        return await self.purchases.order("acme", micro, amount, "usd", key=key, who="t")

    async def left(self) -> int:
        return (await self.ledger.accounts.balance("acme")).left_micro

    async def is_sound(self) -> bool:
        report = await verify(self.ledger)
        return not report["differences"]


@pytest.fixture
async def till(client: Client) -> Till:
    return Till(Ledger(client, T0))


def paid(bought: Order, payment: str = "pi_1", **other: Any) -> Paid:
    return replace(Paid(bought.org, bought.id, payment, bought.amount, bought.currency), **other)


def refund(order: Order, amount: int, refund_id: str = "re_1", payment: str = "pi_1", rank: int = 1) -> Reversal:
    return Reversal(order.org, order.id, payment, refund_id, "refund", rank, amount, order.currency)


async def test_an_order_is_the_same_for_its_key(till: Till) -> None:
    order = await till.order()
    assert await till.order(amount=700) == order  # the price has changed since
    with pytest.raises(IdempotencyConflict):
        await till.order(micro=11 * CREDIT)
    opened = await till.purchases.opened("acme", order.id, "cs_1", "https://pay/1", 5)
    assert await till.purchases.opened("acme", order.id, "cs_2", "https://pay/2", 6) == opened
    assert (opened.session, opened.state) == ("cs_1", "open")
    assert await till.purchases.orders("acme") == [opened]
    entries, _ = await till.ledger.accounts.journal("acme")
    assert [entry["type"] for entry in entries] == ["order"]


async def test_a_payment_is_credited_once(till: Till) -> None:
    order = await till.order()
    said = [await till.purchases.paid(paid(order)) for _ in range(3)]
    assert said == ["credited", "known", "known"]
    balance = await till.ledger.accounts.balance("acme")
    assert (balance.granted_micro, balance.granted_by_source) == (10 * CREDIT, {"purchase": 10 * CREDIT})
    found = await till.purchases.get("acme", order.id)
    assert found is not None
    assert (found.state, found.payments) == ("paid", ("pi_1",))
    await till.purchases.closed("acme", order.id, "expired")
    assert (await till.purchases.get("acme", order.id)) == found
    assert await till.purchases.paid(paid(order, "pi_2")) == "credited"  # the buyer did pay twice
    assert await till.left() == 20 * CREDIT
    assert await till.is_sound()


async def test_at_once_from_many_it_is_credited_once(till: Till) -> None:
    order = await till.order()
    said = await asyncio.gather(*(till.purchases.paid(paid(order)) for _ in range(20)))
    assert sorted(said) == ["credited", *["known"] * 19]
    assert await till.left() == 10 * CREDIT


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"amount": 499}, "wrong_amount"), ({"currency": "eur"}, "wrong_currency"), ({"order": "ord_x"}, "unknown_order")],
)
async def test_what_does_not_match_is_refused_and_counted(till: Till, wrong: dict[str, Any], reason: str) -> None:
    order = await till.order()
    assert await till.purchases.paid(paid(order, **wrong)) == "refused"
    assert await till.purchases.refusals() == {reason: 1}
    entries, _ = await till.ledger.accounts.journal("acme")
    assert [e["type"] for e in entries] == ["order", *(["payment_refused"] if "order" not in wrong else [])]
    assert await till.purchases.paid(paid(order)) == "credited"
    assert await till.is_sound()


async def test_a_payment_of_another_order_is_refused(till: Till) -> None:
    order, other = await till.order(), await till.order(key="other")
    await till.purchases.paid(paid(order))
    assert await till.purchases.paid(paid(other)) == "refused"
    assert await till.purchases.refusals() == {"other_order": 1}
    assert await till.left() == 10 * CREDIT


async def test_more_than_can_be_counted_is_refused_not_lost(till: Till) -> None:
    await till.ledger.accounts.grant("acme", MICRO_MAX, key="all", who="t")
    order = await till.order()
    assert await till.purchases.paid(paid(order)) == "refused"
    assert await till.purchases.refusals() == {"too_large": 1}


async def spend(bench_: Bench, minutes: int) -> None:
    """A credit a minute."""
    job = Observation("job", "job", "acme", "", "", "p", started_us=T0, ended_us=T0 + minutes * MINUTE)
    await bench_.ledger.rates.publish(RatePlan("default", ((0, RateTable(presets={"p": 60_000_000_000})),)))
    await bench_.take(Snapshot("test", "default", T0 + HOUR, [job]))


async def test_a_refund_takes_back_what_is_left_and_the_rest_is_an_overdraft(valkey_url: str) -> None:
    async with bench(valkey_url, [T0]) as bench_:
        till = Till(bench_.ledger)
        order = await till.order()
        await till.purchases.paid(paid(order))
        await spend(bench_, 7)
        assert await till.purchases.returned(refund(order, 250)) == "changed"
        assert await till.purchases.returned(refund(order, 250)) == "known"
        assert await till.left() == -2 * CREDIT
        await till.ledger.accounts.grant("acme", 5 * CREDIT, key="more", who="t")
        assert await till.left() == 3 * CREDIT
        assert await till.is_sound()


async def test_a_refund_forgives_what_is_spent_if_the_policy_says_so(valkey_url: str) -> None:
    async with bench(valkey_url, [T0]) as bench_:
        till = Till(bench_.ledger, "forgive")
        order = await till.order()
        await till.purchases.paid(paid(order))
        await spend(bench_, 7)
        dispute = replace(refund(order, 500, "dp_1"), kind="dispute")
        await till.purchases.returned(dispute)
        assert await till.left() == 0
        entries, _ = await till.ledger.accounts.journal("acme")
        assert (entries[-1]["type"], entries[-1]["credits"], entries[-1]["forgiven"]) == ("withdrawal", "3", "7")
        await till.purchases.returned(replace(dispute, rank=3, amount=0))  # won
        assert await till.left() == 3 * CREDIT
        entries, _ = await till.ledger.accounts.journal("acme")
        assert (entries[-1]["type"], entries[-1]["credits"]) == ("restoration", "3")
        assert await till.is_sound()


async def test_a_refund_of_what_is_spent_to_the_last_is_forgiven_in_whole(valkey_url: str) -> None:
    async with bench(valkey_url, [T0]) as bench_:
        till = Till(bench_.ledger, "forgive")
        order = await till.order()
        await till.purchases.paid(paid(order))
        await spend(bench_, 10)
        assert await till.purchases.returned(refund(order, 500)) == "changed"
        assert await till.left() == 0
        entries, _ = await till.ledger.accounts.journal("acme")
        assert (entries[-1]["type"], entries[-1]["credits"], entries[-1]["forgiven"]) == ("withdrawal", "0", "10")
        assert await till.is_sound()


async def test_a_won_dispute_and_a_failed_refund_give_back(till: Till) -> None:
    order = await till.order()
    await till.purchases.returned(refund(order, 500))  # its news came first
    await till.purchases.paid(paid(order))
    assert await till.left() == 0
    await till.purchases.returned(refund(order, 0, rank=2))
    assert await till.left() == 10 * CREDIT
    await till.purchases.returned(refund(order, 500))  # late
    assert await till.left() == 10 * CREDIT
    balance = await till.ledger.accounts.balance("acme")
    assert balance.granted_by_source == {"purchase": 10 * CREDIT}  # a counter: it does not fall, nor rise twice
    assert await granted_in_use(till.ledger, "acme", balance.at_us) == 10 * CREDIT
    month = f"{from_us(till.ledger.clock()):%Y-%m}"
    shape = (await statement(till.ledger, "acme", month)).shape()
    assert (shape["granted"], shape["corrections"], shape["closing"]) == ("10", "0", "10")
    assert await till.is_sound()


async def test_what_a_correction_took_of_a_payment_is_not_taken_again_with_its_refund(till: Till) -> None:
    order = await till.order()
    await till.purchases.paid(paid(order))
    await till.ledger.accounts.grant("acme", 100 * CREDIT, key="other", who="t")
    await till.ledger.corrections.correct(
        "acme", -3 * CREDIT, corrects="payment:pi_1", key="c1", reason="3 of them were a mistake", who="t"
    )
    await till.purchases.returned(refund(order, 250))
    assert await till.left() == 102 * CREDIT
    await till.purchases.returned(refund(order, 250, "re_2"))
    assert await till.left() == 100 * CREDIT  # all that the payment gave is gone, and nothing of the other grant
    entries, _ = await till.ledger.accounts.journal("acme")
    assert (entries[-1]["credits"], entries[-1]["corrected"], entries[-1]["forgiven"]) == ("2", "3", "0")
    await till.purchases.returned(refund(order, 0, "re_2", rank=2))  # it failed: what it took comes back
    assert await till.left() == 102 * CREDIT
    await till.purchases.returned(refund(order, 0, rank=2))
    assert await till.left() == 107 * CREDIT
    assert await till.is_sound()


async def test_a_refund_of_what_was_corrected_down_to_nothing_takes_nothing(till: Till) -> None:
    order = await till.order()
    await till.purchases.paid(paid(order))
    await till.ledger.corrections.correct(
        "acme", -10 * CREDIT, corrects="payment:pi_1", key="c1", reason="bought twice", who="t"
    )
    assert await till.purchases.returned(refund(order, 500)) == "changed"
    assert await till.left() == 0
    assert await till.is_sound()


async def test_a_payment_is_of_one_order_for_ever_in_whichever_org(till: Till) -> None:
    order = await till.order()
    other = await till.purchases.order("globex", 10 * CREDIT, 500, "usd", key="k", who="t")
    assert await till.purchases.paid(paid(order)) == "credited"
    assert await till.purchases.paid(paid(other)) == "refused"
    assert await till.purchases.refusals() == {"other_order": 1}
    assert await till.purchases.place_of("pi_1") == ("acme", order.id)
    assert await till.is_sound()


async def test_news_that_come_at_once_are_all_kept(till: Till) -> None:
    order = await till.order()
    await asyncio.gather(*(till.purchases.returned(refund(order, 50, f"re_{n}")) for n in range(4)))
    await asyncio.gather(
        till.purchases.paid(paid(order)), *(till.purchases.returned(refund(order, 50, f"re_{n}")) for n in range(2, 6))
    )
    assert await till.left() == 4 * CREDIT
    assert await till.is_sound()


async def test_keys_of_payments_are_nobody_elses(till: Till) -> None:
    with pytest.raises(InvalidRequest, match="are of payments"):
        await till.ledger.accounts.grant("acme", 1, key="payment:pi_1", who="t")


async def test_verify_finds_a_payment_that_is_not_credited(till: Till) -> None:
    order = await till.order()
    await till.purchases.paid(paid(order))
    client: Any = till.ledger.client
    await client.hdel("credits:{acme}:grants", "payment:pi_1")
    report = await verify(till.ledger)
    assert "granted for pi_1" in {found["what"] for found in report["differences"]}


class Flaky(Stumbling):
    """Its script waits for no disk."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.client, ledger.scripts)
        ledger.scripts.purchase.durably = ledger.scripts.purchase.__call__  # type: ignore[method-assign]


@asynccontextmanager
async def empty(url: str) -> AsyncIterator[Client]:
    async with connect(url, None) as client:
        await client.flushall()
        yield client


ORDERS = ((10 * CREDIT, 500), (7 * CREDIT + 1, 333), (MICRO_MAX // 1000, 99_999_999))


@given(data=st.data())
async def test_credits_are_paid_less_returned_in_any_order(data: st.DataObject, valkey_url: str) -> None:
    async with empty(valkey_url) as client:
        ledger = Ledger(client, T0)
        purchases = Flaky(ledger)
        orders = [
            await purchases.order("acme", micro, amount, "usd", key=f"k{n}", who="t")
            for n, (micro, amount) in enumerate(ORDERS)
        ]
        news: list[Paid | Reversal] = []
        expected = 0
        for number, order in enumerate(orders):
            payment = f"pi_{number}"
            is_paid = data.draw(st.booleans(), "is paid")
            if is_paid:
                news += [paid(order, payment)] * data.draw(st.integers(1, 3), "deliveries")
            if data.draw(st.booleans(), "another pays too little"):
                news.append(paid(order, f"pi_low_{number}", amount=order.amount - 1))
                news.append(refund(order, order.amount - 1, f"re_low_{number}", f"pi_low_{number}"))
            if data.draw(st.booleans(), "unknown order"):
                news.append(paid(order, f"pi_odd_{number}", order="ord_0"))
            returned = 0
            for part in range(data.draw(st.integers(0, 3), "refunds")):
                amount = data.draw(st.integers(1, order.amount), "amount")
                one = refund(order, amount, f"re_{number}_{part}", payment)
                news += [one] * data.draw(st.integers(1, 2), "deliveries")
                if data.draw(st.booleans(), "fails"):
                    news.append(replace(one, rank=2, amount=0))
                else:
                    returned += amount
            if data.draw(st.booleans(), "dispute"):
                dispute = replace(refund(order, order.amount, f"dp_{number}", payment), kind="dispute")
                news.append(dispute)
                if data.draw(st.booleans(), "won"):
                    news.append(replace(dispute, rank=3, amount=0))
                else:
                    returned += order.amount
            if is_paid:
                expected += order.micro - order.micro * min(order.amount, returned) // order.amount
        for item in data.draw(st.permutations(news), "order of news"):
            purchases.crash = data.draw(st.sampled_from(["", "", "before", "after"]), "crash")
            while True:  # what is not acknowledged is delivered again
                try:
                    await (purchases.paid(item) if isinstance(item, Paid) else purchases.returned(item))
                    break
                except LedgerUnavailable:
                    continue
        found = {balance.org: balance.left_micro for balance in await ledger.accounts.balances()}
        assert found.get("acme", 0) == expected
        report = await verify(ledger)
        assert report["ok"], report["differences"]
