"""Corrections: credits given or taken back for a reason, each with what it corrects: a grant, an entry, a workload."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.accounts import KEY_MAX, PAYMENT_PREFIX, GrantRecord
from ledger.clock import Clock, format_time, now_us, parse_time
from ledger.connect import Client, again
from ledger.errors import IdempotencyConflict, InvalidRequest
from ledger.lua import Script, common_keys, text
from ledger.money import MICRO_MAX, format_micro, parse_credits
from ledger.names import GLOB, check_name
from ledger.scopes import Scope

CORRECTION_PREFIX: Final = "correction:"
REASON_MAX: Final = 1000
GRANT, ENTRY, WORKLOAD = "grant", "entry", "workload"
"""What is corrected: a grant, another entry of the journal, or what a workload was charged."""
_BATCH: Final = 1000
_ENTRY_ID: Final = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


class Correction(msgspec.Struct, frozen=True):
    """A correction as it was acknowledged. `credits`: below 0 where they were taken back.

    `grant`: key of the grant it gave. `overdraft`: what of the credits taken back no grant covered.
    """

    key: str
    digest: str
    credits: str
    corrects: str
    what: str
    reason: str
    at: str
    who: str
    grant: str | None
    overdraft: str = "0"


@dataclass(frozen=True, slots=True)
class CorrectionReceipt:
    """`replayed`: the key was known with this very body, and nothing moved again."""

    record: Correction
    replayed: bool


@dataclass(frozen=True, slots=True)
class _Corrected:
    """What a reference means. `grant`: the grant it is, where it is one."""

    what: str
    grant: GrantRecord | None = None


class Corrections:
    """Corrections of all orgs."""

    def __init__(self, client: Client, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._clock = clock
        self._script = Script(client, "correct")

    async def correct(
        self, org: str, micro: int, *, corrects: str, key: str, reason: str, who: str, address: str | None = None
    ) -> CorrectionReceipt:
        """Give credits (micro > 0) or take them back (micro < 0), at most once for `key`; returns once it is durable.

        `corrects`: the key of a grant, the id of a journal entry, or the id of a workload. What a correction of a grant
        gives expires when the grant does, unless that is over, and pays for the same work; a grant can be corrected
        down to 0 in all, not below.
        The org has to be there. Raises: InvalidRequest; IdempotencyConflict (same key, other body); LedgerUnavailable
        (a retry is safe).
        """
        check_name("org", org)
        most = format_micro(MICRO_MAX)
        if micro == 0 or abs(micro) > MICRO_MAX:
            raise InvalidRequest(f"credits {format_micro(micro)}: a correction is not 0, and at most {most} up or down")
        check_key(key)
        check_reason(reason)
        names = keys.of_org(org)
        digest = hashlib.sha256(msgspec.json.encode([org, micro, corrects, reason])).hexdigest()
        known = await again(lambda: self._client.hget(names.corrections, key))
        if known is not None:
            return _receipt(org, "replayed", msgspec.json.decode(known, type=Correction), digest)
        corrected = await self._find(names, corrects)
        if corrected is None:
            raise InvalidRequest(
                f"corrects {corrects!r:.300}: org {org!r} has no grant of this key, and no journal entry or workload "
                "of this id"
            )
        now = self._clock() if self._clock else now_us()
        plan = _plan(org, micro, corrects, corrected, key, digest, reason, who, address, now)
        answer = await self._script.durably(
            [
                *common_keys(names), names.grants, names.withdrawals, names.corrections, names.corrected,
                names.payments,
            ],
            [msgspec.msgpack.encode(plan), str(self._clock()) if self._clock else ""],
        )  # fmt: skip
        said = text(answer[0])
        if said == "too_large":
            raise InvalidRequest(f"credits {format_micro(micro)}: the org would hold more than the ledger can count")
        if said == "below":
            raise InvalidRequest(
                f"credits {format_micro(micro)}: grant {plan['corrects']!r} comes to {format_micro(int(answer[1]))} "
                "credits after the corrections there were, and cannot be corrected below 0"
            )
        return _receipt(org, said, msgspec.json.decode(answer[1], type=Correction), digest)

    async def _find(self, names: keys.OrgKeys, reference: str) -> _Corrected | None:
        data = await again(lambda: self._client.hget(names.grants, reference))
        if data is not None:
            return _Corrected(GRANT, msgspec.json.decode(data, type=GrantRecord))
        entry = await self._entry(names, reference)
        if entry is not None:
            key = entry.get("key") if entry.get("type") == "grant" else None
            data = None if key is None else await again(lambda: self._client.hget(names.grants, key))
            return _Corrected(ENTRY, None if data is None else msgspec.json.decode(data, type=GrantRecord))
        return _Corrected(WORKLOAD) if await self._is_workload(names, reference) else None

    async def _entry(self, names: keys.OrgKeys, reference: str) -> dict[str, Any] | None:
        if _ENTRY_ID.fullmatch(reference) is None:
            return None
        items = await again(lambda: self._client.xrange(names.journal, min=reference, max=reference, count=1))
        found: dict[str, Any] | None = msgspec.json.decode(items[0][1][b"entry"]) if items else None
        return found

    async def _is_workload(self, names: keys.OrgKeys, reference: str) -> bool:
        """Whether the org was charged for a workload of this id, as far as its records are kept."""
        pattern = f"*{keys.US}{reference.translate(GLOB)}{keys.US}*"
        for name in (names.runs, names.ended):
            cursor = 0
            while True:
                cursor, found = await again(partial(self._client.hscan, name, cursor, match=pattern, count=_BATCH))
                if any(text(field).split(keys.US)[2] == reference for field in found):
                    return True
                if not cursor:
                    break
        return False


def correction_shape(org: str, record: Correction) -> dict[str, Any]:
    """As `--json` and HTTP give it."""
    return {
        "org": org,
        "idempotency_key": record.key,
        "credits": record.credits,
        "corrects": record.corrects,
        "what": record.what,
        "reason": record.reason,
        "at": record.at,
        "grant": record.grant,
        "overdraft": record.overdraft,
    }


def check_key(key: str) -> None:
    """Raises: InvalidRequest for what cannot be an idempotency key."""
    if not 0 < len(key) <= KEY_MAX or not key.isprintable():
        raise InvalidRequest(f"idempotency key: expected 1 to {KEY_MAX} printable characters")


def check_reason(reason: str) -> None:
    """Raises: InvalidRequest for one that is missing or too long."""
    if not reason.strip() or len(reason) > REASON_MAX:
        raise InvalidRequest(f"reason: expected 1 to {REASON_MAX} characters that say why")


def _plan(
    org: str, micro: int, corrects: str, corrected: _Corrected, key: str, digest: str, reason: str, who: str,
    address: str | None, now: int,
) -> dict[str, Any]:  # fmt: skip
    """As scripts/correct.lua takes it."""
    at, gives = format_time(now), micro > 0
    given = CORRECTION_PREFIX + key if gives else None
    record = Correction(key, digest, format_micro(micro), corrects, corrected.what, reason, at, who, given)
    grant, of = corrected.grant, "" if corrected.grant is None else corrected.grant.key
    scope = Scope() if grant is None else Scope(grant.presets, grant.clusters)
    starts, expires = "0", None
    if grant is not None and grant.expires_at is not None and parse_time(grant.expires_at) > now:
        starts, expires = str(parse_time(grant.effective_at)), grant.expires_at
    entry = {
        "type": "correction", "at": at, "who": who, "from": address, "credits": record.credits, "source": "refund",
        "corrects": corrects, "what": corrected.what, "reason": reason, "key": given or CORRECTION_PREFIX + key,
    }  # fmt: skip
    if corrected.what == WORKLOAD:
        entry["workload"] = corrects
    # Without a digest: a grant that nobody asked for as such, so statements call it a correction.
    made = GrantRecord(
        given or "", "", record.credits, "refund", reason, at,
        at if expires is None or grant is None else max(at, grant.effective_at, key=parse_time), expires, who, "",
        *scope,
    )  # fmt: skip
    return {
        "key": key,
        "digest": digest,
        "amount": str(abs(micro)),
        "gives": "1" if gives else "",
        "record": text(msgspec.json.encode(record)),
        "entry": text(msgspec.json.encode(entry)),
        "corrects": of,
        "granted": "0" if grant is None else str(parse_credits(grant.credits)),
        "payment": of.removeprefix(PAYMENT_PREFIX) if of.startswith(PAYMENT_PREFIX) else "",
        "grant": [
            given or "", text(msgspec.json.encode(made)), starts, "" if expires is None else str(parse_time(expires)),
            scope.encode() if any(scope) else "",
        ],
        "org": org,
        "limit": str(MICRO_MAX),
    }  # fmt: skip


def _receipt(org: str, said: str, record: Correction, digest: str) -> CorrectionReceipt:
    if record.digest != digest:
        raise IdempotencyConflict(
            f"idempotency key {record.key!r} was used at {record.at} for another correction of org {org!r} "
            f"({record.credits} credits); use a new key for a new one"
        )
    return CorrectionReceipt(record, said == "replayed")
