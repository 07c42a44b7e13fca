"""Grants with what is left of each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from ledger import keys
from ledger.accounts import GrantRecord
from ledger.clock import parse_time
from ledger.connect import again
from ledger.lua import text
from ledger.money import parse_credits
from ledger.store import Ledger


@dataclass(frozen=True, slots=True)
class GrantLeft:
    """`state`: `later` (not in force yet), `active`, `spent`, or `expired` with what was left."""

    record: GrantRecord
    micro: int
    left_micro: int
    state: str


async def grants_left(ledger: Ledger, org: str) -> list[GrantLeft]:
    """All grants of an org, the newest first. Raises: UnknownOrg, LedgerUnavailable."""
    client: Any = ledger.client
    names = keys.of_org(org)
    now = (await ledger.accounts.balance(org)).at_us  # an overdraft is paid now from what has come into force

    async def ask() -> list[dict[bytes, bytes]]:
        async with client.pipeline(transaction=True) as pipe:
            pipe.hgetall(names.grants)
            pipe.hgetall(names.purse)
            answer: list[dict[bytes, bytes]] = await pipe.execute()
            return answer

    records, purse = await again(ask)
    left = {text(key): int(entry.split(b"|")[2]) for key, entry in purse.items()}
    found = [_grant(msgspec.json.decode(data, type=GrantRecord), left, now) for data in records.values()]
    return sorted(found, key=lambda grant: (grant.record.granted_at, grant.record.key), reverse=True)


def _grant(record: GrantRecord, left: dict[str, int], now: int) -> GrantLeft:
    rest = left.get(record.key, 0)
    expires = None if record.expires_at is None else parse_time(record.expires_at)
    if rest == 0:
        state = "spent"
    elif parse_time(record.effective_at) > now:
        state = "later"
    else:
        state = "expired" if expires is not None and expires <= now else "active"
    return GrantLeft(record, parse_credits(record.credits), rest, state)
