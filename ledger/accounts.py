"""Orgs, their grants, balances and journals."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ledger import keys
from ledger.balances import Balance, read_balance
from ledger.clock import INSTANT_MAX_US, Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.errors import Changed, IdempotencyConflict, InvalidRequest, UnknownOrg
from ledger.lua import Scripts, common_keys, text, to_the_end
from ledger.money import MICRO_MAX, format_micro
from ledger.names import check_name
from ledger.scopes import SCOPES_MAX, Scope, make_scope

GRANT_SOURCES = ("provision", "purchase", "refund", "gift")
KEY_MAX = 255
PAYMENT_PREFIX = "payment:"
"""Of the keys of grants that were paid for: nobody else's to use."""
_RESERVED = {PAYMENT_PREFIX: "payments", "correction:": "corrections", "transfer:": "transfers"}


class GrantRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A grant as it was acknowledged; amounts are decimal strings, times RFC 3339.

    `presets`, `clusters`: all that it pays for; none: any. `new_org`: it made the org.
    """

    key: str
    digest: str
    credits: str
    source: str
    reason: str
    granted_at: str
    effective_at: str
    expires_at: str | None
    who: str
    purpose: str = ""
    presets: tuple[str, ...] = ()
    clusters: tuple[str, ...] = ()
    new_org: bool = False


@dataclass(frozen=True, slots=True)
class GrantReceipt:
    """`replayed`: the key was known with this very body, and nothing was granted again."""

    record: GrantRecord
    replayed: bool


class Accounts:
    """What admins and owners do with orgs. Every call is one atomic script."""

    def __init__(self, client: Client, scripts: Scripts, clock: Clock | None = None) -> None:
        """`clock` replaces the server's clock in tests."""
        self._client: Any = client
        self._scripts = scripts
        self._clock = clock

    def _now(self) -> str:
        return str(self._clock()) if self._clock else ""

    def _wall(self) -> int:
        return self._clock() if self._clock else now_us()

    async def orgs(self) -> list[str]:
        """Names of all orgs, sorted."""
        members = await again(lambda: self._client.smembers(keys.ORGS))
        return sorted(text(member) for member in members)

    async def upsert(
        self,
        org: str,
        *,
        who: str,
        address: str | None = None,
        if_revision: str | None = None,
        unlimited: bool | None = None,
        contact: str | None = None,
        policy: Mapping[str, Any] | None = None,
        credit_line_micro: int | None = None,
    ) -> str:
        """Create or edit an org; None leaves a field. Returns `created`, `edited` or `same`.

        `if_revision`: only if its settings still are of this revision (`*`: only if it is there).
        Raises: InvalidRequest for a name that cannot be one; Changed where the revision is another one, UnknownOrg
            where a revision is asked of an org that is not there.
        """
        check_name("org", org)
        fields: list[str] = []
        entry: dict[str, Any] = {"type": "org", "at": format_time(self._wall()), "who": who, "from": address}
        if unlimited is not None:
            fields += ["unlimited", "1" if unlimited else ""]
            entry["unlimited"] = unlimited
        if contact is not None:
            fields += ["contact", contact]
            entry["contact"] = contact
        if policy is not None:
            fields += ["policy", msgspec.json.encode(policy).decode() if policy else ""]
            entry["policy"] = dict(policy)
        if credit_line_micro is not None:
            if not 0 <= credit_line_micro <= MICRO_MAX:
                raise InvalidRequest(f"credit_line: expected 0 (none) to {format_micro(MICRO_MAX)} credits")
            fields += ["credit_line", str(credit_line_micro) if credit_line_micro else ""]
            entry["credit_line"] = format_micro(credit_line_micro)
        if if_revision is None:
            await again(lambda: self._client.sadd(keys.ORGS, org))
        else:
            await self.balance(org)
        names = common_keys(keys.of_org(org))
        arguments = [org, msgspec.json.encode(entry), if_revision or "", secrets.token_hex(8), *fields]
        said = text((await self._scripts.org.durably(names, arguments))[0])
        if said == "changed":
            raise Changed(f"The settings of org {org!r} are not those that were read; read them again.")
        return said

    async def grant(
        self,
        org: str,
        micro: int,
        *,
        key: str,
        who: str,
        address: str | None = None,
        source: str = "provision",
        reason: str = "",
        effective_us: int | None = None,
        expires_us: int | None = None,
        purpose: str = "",
        presets: Iterable[str] = (),
        clusters: Iterable[str] = (),
    ) -> GrantReceipt:
        """Give credits, at most once for `key`, for ever; returns once it is durable.

        Creates the org where there is none. `effective_us` None: now. With `presets` or `clusters` it pays only for
        work that runs on one of each. `purpose` is for people.
        Raises: InvalidRequest; IdempotencyConflict (same key, other body); LedgerUnavailable (retry is safe).
        """
        check_name("org", org)
        if not 0 < micro <= MICRO_MAX:
            raise InvalidRequest(
                f"credits {format_micro(micro)}: a grant is more than 0 and at most {format_micro(MICRO_MAX)}"
            )
        if source not in GRANT_SOURCES:
            raise InvalidRequest(f"source {source!r}: expected one of {', '.join(GRANT_SOURCES)}")
        if not 0 < len(key) <= KEY_MAX or not key.isprintable():
            raise InvalidRequest(f"idempotency key: expected 1 to {KEY_MAX} printable characters")
        for prefix, whose in _RESERVED.items():
            if key.startswith(prefix):
                raise InvalidRequest(f"idempotency key {key!r}: those that start with {prefix!r} are of {whose}")
        scope = make_scope(presets, clusters)
        now = self._wall()
        for what, instant in (("effective_at", effective_us), ("expires_at", expires_us)):
            if instant is not None and not 0 <= instant < INSTANT_MAX_US:
                raise InvalidRequest(f"{what} {format_time(instant)}: expected a time between the years 1970 and 2255")
        if effective_us is not None and expires_us is not None and expires_us <= effective_us:
            raise InvalidRequest("expires_at is not after effective_at: the grant would never count")
        is_over = effective_us is None and expires_us is not None and expires_us <= now
        if is_over and expires_us is not None and not await self._has_grant(org, key):
            raise InvalidRequest(
                f"expires_at {format_time(expires_us)} is over: the grant would never count; one that is to pay for "
                "use in the past begins in the past"
            )
        # The body as asked, so that a retry without effective_at is the same request a minute later.
        body: list[Any] = [org, micro, source, reason, effective_us, expires_us]
        if purpose or scope:
            body += [purpose, scope or Scope()]  # not where there is neither: older keys have to find their digests
        digest = hashlib.sha256(msgspec.json.encode(body)).hexdigest()
        record = GrantRecord(
            key, digest, format_micro(micro), source, reason, format_time(now),
            format_time(now if effective_us is None else effective_us),
            None if expires_us is None else format_time(expires_us), who, purpose, *(scope or ()),
        )  # fmt: skip
        entry = {
            "type": "grant",
            "at": record.granted_at,
            "who": who,
            "from": address,
            "credits": record.credits,
            "source": source,
            "reason": reason,
            "key": key,
            "effective_at": record.effective_at,
            "expires_at": record.expires_at,
            **({"purpose": purpose} if purpose else {}),
            **({"only": scope._asdict()} if scope else {}),
        }
        org_keys = keys.of_org(org)
        starts = now if effective_us is None else effective_us
        ends = "" if expires_us is None else str(expires_us)
        arguments = [
            key, msgspec.json.encode(record), digest, str(micro), source, str(starts), ends,
            msgspec.json.encode(entry), str(MICRO_MAX), self._now(), org,
            scope.encode() if scope else "", str(SCOPES_MAX),
            msgspec.json.encode(msgspec.structs.replace(record, new_org=True)),
        ]  # fmt: skip
        await again(lambda: self._client.sadd(keys.ORGS, org))
        answer = await self._scripts.grant.durably([*common_keys(org_keys), org_keys.grants], arguments)
        said = text(answer[0])
        if said == "too_large":
            raise InvalidRequest(f"credits {format_micro(micro)}: the org would hold more than the ledger can count")
        if said == "too_many_scopes":
            raise InvalidRequest(
                f"only: the grants of org {org!r} are restricted in {SCOPES_MAX} different ways already, which is as "
                "many as may be; use one of these, or wait until one of them is used up or over"
            )
        known = msgspec.json.decode(answer[1], type=GrantRecord)
        if said == "conflict":
            raise IdempotencyConflict(
                f"idempotency key {key!r} was used at {known.granted_at} for another grant of org {org!r} "
                f"({known.credits} credits); use a new key for a new grant"
            )
        return GrantReceipt(known, said == "replayed")

    async def _has_grant(self, org: str, key: str) -> bool:
        return bool(await again(lambda: self._client.hexists(keys.of_org(org).grants, key)))

    async def balance(self, org: str) -> Balance:
        """Raises: UnknownOrg when nothing was ever granted to or spent by it."""
        names = common_keys(keys.of_org(org))
        answer = await to_the_end(lambda: self._scripts.balance(names, [self._now()]))
        if len(answer) <= 7:
            raise UnknownOrg(org)
        return read_balance(org, answer)

    async def balances(self) -> list[Balance]:
        """Of all orgs, sorted by name."""

        async def one(org: str) -> Balance | None:
            try:
                return await self.balance(org)
            except UnknownOrg:
                return None

        found = await asyncio.gather(*(one(org) for org in await self.orgs()))
        return [balance for balance in found if balance is not None]

    async def grants(self, org: str) -> list[GrantRecord]:
        """All grants of an org, oldest first, corrections included."""
        fields = await again(lambda: self._client.hvals(keys.of_org(org).grants))
        return sorted((msgspec.json.decode(f, type=GrantRecord) for f in fields), key=lambda r: (r.granted_at, r.key))

    async def journal(
        self, org: str, cursor: str | None = None, limit: int = 100
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Entries oldest first, and the cursor of the next page (None: this was the last).

        Raises: InvalidRequest for a cursor that is none.
        """
        start = "-" if cursor is None else f"({cursor}"
        if cursor is not None and not all(part.isdigit() for part in cursor.split("-", 1)):
            raise InvalidRequest(f"cursor {cursor!r} is not one this ledger gave")
        stream = keys.of_org(org).journal
        items = await again(lambda: self._client.xrange(stream, min=start, max="+", count=limit + 1))
        entries = [{"id": text(i), **msgspec.json.decode(fields[b"entry"])} for i, fields in items[:limit]]
        return entries, text(items[limit - 1][0]) if len(items) > limit else None
