"""The grants of an org, and what is left of each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.accounts import GrantReceipt, GrantRecord
from ledger.connect import again
from ledger.errors import InvalidRequest
from ledger.money import format_micro, parse_credits
from ledger.shapes import grant_shape
from ledger.store import Ledger

NOT_YET, IN_FORCE, USED_UP, EXPIRED = "not_yet", "in_force", "used_up", "expired"
"""Of a grant: begins later; pays; nothing is left; something was left when it ended."""


_BATCH: Final = 1000


class _Place(msgspec.Struct):
    """What of a record its place in the list follows from."""

    key: str
    granted_at: str


@dataclass(frozen=True, slots=True)
class GrantState:
    """`remaining_micro`: what was neither spent nor taken back; of an expired one what was left at its end.

    `corrected_micro`: by how much corrections changed it in all; what they gave is in grants of their own.
    """

    record: GrantRecord
    remaining_micro: int
    corrected_micro: int
    state: str


async def grants_page(
    ledger: Ledger, org: str, cursor: str | None, limit: int, *, newest_first: bool = False
) -> tuple[list[GrantState], str | None]:
    """Up to `limit` grants in the order they were given, and the cursor of the next page (None: this was the last).

    Raises: UnknownOrg; InvalidRequest for a cursor that is none; LedgerUnavailable.
    """
    balance = await ledger.accounts.balance(org)  # pays what is owed; says it when there is no such org
    names = keys.of_org(org)
    client: Any = ledger.client
    places = await _places(client, names.grants)
    places.sort(reverse=newest_first)
    start = 0
    if cursor is not None:
        before = [number for number, (_, key) in enumerate(places) if key == cursor]
        if not before:
            raise InvalidRequest(f"cursor: {cursor!r:.60} is not one that was given here")
        start = before[0] + 1
    page = [key for _, key in places[start : start + limit]]
    if not page:
        return [], None

    async def ask() -> list[Any]:
        async with client.pipeline(transaction=True) as pipe:
            for name in (names.grants, names.purse, names.corrected):
                pipe.hmget(name, page)
            answer: list[Any] = await pipe.execute()
            return answer

    states = [
        _state(msgspec.json.decode(data, type=GrantRecord), entry, int(corrected or 0), balance.at_us)
        for data, entry, corrected in zip(*await again(ask), strict=True)
    ]
    return states, page[-1] if len(places) > start + limit else None


async def granted_in_use(ledger: Ledger, org: str, at_us: int) -> int:
    """Micro-credits that those grants gave, less what corrections took of them, that are in force and not used up.

    Raises: LedgerUnavailable.
    """
    names = keys.of_org(org)
    client: Any = ledger.client
    purse = await again(partial(client.hgetall, names.purse))
    left = {key: micro for key, entry in purse.items() for micro, state in [_parsed(entry, at_us)] if state == IN_FORCE}
    in_force = list(left)
    if not in_force:
        return 0

    async def ask() -> list[Any]:
        async with client.pipeline(transaction=False) as pipe:
            pipe.hmget(names.grants, in_force)
            pipe.hmget(names.corrected, in_force)
            answer: list[Any] = await pipe.execute()
            return answer

    records, corrected = await again(ask)
    return sum(
        # What was restored of a payment has no record of its own.
        parse_credits(msgspec.json.decode(data, type=GrantRecord).credits) + min(0, int(micro or 0))
        if data
        else left[key]
        for key, data, micro in zip(in_force, records, corrected, strict=True)
    )


async def _places(client: Any, name: str) -> list[tuple[str, str]]:
    """(when it was given, key) of all grants, read a part at a time: decisions on admission are not to wait for it."""
    found: dict[str, str] = {}
    cursor = 0
    while True:
        cursor, part = await again(partial(client.hscan, name, cursor, count=_BATCH))
        for data in part.values():
            place = msgspec.json.decode(data, type=_Place)
            found[place.key] = place.granted_at.removesuffix("Z")  # so that these texts are in the order of time
        if not cursor:
            return [(at, key) for key, at in found.items()]


def grant_state_shape(org: str, found: GrantState) -> dict[str, Any]:
    """As `--json` and HTTP give it."""
    shape = grant_shape(org, GrantReceipt(found.record, replayed=False))
    del shape["replayed"]
    return {
        **shape,
        "who": found.record.who,
        "remaining": format_micro(found.remaining_micro),
        "corrected": format_micro(found.corrected_micro),
        "state": found.state,
    }


def _state(record: GrantRecord, entry: bytes | None, corrected: int, now: int) -> GrantState:
    if entry is None:
        return GrantState(record, 0, corrected, USED_UP)
    remaining, state = _parsed(entry, now)
    return GrantState(record, remaining, corrected, state)


def _parsed(entry: bytes, now: int) -> tuple[int, str]:
    """(micro-credits left, state) of a purse's entry."""
    starts, expires, remaining = entry.split(b"|", 3)[:3]
    state = EXPIRED if expires and int(expires) <= now else NOT_YET if int(starts) > now else IN_FORCE
    return int(remaining), state
