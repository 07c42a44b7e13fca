"""Transfers of credits from one org to another. Their data may be on two nodes, so it takes three steps:

1. at the first org: the credits are taken, and in the same atomic step a record says that they are on their way;
2. at the other org: they are given, at most once, for the transfer's key is noted in the same step;
3. at the first org: the record says that it is done.

Whoever dies in between leaves a record under way, which the same request again finishes, or `sweep`. What the other org
cannot take (its sums would be larger than what can be counted) goes back. What a key is for is noted before, for all
orgs, so that the same key with another body is refused whichever orgs it names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.accounts import Accounts, GrantRecord
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.corrections import check_key, check_reason
from ledger.errors import IdempotencyConflict, Insufficient, InvalidRequest
from ledger.lua import Script, common_keys, text, to_the_end
from ledger.money import MICRO_MAX, format_micro
from ledger.names import check_name

PENDING, DONE, RETURNED = "pending", "done", "returned"
"""Of a transfer: on its way, given, or given back since the other org could not take it."""
SOURCE: Final = "transfer"
"""Source of the grants by which credits arrive."""
_BATCH: Final = 5000


class Part(msgspec.Struct, frozen=True):
    """Credits that expire together; `expires`: microseconds since 1970, "" for never; `micro` as text."""

    expires: str
    micro: str

    @property
    def expires_at(self) -> str | None:
        return format_time(int(self.expires)) if self.expires else None


class Transfer(msgspec.Struct, frozen=True):
    """A transfer as the first org keeps it. `at_us`: when the credits left it; times and amounts in it are text."""

    key: str
    digest: str
    source: str
    target: str
    credits: str
    reason: str
    at: str
    who: str
    address: str | None
    state: str
    parts: tuple[Part, ...] = ()
    at_us: str = "0"


@dataclass(frozen=True, slots=True)
class TransferReceipt:
    """`replayed`: the key was known with this very body, and nothing moved again."""

    record: Transfer
    replayed: bool


class Transfers:
    """Transfers between all orgs."""

    def __init__(self, client: Client, accounts: Accounts, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._accounts = accounts
        self._clock = clock
        self._claim = Script(client, "transfer_claim")
        self._take = Script(client, "transfer_out")
        self._give = Script(client, "transfer_in")
        self._end = Script(client, "transfer_end")

    async def transfer(
        self, source: str, target: str, micro: int, *, key: str, who: str, address: str | None = None, reason: str = ""
    ) -> TransferReceipt:
        """Move credits (micro > 0), at most once for `key`; returns once it is durable.

        Only what is available moves, the soonest to expire first, and it expires then at the other org too. Restricted
        grants stay. Raises: InvalidRequest; UnknownOrg; Insufficient (nothing moved; the key stays this transfer's);
        IdempotencyConflict (same key, other body); LedgerUnavailable (a retry is safe, and needed).
        """
        for what, org in (("from", source), ("to", target)):
            check_name(what, org)
        if source == target:
            raise InvalidRequest(f"to {target!r}: credits move to another org than they come from")
        if not 0 < micro <= MICRO_MAX:
            raise InvalidRequest(
                f"credits {format_micro(micro)}: a transfer is more than 0 and at most {format_micro(MICRO_MAX)}"
            )
        check_key(key)
        if reason:
            check_reason(reason)
        for org in (source, target):
            await self._accounts.balance(org)
        digest = hashlib.sha256(msgspec.json.encode([source, target, micro, reason])).hexdigest()
        now = self._clock() if self._clock else now_us()
        record = Transfer(
            key, digest, source, target, format_micro(micro), reason, format_time(now), who, address, PENDING
        )
        await self._claim_key(record)
        names = keys.of_org(source)
        script_keys = [*common_keys(names), names.withdrawals, names.transfers, names.transferring]
        arguments = [key, str(micro), msgspec.json.encode(record), _entry(record, -1), self._given_clock()]
        answer = await to_the_end(lambda: self._take.durably(script_keys, arguments))
        said = text(answer[0])
        if said == "insufficient":
            raise Insufficient(
                f"insufficient: org {source!r} has {format_micro(int(answer[1]))} credits that can be transferred, and "
                f"not {record.credits}; what is held, what running work needs and restricted grants stay where they are"
            )
        record = await self.finish(msgspec.json.decode(answer[1], type=Transfer))
        if record.state == RETURNED:
            raise InvalidRequest(
                f"credits {record.credits}: org {target!r} would hold more than the ledger can count; they are back at "
                f"org {source!r}"
            )
        return TransferReceipt(record, said == "known")

    async def finish(self, record: Transfer) -> Transfer:
        """The steps of a transfer after the first; all of them are safe to repeat, by several at once.

        Raises: LedgerUnavailable.
        """
        if record.state != PENDING:
            return record
        arrived = await self._arrive(record, record.target, f"i{record.key}")
        if not arrived:
            await self._arrive(record, record.source, f"b{record.key}")
        ended = msgspec.structs.replace(record, state=DONE if arrived else RETURNED)
        names = keys.of_org(record.source)
        await self._end([names.transfers, names.transferring], [record.key, msgspec.json.encode(ended)])
        return ended

    async def sweep(self) -> int:
        """Finish what others left under way; how many transfers that were. Raises: LedgerUnavailable."""
        finished = 0
        orgs = await self._accounts.orgs()
        for start in range(0, len(orgs), _BATCH):
            part = orgs[start : start + _BATCH]
            for org, waiting in zip(part, await again(partial(self._under_way, part)), strict=True):
                for key in waiting:
                    record = await self.get(org, text(key))
                    if record is not None:
                        await self.finish(record)
                        finished += 1
        return finished

    async def get(self, source: str, key: str) -> Transfer | None:
        """A transfer from an org, None where there is none of this key."""
        data = await again(lambda: self._client.hget(keys.of_org(source).transfers, key))
        return None if data is None else msgspec.json.decode(data, type=Transfer)

    async def _under_way(self, orgs: Sequence[str]) -> list[list[bytes]]:
        async with self._client.pipeline(transaction=False) as pipe:
            for org in orgs:
                pipe.hkeys(keys.of_org(org).transferring)
            found: list[list[bytes]] = await pipe.execute()
            return found

    async def _claim_key(self, record: Transfer) -> None:
        claim = {
            "digest": record.digest, "from": record.source, "to": record.target, "credits": record.credits,
            "at": record.at,
        }  # fmt: skip
        answer = await self._claim.durably([keys.TRANSFERS], [f"k{record.key}", msgspec.json.encode(claim)])
        known = msgspec.json.decode(answer)
        if known["digest"] != record.digest:
            raise IdempotencyConflict(
                f"idempotency key {record.key!r} was used at {known['at']} for another transfer ({known['credits']} "
                f"credits from org {known['from']!r} to {known['to']!r}); use a new key for a new one"
            )

    async def _arrive(self, record: Transfer, org: str, field: str) -> bool:
        """Whether the org takes them; so for ever."""
        is_back = org == record.source
        parts = []
        for number, part in enumerate(record.parts):
            name = f"transfer:{record.key}:{number}{':back' if is_back else ''}"
            reason = f"back from org {record.target}: {record.reason}" if is_back else record.reason
            at = format_time(int(record.at_us))
            grant = GrantRecord(
                name, record.digest, format_micro(int(part.micro)), SOURCE, reason, at, at, part.expires_at, record.who
            )
            parts.append([name, text(msgspec.json.encode(grant)), part.micro, record.at_us, part.expires])
        names = keys.of_org(org)
        answer = await self._give.durably(
            [*common_keys(names), names.grants, names.received],
            [field, msgspec.msgpack.encode(parts), _entry(record, 1), str(MICRO_MAX), org, self._given_clock()],
        )
        return text(answer) == "given"

    def _given_clock(self) -> str:
        return str(self._clock()) if self._clock else ""


def transfer_shape(record: Transfer) -> dict[str, Any]:
    """As `--json` and HTTP give it."""
    return {
        "idempotency_key": record.key,
        "from": record.source,
        "to": record.target,
        "credits": record.credits,
        "reason": record.reason,
        "at": record.at,
        "state": record.state,
        "parts": [{"credits": format_micro(int(part.micro)), "expires_at": part.expires_at} for part in record.parts],
    }


def _entry(record: Transfer, sign: int) -> bytes:
    """The journal entry of an org that credits leave (-1) or come to."""
    return msgspec.json.encode(
        {
            "type": "transfer", "at": record.at, "who": record.who, "from": record.address,
            "credits": record.credits if sign > 0 else f"-{record.credits}", "source": SOURCE,
            "from_org": record.source, "to_org": record.target, "reason": record.reason, "key": record.key,
        }
    )  # fmt: skip
