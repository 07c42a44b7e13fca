"""Signing in through a provider: there, and back.

What belongs to one sign-in (state, nonce, PKCE verifier) comes out of one random secret, which only the browser that
began it keeps, for ten minutes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Final

from aiohttp import web

from api.routes import Route
from config.console import ROLES
from console.oidc import Provider, ProviderError, said_by
from console.places import safe_next
from console.sign_in import Door
from ledger.names import is_name

log = logging.getLogger(__name__)
CALLBACK: Final = "/console/oidc/callback"
_COOKIE: Final = "oidc"
_SECONDS: Final = 600
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
_CHOICES_MAX: Final = 100
_CODE_MAX: Final = 4096
_OTHER: Final = (
    "This answer of the provider belongs to no sign-in that this browser began in the last ten minutes. Start again."
)
_NO_ROLE: Final = (
    "The provider knows you as {name}, but nothing that it says of you gives you a role here. Ask the cluster "
    "administrators to add you to a group of your org, or to add a rule to console.oidc.rules."
)
_MANY: Final = "Signing in from this address failed too often. Try again in {seconds} s."


class OidcSignIn:
    """The two calls of it."""

    def __init__(self, door: Door, provider: Provider) -> None:
        self._door = door
        self._provider = provider

    def calls(self) -> list[Route]:
        """Open to everyone: it is for who is not signed in yet."""
        return [
            Route("GET", "/console/oidc/start", self.start, None, "session"),
            Route("GET", CALLBACK, self.callback, None, "session"),
        ]

    async def start(self, request: web.Request) -> web.Response:
        """To the provider."""
        after = safe_next(request.query.get("next", ""))
        secret = secrets.token_urlsafe(32)
        try:
            url = await self._provider.sign_in_url(*_of(secret))
        except ProviderError as error:
            return self._failed(request, error, after)
        response = self._door.pages.redirect(request, url)
        self._door.sessions.keep(request, response, _COOKIE, f"{secret}{after}", seconds=_SECONDS)
        return response

    async def callback(self, request: web.Request) -> web.Response:
        """Back from the provider, with a code or with what went wrong."""
        kept = self._door.sessions.kept(request, _COOKIE)
        secret, after = kept[:43], safe_next(kept[43:])
        if _SECRET.fullmatch(secret) is None:
            return self._door.page(request, after, _OTHER, 400)
        state, nonce, verifier = _of(secret)
        if not hmac.compare_digest(_one(request, "state").encode(errors="replace"), state.encode()):
            return self._door.page(request, after, _OTHER, 400)
        wait = self._door.failures.check(request.remote)
        if wait:
            page = self._door.page(request, after, _MANY.format(seconds=wait), 429)
            page.headers["Retry-After"] = str(wait)
            return page
        try:
            response = await self._admitted(request, nonce, verifier, after)
        except ProviderError as error:
            self._door.failures.failed(request.remote)
            response = self._failed(request, error, after)
        # Whatever came of it, this sign-in is over: its answer is not taken a second time.
        self._door.sessions.keep(request, response, _COOKIE, "", seconds=0)
        return response

    async def _admitted(self, request: web.Request, nonce: str, verifier: str, after: str) -> web.Response:
        if "error" in request.query:
            raise ProviderError(said_by(_one(request, "error"), _one(request, "error_description")))
        code = _one(request, "code")
        if not 0 < len(code) <= _CODE_MAX:
            raise ProviderError("The provider sent you back without a code.")
        issuer = _one(request, "iss") if "iss" in request.query else None
        claims = await self._provider.claims(code, nonce, verifier, issuer)
        settings = self._provider.settings
        name = name_of(claims, settings.name_claim)
        choices = best_roles(settings.roles_of(claims))
        if not choices:
            log.warning("%s signed in at the provider, from %s, but no rule gives a role", name, request.remote)
            return self._door.page(request, after, _NO_ROLE.format(name=name), 403)
        session = self._door.sessions.store.of_person(settings.issuer, claims["sub"], name, choices)
        await self._door.note("signed_in", f"sso:{name}", request)
        return await self._door.enter(request, session, after)

    def _failed(self, request: web.Request, error: ProviderError, after: str) -> web.Response:
        log.warning("signing in through the provider failed, from %s: %s", request.remote, error)
        is_refusal = "error" in request.query
        return self._door.page(
            request, after, f"{error} You can sign in with a token all the same.", 403 if is_refusal else 502
        )


def best_roles(given: Iterable[tuple[str, str | None]]) -> tuple[tuple[str, str | None], ...]:
    """The strongest role for each org; what no org can be called is left out."""
    best: dict[str | None, str] = {}
    for role, org in given:
        if org is not None and not is_name(org):
            continue
        if org not in best or ROLES.index(role) < ROLES.index(best[org]):
            best[org] = role
    return tuple((role, org) for org, role in best.items())[:_CHOICES_MAX]


def name_of(claims: Mapping[str, Any], claim: str) -> str:
    """What somebody is called: an address that is not verified may be anybody's, so the subject stands for it then."""
    name = claims.get(claim)
    if not is_name(name) or (claim == "email" and claims.get("email_verified") is not True):
        name = claims["sub"]
    text = "".join(letter for letter in str(name) if letter.isprintable())
    return text or "somebody"


def _of(secret: str) -> tuple[str, str, str]:
    """(state, nonce, verifier) of a sign-in."""

    def part(name: bytes) -> str:
        return urlsafe_b64encode(hmac.new(secret.encode(), name, hashlib.sha256).digest()).rstrip(b"=").decode()

    return part(b"state"), part(b"nonce"), part(b"verifier")


def _one(request: web.Request, name: str) -> str:
    """A parameter that is there once, else ""."""
    values = request.query.getall(name, [])
    return values[0] if len(values) == 1 else ""
