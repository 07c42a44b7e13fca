"""Tokens: who may call, making one, which is shown once, and revoking one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aiohttp import web

from console.desk import Desk, page_number
from console.moments import read_moment
from console.refused import beside
from ledger.errors import InvalidRequest, LastAdmin, UnknownOrg
from ledger.tokens import NOTE_MAX, ORG_ROLES, ROLES, Token

_AT_ONCE: Final = 100
_EMPTY: Final = {"role": "viewer", "org": "", "note": "", "expires_at": ""}
ROLE_TITLES: Final = (
    ("viewer", "Viewer: sees one org"), ("owner", "Owner: sees one org, buys, sets its budgets"),
    ("scheduler", "Scheduler: admits work"), ("admin", "Administrator: everything"),
)  # fmt: skip


class TokenPages:
    """The list with its form, and the page that asks before one is revoked."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """Raises: LedgerUnavailable."""
        return await self._list(request, _EMPTY, {})

    async def create(self, request: web.Request) -> web.Response:
        """Makes a token and shows it, this once. Raises: web.HTTPForbidden, LedgerUnavailable."""
        form = await self._desk.pages.sessions.check_csrf(request)
        values = {name: form.get(name, "").strip() for name in _EMPTY}
        errors: dict[str, str] = {}
        expires = None
        if values["role"] not in ROLES:
            errors["role"] = "Choose one of these."
        if values["role"] in ORG_ROLES and not values["org"]:
            errors["org"] = "Which org is it for?"
        elif values["role"] == "admin" and values["org"]:
            errors["org"] = "An administrator is one of all orgs: leave it empty."
        try:
            expires = read_moment(values["expires_at"], self._desk.pages.zone(request))
        except ValueError as error:
            errors["expires_at"] = str(error)
        if not errors:
            try:
                # Asked first: a token that was made has to be shown, whatever happens then.
                is_known = not values["org"] or await self._is_known(values["org"])
                record, token = await self._desk.ledger.tokens.create(
                    values["role"], values["org"] or None, expires_us=expires, note=values["note"][:NOTE_MAX],
                    **self._desk.signed(request),
                )  # fmt: skip
                return self._desk.pages.render(
                    request, "token_made.html", status=201, record=record, token=token, is_known=is_known
                )  # fmt: skip
            except InvalidRequest as error:
                field, text = beside(error, {name: name for name in values})
                errors[field] = text
        return await self._list(request, values, errors)

    async def _is_known(self, org: str) -> bool:
        try:
            await self._desk.ledger.accounts.balance(org)
        except UnknownOrg:
            return False
        return True

    async def ask(self, request: web.Request) -> web.Response:
        """Asks before a token is revoked. Raises: web.HTTPNotFound where there is none (any more)."""
        record = await self._find(request.query.get("id", ""))
        return self._desk.pages.render(
            request, "token_revoke.html", record=record, is_own=record.id == self._desk.caller(request).id
        )  # fmt: skip

    async def revoke(self, request: web.Request) -> web.Response:
        """Raises: web.HTTPForbidden; web.HTTPNotFound where there is none (any more)."""
        form = await self._desk.pages.sessions.check_csrf(request)
        record = await self._find(form.get("id", ""))
        try:
            await self._desk.ledger.tokens.revoke(record.id, **self._desk.signed(request), keep_admin=True)
        except LastAdmin as error:
            return await self._list(request, _EMPTY, {"": str(error)}, 409)
        said = f"Token {record.id} is revoked. It ends in every enforcer within 5 seconds, and its sessions now."
        return self._desk.pages.redirect(request, "/console/tokens", said)

    async def _find(self, token_id: str) -> Token:
        record = await self._desk.ledger.tokens.get(token_id) if token_id else None
        if record is None:
            raise web.HTTPNotFound(text="There is no such token (any more).")
        return record

    async def _list(
        self, request: web.Request, values: Mapping[str, str], errors: Mapping[str, str], status: int = 422
    ) -> web.Response:
        tokens = (await self._desk.ledger.tokens.list())[::-1]
        number = page_number(request)
        start = (number - 1) * _AT_ONCE
        return self._desk.pages.render(
            request, "tokens.html", status=status if errors else 200, tokens=tokens[start : start + _AT_ONCE],
            count=len(tokens), start=start, values=values, errors=errors, roles=ROLE_TITLES,
            now=self._desk.ledger.clock(), own=self._desk.caller(request).id,
            first_page="?page=1" if number > 1 else None,
            next_page=f"?page={number + 1}" if len(tokens) > start + _AT_ONCE else None,
        )  # fmt: skip
