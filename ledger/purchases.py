"""Credits bought by card: orders, payments, and what refunds and disputes take back.

News of a payment may come in any order and any number of times: each is merged into the payment's record, and credits
follow the record. What is paid is granted once for the payment's id, for ever; what is taken back is at every instant
floor(credits x what of the payment was returned / payment). Order, payment and credits change in one atomic step.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from ledger import keys
from ledger.accounts import KEY_MAX
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.errors import IdempotencyConflict, InvalidRequest, LedgerDamaged
from ledger.lua import Scripts, common_keys, text
from ledger.money import MICRO_MAX, format_micro
from ledger.names import check_name
from ledger.purchase_step import Order, Paid, Payment, Reversal, Step


def order_id_of(org: str, key: str) -> str:
    """The id of the order that an idempotency key names, for ever."""
    return "ord_" + hashlib.sha256(f"{org}{keys.US}{key}".encode()).hexdigest()[:32]


class Purchases:
    """Orders and payments. Every change is one atomic script, on the disk before it is acknowledged."""

    def __init__(
        self, client: Client, scripts: Scripts, clock: Clock | None = None, refunds: str = "overdraft"
    ) -> None:
        """`refunds`: `overdraft`, or `forgive` what is spent already."""
        self._client: Any = client
        self._scripts = scripts
        self._clock = clock
        self._refunds = refunds

    def _now(self) -> int:
        return self._clock() if self._clock else now_us()

    async def order(
        self, org: str, micro: int, amount: int, currency: str, *, key: str, who: str, save_card: bool = False,
        customer: str = "", address: str | None = None,
    ) -> Order:  # fmt: skip
        """The order of an idempotency key: a new one, or the one it made before.

        Raises: InvalidRequest; IdempotencyConflict (same key, other credits); LedgerUnavailable (retry is safe).
        """
        check_name("org", org)
        if not 0 < len(key) <= KEY_MAX or not key.isprintable():
            raise InvalidRequest(f"idempotency key: expected 1 to {KEY_MAX} printable characters")
        if not 0 < micro <= MICRO_MAX or amount <= 0:
            raise InvalidRequest(f"credits {format_micro(micro)}: cannot be bought")
        order_id = order_id_of(org, key)
        body = f"{micro}{keys.US}save_card" if save_card else str(micro)
        digest = hashlib.sha256(body.encode()).hexdigest()[:32]
        made = Order(
            order_id, org, digest, format_micro(micro), micro, amount, currency, who, self._now(),
            save_card=save_card, customer=customer, page=secrets.token_urlsafe(16),
        )  # fmt: skip
        entry = {
            "type": "order", "at": format_time(made.created_us), "who": who, "from": address,
            "order": order_id, "credits": made.credits, "amount": amount, "currency": currency,
            **({"save_card": True} if save_card else {}),
        }  # fmt: skip
        await again(lambda: self._client.sadd(keys.ORGS, org))
        while True:
            known, data = await self._order(org, order_id)
            if known is not None and known.digest != digest:
                raise IdempotencyConflict(
                    f"idempotency key {key!r} was used for an order of {known.credits} credits"
                    f"{' that saves the card' if known.save_card else ''}; use a new key"
                )
            if await self._commit(org, (order_id, data, known or made), entries=[] if known else [entry]):
                return known or made

    async def get(self, org: str, order_id: str) -> Order | None:
        """An order, None where there is none."""
        return (await self._order(org, order_id))[0]

    async def payment(self, org: str, payment_id: str) -> Payment | None:
        """A payment's record, None where there is none."""
        return (await self._payment(org, payment_id))[0]

    async def orders(self, org: str) -> list[Order]:
        """All orders of an org, the newest first."""
        data = await again(lambda: self._client.hvals(keys.of_org(org).purchases))
        orders = [msgspec.json.decode(item, type=Order) for item in data]
        return sorted(orders, key=lambda order: (-order.created_us, order.id))

    async def opened(self, org: str, order_id: str, session: str, url: str, expires_us: int) -> Order:
        """Note where the order is paid; returns the order, with the session that came first."""
        while True:
            order, data = await self._order(org, order_id)
            if order is None:
                raise LedgerDamaged(f"order {order_id} of org {org!r} was recorded and is gone")
            new = order
            if order.state == "new":
                new = msgspec.structs.replace(order, state="open", session=session, url=url, expires_us=expires_us)
            if await self._commit(org, (order_id, data, new)):
                return new

    async def closed(self, org: str, order_id: str, state: str, reason: str = "", payment: str = "") -> None:
        """Note that an order is `pending` (by a payment, where it is known), `expired` or `failed`.

        What is paid stays so, what failed is not pending. An auto top-up that fails is no longer in flight.
        """
        while True:
            order, data = await self._order(org, order_id)
            if order is None or order.state in ("paid", state) or (state != "failed" and order.state == "failed"):
                return
            step = Step(order, Payment("", order_id), self._now(), self._refunds)
            step.close(state, reason)
            new = msgspec.structs.replace(step.order, session=payment or order.session)
            if await self._commit(org, (order_id, data, new), moves=step.moves):
                return

    async def paid(self, news: Paid) -> str:
        """Grant what was paid for: `credited`, `known`, or `refused` (counted and journaled, nothing is granted).

        Raises: LedgerUnavailable (retry is safe).
        """
        return await self._settle(news)

    async def returned(self, news: Reversal) -> str:
        """Take back, or restore, the credits of a refund or dispute: `changed`, `known` or `refused`.

        Raises: LedgerUnavailable (retry is safe).
        """
        return await self._settle(news)

    async def place_of(self, payment_id: str) -> tuple[str, str] | None:
        """(org, order) of a payment that there was news of."""
        found = await again(lambda: self._client.hget(keys.PAYMENTS, payment_id))
        if found is None:
            return None
        org, _, order_id = text(found).partition(keys.US)
        return org, order_id

    async def refused(self, reason: str) -> None:
        """Count news that cannot be used."""
        await again(lambda: self._client.hincrby(keys.PAYMENTS_REFUSED, reason, 1))

    async def refusals(self) -> dict[str, int]:
        """Why payments were not credited -> how many."""
        found = await again(lambda: self._client.hgetall(keys.PAYMENTS_REFUSED))
        return {text(reason): int(count) for reason, count in found.items()}

    async def _settle(self, news: Paid | Reversal) -> str:
        too_large = False
        while True:
            order, order_data = await self._order(news.org, news.order)
            if order is None:
                await self.refused("unknown_order")
                return "refused"
            # A payment is of the order that it came for first, in whichever org, so that no other is credited by it.
            place = f"{news.org}{keys.US}{news.order}"
            await again(partial(self._client.hsetnx, keys.PAYMENTS, news.payment, place))
            if text(await again(partial(self._client.hget, keys.PAYMENTS, news.payment))) != place:
                await self.refused("other_order")
                return "refused"
            payment, payment_data = await self._payment(news.org, news.payment)
            step = Step(order, payment or Payment(news.payment, order.id), self._now(), self._refunds)
            if isinstance(news, Paid):
                step.pay(news, too_large)
            else:
                step.reverse(news)
            step.balance()
            done = await self._commit(
                news.org,
                (order.id, order_data, step.order),
                (news.payment, payment_data, step.payment),
                step.entries,
                step.moves,
            )
            if done == "too_large":
                too_large = True
            elif done:
                if step.outcome == "refused":
                    await self.refused(step.payment.refused)
                return step.outcome

    async def _order(self, org: str, order_id: str) -> tuple[Order | None, bytes]:
        data = await again(lambda: self._client.hget(keys.of_org(org).purchases, order_id))
        return (None, b"") if data is None else (msgspec.json.decode(data, type=Order), data)

    async def _payment(self, org: str, payment_id: str) -> tuple[Payment | None, bytes]:
        data = await again(lambda: self._client.hget(keys.of_org(org).payments, payment_id))
        return (None, b"") if data is None else (msgspec.json.decode(data, type=Payment), data)

    async def _commit(
        self,
        org: str,
        order: tuple[str, bytes, Order],
        payment: tuple[str, bytes, Payment] | None = None,
        entries: list[dict[str, Any]] | None = None,
        moves: Mapping[str, list[Any]] | None = None,
    ) -> str:
        """`ok`, `too_large`, or "" where order or payment moved on. Also where nothing changes: it waits for the disk,
        on which the change may not be that this call found."""
        plan: dict[str, Any] = {
            "org": org,
            "order": [order[0], text(order[1]), text(msgspec.json.encode(order[2]))],
            "payment": ["", "", ""]
            if payment is None
            else [payment[0], text(payment[1]), text(msgspec.json.encode(payment[2]))],
            "grant": ["", "", "0", "0"],
            "withdraw": ["", "0", "", "", "", "0"],
            "restore": ["", "0", ""],
            "top_up": ["", "", "", "0", "0", "", ""],
            "entries": [text(msgspec.json.encode(entry)) for entry in entries or []],
            "limit": str(MICRO_MAX),
            **(moves or {}),
        }
        names = keys.of_org(org)
        answer = await self._scripts.purchase.durably(
            [
                *common_keys(names), names.grants, names.purchases, names.payments, names.withdrawals, names.top_up,
                names.corrected,
            ],
            [msgspec.msgpack.encode(plan), str(self._clock()) if self._clock else ""],
        )  # fmt: skip
        said = text(answer[0])
        return "" if said == "conflict" else said
