"""Sessions of the console: who is signed in, in the ledger's server, so that every enforcer knows and a restart forgets
nobody.

Only the SHA-256 of a session's secret is kept; the secret is the browser's. A session ends by its own time, after
idling, with its token, by signing out, and by signing out everywhere.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import partial
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again
from ledger.lua import Script, text
from ledger.tokens import Token

SECRET_MAX: Final = 64
EVERYBODY: Final = ""
"""Stands for all persons."""


class Person(Token, frozen=True):
    """Somebody whom a provider vouches for: a caller as the bearer of a token is, under a name."""

    name: str = ""

    @property
    def who(self) -> str:
        """What the journal calls them; no token is called so."""
        return f"sso:{self.name} ({self.role})"


class Session(msgspec.Struct, frozen=True):
    """Who signed in, until when (us). `person`: `token:ID`, or `sso:` and the digest of issuer and subject.

    `digest` is that of the token; "" for a person of a provider, who has a `name` and `choices` of (role, org), of
    which `chosen` is the number of the one in force, None before one was chosen.
    """

    person: str
    created_us: int
    expires_us: int
    digest: str = ""
    name: str = ""
    choices: tuple[tuple[str, str | None], ...] = ()
    chosen: int | None = None
    generation: str | None = None


class SessionStore:
    """Begins, finds and ends sessions."""

    def __init__(self, client: Client, seconds: float, idle_seconds: float, clock: Clock | None = None) -> None:
        """A session lasts `seconds` at most, and `idle_seconds` when nothing is done in it."""
        self._client: Any = client
        self._end = Script(client, "session_end")
        self._us = round(seconds * 1_000_000)
        self._idle_ms = max(1, min(round(idle_seconds * 1000), round(seconds * 1000)))
        self._clock: Clock = clock or now_us

    def of_token(self, token: Token) -> Session:
        """A session to begin for the bearer of a token; it never outlives the token."""
        now = self._clock()
        expires = now + self._us if token.expires_us is None else min(now + self._us, token.expires_us)
        return Session(f"token:{token.id}", now, expires, token.digest)

    def of_person(self, issuer: str, subject: str, name: str, choices: tuple[tuple[str, str | None], ...]) -> Session:
        """A session to begin for somebody of a provider; a single choice needs no choosing."""
        person = "sso:" + hashlib.sha256(f"{issuer}{keys.US}{subject}".encode()).hexdigest()[:32]
        now = self._clock()
        return Session(person, now, now + self._us, "", name, choices, 0 if len(choices) == 1 else None)

    async def begin(self, session: Session) -> str:
        """The secret of the session, which is new: nobody can have known it before.

        One that goes on (it was found) is over with what it goes on from, when everything of the person is ended.
        """
        generation = session.generation
        if generation is None:
            # Read before the session is there, so that signing out everywhere meanwhile ends this one as well.
            generation = await self._generation(session.person)
        for person in (session.person, EVERYBODY):  # as long as there are sessions that carry it
            await again(partial(self._client.pexpire, keys.sessions_of(person), self._us // 1000 + 1000))
        secret = secrets.token_urlsafe(32)
        data = msgspec.json.encode(msgspec.structs.replace(session, generation=generation))
        await again(lambda: self._client.set(_key(secret), data, px=self._idle_ms))
        return secret

    async def find(self, secret: str) -> Session | None:
        """The session that a secret is of, which does not idle now; None where it has ended.

        Raises: LedgerUnavailable.
        """
        if not secret or len(secret) > SECRET_MAX or not secret.isascii():
            return None
        data = await again(lambda: self._client.getex(_key(secret), px=self._idle_ms))
        if not data:
            return None
        session = msgspec.json.decode(data, type=Session)
        if session.expires_us <= self._clock() or await self._generation(session.person) != session.generation:
            await again(lambda: self._client.delete(_key(secret)))
            return None
        return session

    async def caller(self, session: Session) -> Token | None:
        """As whom the session acts: its token as it is now, None once that is revoked or over; or a chosen role."""
        if session.digest:
            token_id = session.person.removeprefix("token:")
            data = await again(lambda: self._client.hget(keys.TOKENS, token_id))
            token = None if data is None else msgspec.json.decode(data, type=Token)
            if token is None or not hmac.compare_digest(token.digest, session.digest):
                return None
            is_over = token.expires_us is not None and token.expires_us <= self._clock()
            return None if is_over else token
        if session.chosen is None:
            return None
        role, org = session.choices[session.chosen]
        created = format_time(session.created_us)
        return Person(session.person, "", role, org, created, session.expires_us, "", session.name)

    async def end(self, secret: str) -> None:
        """Signs out: on the server's disk, so that no session comes back with a server that crashed."""
        await self._end.durably([_key(secret)], ["", "1000"], None)

    async def end_all(self, person: str) -> None:
        """Ends every session of a person (`EVERYBODY`: of all), wherever it was begun; on the server's disk, too."""
        # Kept for as long as a session lasts: what was begun before is over by then.
        name, kept_ms = keys.sessions_of(person), self._us // 1000 + 1000
        generation = secrets.token_urlsafe(12)
        await self._end.durably([name], [generation, str(kept_ms)], None)

    async def _generation(self, person: str) -> str:
        """What sessions of a person have to carry: it changes when they are ended, and when everybody's are."""
        names = (keys.sessions_of(person), keys.sessions_of(EVERYBODY))
        own, all_ = [text(await again(partial(self._client.get, name))) for name in names]
        return f"{own}.{all_}"


def _key(secret: str) -> str:
    return keys.session(hashlib.sha256(secret.encode()).hexdigest())
