"""Signing in by token, signing out, and choosing in which role to go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote

from aiohttp import web

from api.routes import Route
from config.console import ROLES
from console.pages import Pages, org_url
from console.places import HOME, SIGN_IN, safe_next
from console.sessions import Sessions
from ledger.audit import Audit
from ledger.sessions import EVERYBODY, Session
from ledger.tokens import Tokens

log = logging.getLogger(__name__)
_TOKEN_MAX: Final = 128
_UNSAFE: Final = (
    "This page was reached over http from another machine, so a token would be readable on the way. Reach it by https: "
    "set enforcer.tls or, behind a proxy that does https, console.public_url in the settings."
)
_NONE: Final = "This token is not known, expired or revoked. Check that it was copied as a whole: it starts with act_."
_SCHEDULER: Final = (
    "This is a scheduler's token, which only admits work. Sign in with a token of role owner or viewer of your org, "
    "or of role admin."
)
_MANY: Final = "Too many tokens from this address were none. Try again in {seconds} s."


class Failures(Protocol):
    """How often an address may show a token that is none."""

    def check(self, address: str | None) -> int:
        """Whole seconds to wait, 0: may try."""

    def failed(self, address: str | None) -> None:
        """One more failure."""


@dataclass(frozen=True, slots=True)
class Door:
    """What signing in has to do with, by token and through a provider. `provider`: what its button says; None: none."""

    pages: Pages
    sessions: Sessions
    tokens: Tokens
    failures: Failures
    audit: Audit
    address_of: Callable[[web.Request], str | None]
    provider: str | None = None

    async def note(self, kind: str, who: str, request: web.Request, **facts: str | None) -> None:
        """For the audit. Raises: LedgerUnavailable."""
        await self.audit.add(kind, who, self.address_of(request), **facts)

    async def enter(self, request: web.Request, session: Session, after: str) -> web.Response:
        """Signs in, and goes on to a page (a safe one, see `safe_next`)."""
        is_chosen = bool(session.digest) or session.chosen is not None
        where = after if is_chosen else _choose_url(after)
        response = self.pages.redirect(request, where)
        await self.sessions.begin(request, response, session)
        return response

    def page(self, request: web.Request, after: str, error: str = "", status: int = 200) -> web.Response:
        """The sign-in page, with what went wrong."""
        if not self.sessions.may_sign_in(request):
            error, status = error or _UNSAFE, 400 if status == 200 else status
        return self.pages.render(
            request, "sign_in.html", status=status, after=after, error=error, provider=self.provider
        )  # fmt: skip


class SignIn:
    """The pages of signing in and out."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._pages = door.pages
        self._sessions = door.sessions

    def calls(self) -> list[Route]:
        """All calls; those without roles look at the session themselves."""
        return [
            Route("GET", "/", self.home, ROLES, "session"),
            Route("GET", "/console", self.home, ROLES, "session"),
            Route("GET", "/console/", self.home, ROLES, "session"),
            Route("GET", SIGN_IN, self.show, None, "session"),
            Route("POST", SIGN_IN, self.by_token, None, "session"),
            Route("POST", "/console/sign-out", self.sign_out, None, "session"),
            Route("GET", "/console/choose", self.choices, None, "session"),
            Route("POST", "/console/choose", self.choose, None, "session"),
            Route("GET", "/console/session", self.session, ROLES, "session"),
        ]

    async def home(self, request: web.Request) -> web.Response:
        """To the orgs, or to the caller's own."""
        org = self._pages.token_of(request).org
        return self._pages.redirect(request, "/console/orgs" if org is None else org_url(org))

    async def show(self, request: web.Request) -> web.Response:
        """The form; who is signed in goes on at once."""
        after = safe_next(request.query.get("next", ""))
        session = await self._sessions.current(request)
        if session is not None and session.choices and session.chosen is None:
            return self._pages.redirect(request, _choose_url(after))
        if session is not None and await self._sessions.store.caller(session) is not None:
            return self._pages.redirect(request, after)
        return self._door.page(request, after)

    async def by_token(self, request: web.Request) -> web.Response:
        """Signs in with a token."""
        form = await self._sessions.read_form(request)
        after = safe_next(form.get("next", ""))
        if not self._sessions.may_sign_in(request):
            return self._door.page(request, after)
        given = form.get("token", "").strip()
        token = await self._door.tokens.authenticate(given[: _TOKEN_MAX + 1])
        if token is None:
            return self._refuse(request, after)
        if token.role not in ROLES:
            return self._door.page(request, after, _SCHEDULER, 403)
        await self._door.note("signed_in", token.who, request)
        return await self._door.enter(request, self._sessions.store.of_token(token), after)

    def _refuse(self, request: web.Request, after: str) -> web.Response:
        failures = self._door.failures
        wait = failures.check(request.remote)
        if wait:
            page = self._door.page(request, after, _MANY.format(seconds=wait), 429)
            page.headers["Retry-After"] = str(wait)
            return page
        failures.failed(request.remote)
        log.warning("signing in from %s failed: no such token", request.remote)
        return self._door.page(request, after, _NONE, 403)

    async def sign_out(self, request: web.Request) -> web.Response:
        """Ends this session; with `whose`, all of the person's (`mine`), or of all (`everybody`, for admins)."""
        session = await self._sessions.current(request)
        if session is None:  # it ended by itself: what was wanted
            return self._pages.redirect(request, SIGN_IN)
        form = await self._sessions.check_csrf(request)
        kind, said, of = {
            "mine": ("signed_out_everywhere", "You are signed out everywhere.", session.person),
            "everybody": ("everybody_signed_out", "Everybody is signed out.", EVERYBODY),
        }.get(form.get("whose", ""), ("signed_out", "You are signed out.", None))
        if of == EVERYBODY:
            caller = await self._sessions.store.caller(session)
            if caller is None or caller.role != "admin":
                raise web.HTTPForbidden(text="Only an administrator may sign everybody out. Nothing was done.")
        await self._door.note(kind, _who(session), request)
        response = self._pages.redirect(request, SIGN_IN, said)
        await self._sessions.end(request, response, of=of)
        return response

    async def choices(self, request: web.Request) -> web.Response:
        """As whom somebody of several orgs may go on."""
        after = safe_next(request.query.get("next", ""))
        session = await self._sessions.current(request)
        if session is None or not session.choices:
            return self._pages.redirect(request, SIGN_IN)
        return self._pages.render(request, "choose.html", session=session, after=after)

    async def choose(self, request: web.Request) -> web.Response:
        """Goes on in a role, under a new session secret."""
        session = await self._sessions.current(request)
        if session is None:
            return self._pages.redirect(request, SIGN_IN)
        form = await self._sessions.check_csrf(request)
        text = form.get("role", "")
        if not text.isascii() or not text.isdigit() or len(text) > 3 or int(text) >= len(session.choices):
            raise web.HTTPUnprocessableEntity(text="That is none of the roles you may choose from.")
        response = self._pages.redirect(request, safe_next(form.get("next", "")))
        await self._sessions.choose(request, response, session, int(text))
        role, org = session.choices[int(text)]
        await self._door.note("role_chosen", _who(session), request, role=role, org=org)
        return response

    async def session(self, request: web.Request) -> web.Response:
        """Who is signed in here, until when, and how to end that."""
        session = await self._sessions.current(request)
        if session is None:  # ended since the guard looked
            return self._pages.redirect(request, SIGN_IN)
        return self._pages.render(request, "session.html", session=session, who=self._pages.token_of(request).who)


def _who(session: Session) -> str:
    return f"sso:{session.name}" if session.name else session.person


def _choose_url(after: str) -> str:
    return "/console/choose" if after == HOME else f"/console/choose?next={quote(after, safe='/')}"
