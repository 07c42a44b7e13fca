"""Tokens: who may call. Only their SHA-256 is kept; a token is shown once, when it is made."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.audit import Audit
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.errors import InvalidRequest, LastAdmin, LedgerUnavailable
from ledger.lua import Script, text
from ledger.names import check_name

ROLES: Final = ("admin", "owner", "viewer", "scheduler")
ORG_ROLES: Final = ("owner", "viewer")
"""Roles of one org; they need its name. A scheduler's token may name one as well."""
PREFIX: Final = "act_"
_KNOWN_SECONDS: Final = 5.0
_AWAY_SECONDS: Final = 3600.0
_KNOWN_MAX: Final = 10_000
_USED_EVERY_US: Final = 60_000_000
_TOKEN_MAX: Final = 128
NOTE_MAX: Final = 200


class Token(msgspec.Struct, frozen=True):
    """A token's record; times are RFC 3339. `digest`: the SHA-256 of the token, in hex."""

    id: str
    digest: str
    role: str
    org: str | None
    created_at: str
    expires_us: int | None
    note: str = ""

    @property
    def expires_at(self) -> str | None:
        return None if self.expires_us is None else format_time(self.expires_us)

    @property
    def who(self) -> str:
        """What the journal calls its bearer."""
        return f"token:{self.id} ({self.role})"


class Tokens:
    """Makes, lists, revokes and checks tokens.

    A token that was checked is known for 5 s without asking again, so a revocation takes effect within that;
    while the ledger is away, it counts as last seen for an hour.
    """

    def __init__(self, client: Client, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._clock: Clock = clock or now_us
        self._audit = Audit(client, clock)
        self._script = Script(client, "token")
        self._known: dict[str, tuple[float, Token]] = {}
        self._used: dict[str, int] = {}
        self._reading: dict[str, asyncio.Task[Token | None]] = {}
        self._writing: set[asyncio.Task[None]] = set()

    async def create(
        self, role: str, org: str | None = None, *, expires_us: int | None = None, note: str = "",
        who: str = "ledger", address: str | None = None,
    ) -> tuple[Token, str]:  # fmt: skip
        """(record, token); the token cannot be had again. `who` made it, from which address: for the audit.

        Raises: InvalidRequest for a role that is none, lacks its org, or an expiry that is past; LedgerUnavailable.
        """
        if role not in ROLES:
            raise InvalidRequest(f"role {role!r}: expected one of {', '.join(ROLES)}")
        if role in ORG_ROLES and org is None:
            raise InvalidRequest(f"a token of role {role} is for one org; name it (--org)")
        if role == "admin" and org is not None:
            raise InvalidRequest("a token of role admin is for all orgs: leave the org out, or make it an owner's")
        if org is not None:
            check_name("org", org)
        now = self._clock()
        if expires_us is not None and expires_us <= now:
            raise InvalidRequest(f"expires_at {format_time(expires_us)} is past")
        if any(not letter.isprintable() for letter in note):
            raise InvalidRequest("note: expected printable characters only")
        token = PREFIX + secrets.token_urlsafe(32)
        digest = _digest(token)
        record = Token(digest[:16], digest, role, org, format_time(now), expires_us, note[:NOTE_MAX])
        await self._audit.add("token_created", who, address, **_facts(record))
        await self._write(record.id, msgspec.json.encode(record))
        return record, token

    async def list(self) -> list[tuple[Token, int | None]]:
        """(record, instant of the last use) of all tokens, oldest first."""
        fields = await again(lambda: self._client.hgetall(keys.TOKENS))
        used = await again(lambda: self._client.hgetall(keys.TOKENS_USED))
        found = [
            (msgspec.json.decode(data, type=Token), int(used[i]) if i in used else None) for i, data in fields.items()
        ]
        return sorted(found, key=lambda item: (item[0].created_at, item[0].id))

    async def get(self, token_id: str) -> Token | None:
        """The record of one token, None where there is none."""
        data = await again(lambda: self._client.hget(keys.TOKENS, token_id))
        return None if data is None else msgspec.json.decode(data, type=Token)

    async def revoke(
        self, token_id: str, *, who: str = "ledger", address: str | None = None, keep_admin: bool = False
    ) -> bool:
        """Whether there was such a token. `keep_admin`: not where no valid token of role admin would be left.

        Raises: LastAdmin; LedgerUnavailable (a retry is safe).
        """
        record = await self.get(token_id)
        if record is None:
            return False
        await self._audit.add("token_revoked", who, address, **_facts(record))
        said = await self._write(token_id, b"", "1" if keep_admin else "")
        if said == "last_admin":
            await self._audit.add("token_kept", who, address, **_facts(record))
            raise LastAdmin(
                f"token {token_id} is the last one of role admin that is valid: make another one first, or revoke it "
                "on the ledger's own machine with `credits token revoke`"
            )
        await again(lambda: self._client.hdel(keys.TOKENS_USED, token_id))
        self._known = {digest: known for digest, known in self._known.items() if known[1].id != token_id}
        return True

    async def _write(self, token_id: str, record: bytes, keep_admin: str = "") -> str:
        """On the server's disk before it is acknowledged: what was revoked must not come back with a server that
        crashed."""
        arguments = [token_id, record, keep_admin, str(self._clock())]
        return text(await self._script.durably([keys.TOKENS], arguments, keys.TOKENS_SYNCED))

    def known(self, token: str) -> Token | None:
        """The record of a valid token that was checked within 5 s; None says nothing."""
        found = self._known.get(_digest(token)) if token.isascii() else None
        if found is None or time.monotonic() - found[0] >= _KNOWN_SECONDS:
            return None
        return self._valid(found[1])

    def last_seen(self, token: str) -> Token | None:
        """As `known`, of a token that was checked within an hour: for while the ledger does not answer."""
        found = self._known.get(_digest(token)) if token.isascii() else None
        if found is None or time.monotonic() - found[0] >= _AWAY_SECONDS:
            return None
        return self._valid(found[1])

    async def authenticate(self, token: str) -> Token | None:
        """The record of a token that is valid now, else None.

        Raises: LedgerUnavailable for one that was not seen lately, while the ledger cannot be asked.
        """
        if not token.startswith(PREFIX) or len(token) > _TOKEN_MAX or not token.isascii():
            return None
        digest = _digest(token)
        known = self._known.get(digest)
        if known is not None and time.monotonic() - known[0] < _KNOWN_SECONDS:
            return self._valid(known[1])
        try:
            # Many may wait for the same answer: it is asked for once.
            task = self._reading.get(digest)
            if task is None:
                task = self._reading[digest] = asyncio.get_running_loop().create_task(self._read(digest))
                task.add_done_callback(lambda done: self._read_done(digest, done))
            record = await asyncio.shield(task)
        except LedgerUnavailable:
            if known is None or time.monotonic() - known[0] >= _AWAY_SECONDS:
                raise
            record = known[1]
        return None if record is None else self._valid(record)

    def _read_done(self, digest: str, task: asyncio.Task[Token | None]) -> None:
        self._reading.pop(digest, None)
        if not task.cancelled():
            task.exception()  # those who wait for it are told

    def _valid(self, record: Token) -> Token | None:
        now = self._clock()
        if record.expires_us is not None and record.expires_us <= now:
            return None
        if now - self._used.get(record.id, -_USED_EVERY_US) >= _USED_EVERY_US:
            self._used[record.id] = now
            self._aside(self._note_use(record.id, now))
        return record

    async def _read(self, digest: str) -> Token | None:
        data = await again(lambda: self._client.hget(keys.TOKENS, digest[:16]))
        record = msgspec.json.decode(data, type=Token) if data is not None else None
        if record is None or not hmac.compare_digest(record.digest, digest):
            self._known.pop(digest, None)
            return None
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[digest] = time.monotonic(), record
        return record

    async def _note_use(self, token_id: str, now: int) -> None:
        try:
            await again(lambda: self._client.hset(keys.TOKENS_USED, token_id, str(now)), pauses=())
        except LedgerUnavailable:
            self._used.pop(token_id, None)

    async def settle(self) -> None:
        """Wait for what is being written beside the checks."""
        if self._writing:
            await asyncio.wait(self._writing)

    def _aside(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)


def token_shape(record: Token, last_used_us: int | None = None) -> dict[str, Any]:
    """A token as programs get it, without what it could be used by."""
    return {
        "id": record.id,
        "role": record.role,
        "org": record.org,
        "note": record.note,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "last_used_at": None if last_used_us is None else format_time(last_used_us),
    }


def _facts(record: Token) -> dict[str, Any]:
    """What the audit says of a token."""
    return {
        "token": record.id,
        "role": record.role,
        "org": record.org,
        "expires_at": record.expires_at,
        "note": record.note,
    }


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
