"""Who may call what: bearer tokens and their roles."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, NamedTuple

from aiohttp import web

from enforcer.problems import Handler, Problem
from ledger.tokens import Token, Tokens

CALLER: Final = web.RequestKey("caller", Token)
"""Where a handler finds the caller's `Token` in its request."""
ADMIN, OWNER, VIEWER, SCHEDULER = "admin", "owner", "viewer", "scheduler"
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="credits"'}


class Route(NamedTuple):
    """One call. `roles` None: open to everyone. `via`: `token` (bearer), or `session` (a cookie of the console)."""

    method: str
    path: str
    handler: Handler
    roles: Collection[str] | None
    via: str = "token"


def guarded(route: Route, tokens: Tokens, seconds: float) -> Handler:
    """The route's handler behind its roles; a token is looked up within `seconds`."""
    roles, handler = route.roles, route.handler
    if roles is None:
        return handler

    async def check(request: web.Request) -> web.StreamResponse:
        scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise Problem(401, "unauthorized", "A token is needed: Authorization: Bearer act_...", _CHALLENGE)
        token = tokens.known(credential)
        if token is None:
            async with asyncio.timeout(seconds):
                token = await tokens.authenticate(credential.strip())
        if token is None:
            raise Problem(401, "unauthorized", "This token is not known, expired or revoked.", _CHALLENGE)
        if token.role not in roles:
            raise Problem(403, "forbidden", f"A token of role {token.role} may not do this.")
        org = request.match_info.get("org")
        if org is not None:
            check_org(token, org)
        request[CALLER] = token
        return await handler(request)

    return check


def check_org(token: Token, org: str) -> None:
    """Raises: Problem 403 where the token is another org's; whether that org is there is not said."""
    if token.org is not None and token.org != org:
        raise Problem(403, "forbidden", f"This token is for org {token.org} only.")


def token_of(request: web.Request) -> Token:
    """The caller's token, in a guarded handler."""
    token: Token = request[CALLER]
    return token
