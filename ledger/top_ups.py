"""Auto top-up: an org's terms, its saved card, and the one order that may be in flight.

An order is recorded before its card is charged, and named by how many there were before it: whoever goes on after a
crash asks the provider about that very order. What became of it is noted in the step that moves its credits
(see `ledger.purchases`).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.errors import Changed, InvalidRequest
from ledger.lua import Scripts, text
from ledger.money import MICRO_MAX, format_micro
from ledger.names import check_name
from ledger.purchase_step import TOP_UP, Order, month_of
from ledger.purchases import order_id_of

WHO: Final = "auto top-up"
COOL_DOWN_MAX_US: Final = 31 * 86_400_000_000
_MINUTE_US: Final = 60_000_000


class Terms(msgspec.Struct, frozen=True):
    """When available credits fall below `threshold_micro`, `micro` are bought; at most `cap_micro` a month (UTC)."""

    threshold_micro: int
    micro: int
    cap_micro: int
    cool_down_us: int
    enabled: bool
    who: str


class Card(msgspec.Struct, frozen=True):
    """A card that its owner agreed to have charged, when and by which order; the provider's names of it."""

    customer: str
    method: str
    brand: str
    last4: str
    expires: str
    order: str
    agreed_us: int
    who: str


@dataclass(frozen=True, slots=True)
class TopUp:
    """All that is known of an org's auto top-up, of one instant. `month_micro`: ordered in `month`."""

    org: str
    terms: Terms | None
    card: Card | None
    order: str
    seq: int
    nonce: str
    cool_until_us: int
    declines: int
    paused: str
    month: str
    month_micro: int
    revision: str = "0"
    """Of the terms: another one after each change of them, never the same again."""

    def state(self, now: int) -> str:
        """`off`, `in_flight`, `paused`, `no_card`, `cooling`, `capped` or `ready`."""
        if self.order:
            return "in_flight"
        if self.terms is None or not self.terms.enabled:
            return "off"
        if self.paused:
            return "paused"
        if self.card is None:
            return "no_card"
        if self.cool_until_us > now:
            return "cooling"
        return "capped" if self.month_micro + self.terms.micro > self.terms.cap_micro else "ready"


class TopUps:
    """Every change is one atomic script, on the disk before it is acknowledged."""

    def __init__(self, client: Client, scripts: Scripts, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._scripts = scripts
        self._clock: Clock = clock or now_us

    async def orgs(self) -> list[str]:
        """Those that have terms, or had some."""
        return sorted(text(org) for org in await again(lambda: self._client.smembers(keys.TOP_UPS)))

    async def read(self, org: str) -> TopUp:
        """An org that never heard of it has no terms."""
        month = month_of(self._clock())
        fields = await again(lambda: self._client.hgetall(keys.of_org(org).top_up))
        found = {text(name): value for name, value in fields.items()}
        return TopUp(
            org,
            msgspec.json.decode(found["terms"], type=Terms) if "terms" in found else None,
            msgspec.json.decode(found["card"], type=Card) if "card" in found else None,
            text(found.get("order")),
            int(found.get("seq", 0)),
            text(found.get("nonce")),
            int(found.get("cool_until", 0)),
            int(found.get("declines", 0)),
            text(found.get("paused")),
            month,
            int(found.get(f"month:{month}", 0)),
            text(found.get("terms_rev")) or "0",
        )

    async def put(self, org: str, terms: Terms, address: str | None = None, *, if_revision: str | None = None) -> TopUp:
        """Set the terms; a pause ends. `if_revision`: only if they still are of this revision (`*`: any).

        Raises: InvalidRequest, Changed, LedgerUnavailable (retry is safe).
        """
        check_name("org", org)
        for name, micro in (("threshold", terms.threshold_micro), ("monthly_cap", terms.cap_micro)):
            if not 0 <= micro <= MICRO_MAX:
                raise InvalidRequest(f"{name}: {format_micro(micro)} is not from 0 to {format_micro(MICRO_MAX)}")
        if terms.cap_micro < terms.micro:
            raise InvalidRequest(
                f"monthly_cap: {format_micro(terms.cap_micro)} is less than credits {format_micro(terms.micro)}, so "
                "nothing would ever be bought"
            )
        if not 0 <= terms.cool_down_us <= COOL_DOWN_MAX_US:
            raise InvalidRequest("cool_down_minutes: expected a number from 0 to 44640 (31 days)")
        entry = {
            "type": "top_up_terms", "at": format_time(self._clock()), "who": terms.who, "from": address,
            "enabled": terms.enabled,
            "threshold": format_micro(terms.threshold_micro), "credits": format_micro(terms.micro),
            "monthly_cap": format_micro(terms.cap_micro), "cool_down_minutes": terms.cool_down_us / _MINUTE_US,
        }  # fmt: skip
        await again(lambda: self._client.sadd(keys.TOP_UPS, org))
        await self._set(org, text(msgspec.json.encode(terms)), entry, if_revision)
        return await self.read(org)

    async def remove(
        self, org: str, who: str, address: str | None = None, *, if_revision: str | None = None
    ) -> Card | None:
        """End it and forget the card, which is given back; an order in flight goes on to its end.

        Raises: Changed, LedgerUnavailable (retry is safe).
        """
        card = (await self.read(org)).card
        at = format_time(self._clock())
        entry = {"type": "top_up_terms", "at": at, "who": who, "from": address, "removed": True}
        await self._set(org, "", entry, if_revision)
        return card

    async def _set(self, org: str, terms: str, entry: dict[str, Any], if_revision: str | None) -> None:
        names = keys.of_org(org)
        said = await self._scripts.top_up_terms.durably(
            [names.top_up, names.journal],
            [
                terms, msgspec.json.encode(entry), str(self._clock()), secrets.token_hex(16), if_revision or "",
                secrets.token_hex(8),
            ],
        )  # fmt: skip
        if text(said) == "changed":
            raise Changed(f"The auto top-up of org {org!r} is not what was read; read it again.")

    async def keep_card(self, org: str, card: Card) -> str:
        """`kept`, `known`, or `older` than what was agreed to, or removed, since."""
        names = keys.of_org(org)
        entry = {
            "type": "card", "at": format_time(self._clock()), "who": card.who, "order": card.order,
            "card": f"{card.brand} ending in {card.last4}", "expires": card.expires,
        }  # fmt: skip
        answer = await self._scripts.top_up_card.durably(
            [names.top_up, names.journal],
            [msgspec.json.encode(card), str(card.agreed_us), msgspec.json.encode(entry)],
        )
        return text(answer[0])

    async def claim(self, seen: TopUp, amount: int, currency: str) -> Order | str:
        """The next order, in flight from now on, or why there is none: `changed` since it was `seen`, `in_flight`,
        `paused`, `cooling`, `capped`.

        `seen` is read before the balance that it is decided by. Raises: LedgerUnavailable (retry is safe).
        """
        terms, card, now = seen.terms, seen.card, self._clock()
        assert terms is not None
        assert card is not None
        names = keys.of_org(seen.org)
        order_id = order_id_of(seen.org, keys.US.join((TOP_UP, seen.nonce, str(seen.seq))))
        order = Order(
            order_id, seen.org, "", format_micro(terms.micro), terms.micro, amount, currency, WHO, now, kind=TOP_UP,
            customer=card.customer, method=card.method,
        )  # fmt: skip
        common = {"at": format_time(now), "who": WHO}
        entry = {
            **common, "type": "order", "order": order.id, "credits": order.credits, "amount": amount,
            "currency": currency, "agreed_by": card.who,
        }  # fmt: skip
        capped = {
            **common, "type": "top_up", "outcome": "capped", "order": None, "credits": order.credits, "paused": False,
            "reason": f"the monthly cap of {format_micro(terms.cap_micro)} credits is reached",
        }  # fmt: skip
        answer = await self._scripts.top_up_claim.durably(
            [names.top_up, names.purchases, names.journal],
            [
                msgspec.json.encode(terms), msgspec.json.encode(card), str(seen.seq), str(now), month_of(now),
                str(terms.micro), str(terms.cap_micro), order.id, msgspec.json.encode(order),
                msgspec.json.encode(entry), msgspec.json.encode(capped),
            ],
        )  # fmt: skip
        said = text(answer[0])
        return msgspec.json.decode(answer[1], type=Order) if said == "claimed" else said


def top_up_shape(found: TopUp, now: int) -> dict[str, Any]:
    """An org's auto top-up; the terms are None where there are none, `ordered` is of this calendar month (UTC)."""
    terms, card = found.terms, found.card
    return {
        "org": found.org,
        "enabled": terms is not None and terms.enabled,
        "threshold": None if terms is None else format_micro(terms.threshold_micro),
        "credits": None if terms is None else format_micro(terms.micro),
        "monthly_cap": None if terms is None else format_micro(terms.cap_micro),
        "cool_down_minutes": None if terms is None else terms.cool_down_us / _MINUTE_US,
        "state": found.state(now),
        "paused_reason": found.paused or None,
        "declines": found.declines,
        "order": found.order or None,
        "cools_until": format_time(found.cool_until_us) if found.cool_until_us > now else None,
        "month": found.month,
        "ordered": format_micro(found.month_micro),
        "card": None
        if card is None
        else {
            "brand": card.brand,
            "last4": card.last4,
            "expires": card.expires,
            "agreed_at": format_time(card.agreed_us),
            "agreed_by": card.who,
        },
    }
