"""Who may call what: bearer tokens, sessions of the console, and their roles."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from aiohttp import web
from aiohttp.hdrs import AUTHORIZATION

from api.routes import Handler, Route, names_of
from enforcer.bodies import required_name
from enforcer.callers import Callers
from enforcer.failures import Failures
from enforcer.parameters import checked
from enforcer.problems import ErrorPage, Problem
from ledger.tokens import Token

CALLER: Final = web.RequestKey("caller", Token)
"""Where a handler finds the caller's `Token` in its request."""
ADMIN, OWNER, VIEWER, SCHEDULER = "admin", "owner", "viewer", "scheduler"
SIGN_IN: Final = "/console/sign-in"
SEE: Final = (ADMIN, OWNER, VIEWER)
"""Everybody who may see an org."""
CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="credits"'}


class ConsoleSide(NamedTuple):
    """What the console knows and the enforcer does not: who signed in, how an error looks, and its own routes."""

    identify: Callable[[web.Request], Awaitable[Token | None]]
    error_page: ErrorPage
    routes: Iterable[Route] = ()


class Guard:
    """Puts routes behind their roles. A session is looked up within `seconds`."""

    def __init__(
        self, callers: Callers, seconds: float, failures: Failures, console: ConsoleSide | None = None
    ) -> None:  # fmt: skip
        self._callers = callers
        self._seconds = seconds
        self._failures = failures
        self._console = console

    def guarded(self, route: Route) -> Handler:
        """The route's handler, to which only those come who may."""
        if route.roles is None:
            return route.handler
        if route.via == "session":
            return self._by_session(route)
        return self._by_token(route)

    def _by_token(self, route: Route) -> Handler:
        known, handler, may_call = self._callers.known, checked(route), _rule(route)
        # What schedulers ask is answered in time, and also while the ledger is away.
        find = self._callers.find_in_time if SCHEDULER in (route.roles or ()) else self._callers.find

        async def check(request: web.Request) -> web.StreamResponse:
            scheme, _, credential = request.headers.get(AUTHORIZATION, "").partition(" ")
            if scheme.lower() != "bearer" or not credential:
                raise Problem(401, "unauthorized", "A token is needed: Authorization: Bearer act_...", CHALLENGE)
            token = known(credential) or self._somebody(request, await find(request, credential))
            may_call(token, request)
            request[CALLER] = token
            return await handler(request)

        return check

    def _by_session(self, route: Route) -> Handler:
        assert self._console is not None, "a session is known by the console, which is not served here"
        identify, handler, may_call = self._console.identify, route.handler, _rule(route)

        async def check(request: web.Request) -> web.StreamResponse:
            async with asyncio.timeout(self._seconds):
                token = await identify(request)
            if token is None:
                if request.method not in ("GET", "HEAD"):
                    raise Problem(403, "not_signed_in", "You are not signed in any more. Sign in, then do it again.")
                raise web.HTTPSeeOther(f"{SIGN_IN}?next={quote(request.rel_url.raw_path_qs, safe='/')}")
            may_call(token, request)
            request[CALLER] = token
            return await handler(request)

        return check

    def _somebody(self, request: web.Request, token: Token | None) -> Token:
        """The token that was found for a credential.

        Raises: Problem 401 where there is none, 429 where too many of those came from the same address. A valid
            token is never refused for that: others behind the same proxy go on working.
        """
        if token is None:
            self._failures.refuse(request.remote)
            raise Problem(401, "unauthorized", "This token is not known, expired or revoked.", CHALLENGE)
        return token


def _rule(route: Route) -> Callable[[Token, web.Request], None]:
    """What is checked of each caller: the role, the org in the path, and that names in the path are names.

    Whether something is a name is said only to those who may ask about it. Raises: Problem 403, 422.
    """
    roles, parts = route.roles or (), names_of(route)

    def check(token: Token, request: web.Request) -> None:
        if token.role not in roles:
            raise Problem(403, "forbidden", f"A token of role {token.role} may not do this.")
        if not parts:
            return
        found = request.match_info
        if "org" in parts:
            check_org(token, found["org"])
        for part in parts:
            value = required_name(part, found[part])
            if "%" in value:
                _check_decoded(request.rel_url.raw_path)

    return check


def _check_decoded(raw_path: str) -> None:
    """What is not UTF-8 is left as it was sent, another way to write the name `%FF`. Raises: Problem 400."""
    try:
        unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        raise Problem(400, "bad_request", "The path is not UTF-8.") from None


def check_org(token: Token, org: str) -> None:
    """Raises: Problem 403 where the token is another org's; whether that org is there is not said."""
    if token.org is not None and token.org != org:
        raise Problem(403, "forbidden", f"This token is for org {token.org} only.")


def token_of(request: web.Request) -> Token:
    """The caller's token, in a guarded handler."""
    token: Token = request[CALLER]
    return token
