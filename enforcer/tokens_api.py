"""Tokens over HTTP: admins make any, owners those of their own org that can do no more than theirs."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from api import shapes
from api.routes import Operation, Route
from api.types import AskedTime, Name, Page, Paging, said
from enforcer.access import ADMIN, OWNER, VIEWER, token_of
from enforcer.bodies import answer, paging, read_json, required_name, time
from enforcer.headers import caller
from enforcer.problems import Problem
from ledger.clock import format_time
from ledger.store import Ledger
from ledger.tokens import NOTE_MAX, ROLES, Token, token_shape

_EDIT: Final = (ADMIN, OWNER)
_OWN_ROLES: Final = (OWNER, VIEWER)
"""Roles of the tokens that owners make and revoke; those of hooks are admins'."""
TokenId = Annotated[str, said(minLength=1, maxLength=64, examples=["5f0d9c1a2b3c4d5e"])]


class TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    """A token that is to be made. An owner's `org` may be left out."""

    role: Annotated[str, said(enum=list(ROLES))]
    org: Name | None = None
    expires_at: AskedTime | None = None
    note: Annotated[str, said(maxLength=NOTE_MAX)] = ""


class TokensApi:
    """Who may call. Everything is audited."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[Route]:
        listed = Operation("tokens", Page[shapes.Token], query=Paging)
        create = Operation(
            "tokens", shapes.NewToken, TokenBody, statuses=(201,),
            example={"role": "viewer", "org": "acme", "expires_at": "2027-12-31T00:00:00Z", "note": "dashboard"},
        )  # fmt: skip
        revoke = Operation("tokens", statuses=(204,), problems=(409,), path={"token": TokenId})
        return [
            Route("GET", "/v1/tokens", self.list_tokens, _EDIT, about=listed),
            Route("POST", "/v1/tokens", self.create, _EDIT, about=create),
            Route("DELETE", "/v1/tokens/{token}", self.revoke, _EDIT, about=revoke),
        ]

    async def list_tokens(self, request: web.Request) -> web.Response:
        """Tokens that were made and not revoked, oldest first: all of them, or those of an owner's org."""
        limit, cursor = paging(request)
        own = token_of(request).org
        found = [item for item in await self._ledger.tokens.list() if own is None or item[0].org == own]
        ids = [record.id for record, _ in found]
        if cursor is not None and cursor not in ids:
            raise Problem(422, "invalid", f"cursor: {cursor!r:.60} is not one that was given here")
        rest = found if cursor is None else found[ids.index(cursor) + 1 :]
        items = [token_shape(record, used) for record, used in rest[:limit]]
        return answer({"items": items, "next": items[-1]["id"] if len(rest) > limit else None})

    async def create(self, request: web.Request) -> web.Response:
        """Makes a token, which is shown this once.

        Owners make owner's and viewer's tokens of their own org, which end when theirs does, or earlier.
        """
        body = await read_json(request, TokenBody)
        if body.org is not None:
            required_name("org", body.org)
        if len(body.note) > NOTE_MAX:
            raise Problem(422, "invalid", f"note: expected at most {NOTE_MAX} characters")
        expires_us = time("expires_at", body.expires_at)
        org, expires_us = _allowed(token_of(request), body, expires_us)
        record, secret = await self._ledger.tokens.create(
            body.role, org, expires_us=expires_us, note=body.note, **caller(request)
        )
        return answer(new_token_shape(record, secret), 201, {"Cache-Control": "no-store"})

    async def revoke(self, request: web.Request) -> web.Response:
        """Makes a token invalid; every enforcer knows within seconds.

        The last valid token of role admin stays: it is revoked on the command line.
        """
        token_id, own = request.match_info["token"], token_of(request)
        record = await self._ledger.tokens.get(token_id)
        is_theirs = record is not None and (own.org is None or record.org == own.org)
        if record is None or not is_theirs:
            raise Problem(404, "unknown_token", "There is no such token.")
        if own.role != ADMIN and record.role not in _OWN_ROLES:
            raise Problem(403, "forbidden", f"A token of role {own.role} may not revoke one of role {record.role}.")
        if not await self._ledger.tokens.revoke(token_id, **caller(request), keep_admin=True):
            raise Problem(404, "unknown_token", "There is no such token.")
        return web.Response(status=204)


def _allowed(own: Token, body: TokenBody, expires_us: int | None) -> tuple[str | None, int | None]:
    """(org, expiry) of a token that somebody with a token of his own may make. Raises: Problem 403, 422."""
    if own.role == ADMIN:
        return body.org, expires_us
    if body.role not in ROLES:
        raise Problem(422, "invalid", f"role: {body.role!r:.40} is none of {', '.join(ROLES)}")
    if body.role not in _OWN_ROLES:
        raise Problem(403, "forbidden", f"An owner makes tokens of the roles {', '.join(_OWN_ROLES)} only.")
    if body.org not in (None, own.org):
        raise Problem(403, "forbidden", f"This token is for org {own.org} only.")
    if own.expires_us is not None and expires_us is not None and expires_us > own.expires_us:
        until = format_time(own.expires_us)
        raise Problem(422, "invalid", f"expires_at: expected {until} at the latest, when the token that asks ends")
    return own.org, own.expires_us if expires_us is None else expires_us


def new_token_shape(record: Token, secret: str) -> dict[str, Any]:
    """A token as it is made: with what it is used by."""
    return {
        "id": record.id,
        "role": record.role,
        "org": record.org,
        "token": secret,
        "expires_at": record.expires_at,
    }
