"""Preferences of notices over HTTP: whom an org has told of what."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from api import shapes
from api.conditions import GIVES_ETAG, IfMatch, etag, if_match
from api.routes import Operation, Route
from api.types import said
from config.notices import NoticeSettings
from enforcer.access import ADMIN, OWNER, SEE, token_of
from enforcer.bodies import answer, read_json
from enforcer.headers import caller
from enforcer.problems import Problem
from ledger.notice_prefs import (
    EMAILS_MAX,
    KINDS,
    RUNWAY_HOURS_MAX,
    NoticePreferences,
    Preferences,
    preferences_shape,
    test_event,
    wanted_hook,
    why_nobody,
)
from ledger.store import Ledger

_EDIT = (ADMIN, OWNER)


class HookBody(msgspec.Struct, forbid_unknown_fields=True):
    """A webhook. Without a `secret` that of the same URL stays; for another URL one is made and shown once."""

    url: Annotated[str, said(format="uri", maxLength=500, examples=["https://hooks.example.org/credits"])]
    secret: Annotated[str, said(minLength=16, maxLength=200)] | None = None


class NoticesBody(msgspec.Struct, forbid_unknown_fields=True):
    """All preferences; what is left out has its default. Nobody is told where there is neither address nor webhook."""

    email: Annotated[tuple[str, ...], said(maxItems=EMAILS_MAX, examples=[["ops@example.org"]])] = ()
    kinds: Annotated[tuple[str, ...], said(items={"type": "string", "enum": list(KINDS)})] = KINDS
    runway_hours: Annotated[float, said(minimum=0, maximum=RUNWAY_HOURS_MAX)] = 24.0
    webhook: HookBody | None = None


class NoticesApi:
    """What admins and owners say of notices."""

    def __init__(self, ledger: Ledger, settings: NoticeSettings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._preferences = NoticePreferences(ledger.client, ledger.scripts, ledger.clock)

    def routes(self) -> list[Route]:
        path = "/v1/orgs/{org}/notices"
        get = Operation("notices", shapes.NoticePreferences, gives=GIVES_ETAG)
        put = get._replace(
            body=NoticesBody, headers=IfMatch, problems=(412,),
            example={"email": ["ops@example.org"], "kinds": ["stage", "runway", "top_up"], "runway_hours": 48},
        )  # fmt: skip
        test = Operation("notices", shapes.NoticeTest, statuses=(202,), problems=(409,))
        return [
            Route("GET", path, self.get, SEE, about=get),
            Route("PUT", path, self.put, _EDIT, about=put),
            Route("POST", f"{path}/test", self.test, _EDIT, about=test),
        ]

    async def get(self, request: web.Request) -> web.Response:
        """Whom an org has told of what."""
        org = await self._known(request)
        found = await self._preferences.read(org)
        return answer(preferences_shape(org, found), headers=etag(found.revision))

    async def put(self, request: web.Request) -> web.Response:
        """Sets all preferences of an org."""
        org = await self._known(request)
        body = await read_json(request, NoticesBody)
        before = await self._preferences.read(org)
        hook, is_new = None, False
        if body.webhook is not None:
            hook, is_new = wanted_hook(body.webhook.url, body.webhook.secret, before, self._settings.private_webhooks)
        wanted = Preferences(body.email, tuple(dict.fromkeys(body.kinds)), body.runway_hours, hook)
        after = await self._preferences.put(org, wanted, **caller(request), if_revision=if_match(request))
        shape: dict[str, Any] = preferences_shape(org, after)
        if hook is not None and is_new:
            shape["webhook"]["secret"] = hook.secret
        return answer(shape, headers=etag(after.revision))

    async def test(self, request: web.Request) -> web.Response:
        """Sends a test to everybody who is told."""
        org = await self._known(request)
        wanted = await self._preferences.read(org)
        has_mail = self._settings.smtp is not None
        if nobody := why_nobody(org, wanted, has_mail):
            raise Problem(409, "nobody_to_tell", nobody)
        event = test_event(org, token_of(request).who, self._ledger.clock())
        await self._ledger.notices.note(event)
        url = None if wanted.webhook is None else wanted.webhook.url
        return answer({"event": event["event"], "email": list(wanted.email) if has_mail else [], "webhook": url}, 202)

    async def _known(self, request: web.Request) -> str:
        org = request.match_info["org"]
        await self._ledger.accounts.balance(org)  # says it where there is no such org
        return org
