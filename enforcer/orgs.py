"""Orgs over HTTP: what is set for them, what they have, and their journals."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from api import shapes
from api.conditions import GIVES_ETAG, IfMatch, etag, if_match
from api.routes import Operation, Route
from api.types import AskedTime, MaybeLimit, Ordered, Page, Paging, is_given, said
from enforcer.access import ADMIN, SEE, token_of
from enforcer.bodies import amount, answer, paging, read_json, required_name, time
from enforcer.headers import caller, newest_first
from enforcer.problems import Problem
from ledger.audit import CHANGES, SIGN_INS
from ledger.errors import UnknownOrg
from ledger.journal import JOURNAL_TYPES, JournalFilter, audit_page, journal_page
from ledger.shapes import balance_shape, org_shape
from ledger.store import Ledger

_CHOICES: Final = {"mode": ("enforce", "shadow", "off"), "then": ("block", "suspend", "stop")}
_NUMBERS: Final = ("warn_hours_left", "grace_minutes")
_NUMBER_MAX: Final = 999_999
Policy = Annotated[
    dict[str, Any],
    said(
        description="What is otherwise for this org than in the settings; null or left out: as they say. Replaced as a "
        "whole. Names that begin with `x-` are yours.",
        properties={name: {"enum": [*known, None]} for name, known in _CHOICES.items()}
        | {name: {"type": ["number", "null"], "minimum": 0, "maximum": _NUMBER_MAX} for name in _NUMBERS},
        patternProperties={"^x-": {}},
        additionalProperties=False,
    ),
]
_CONTACT_MAX: Final = 500
_TYPES: Final = f"Of a journal: {', '.join(JOURNAL_TYPES)}. Of the audit: {', '.join((*CHANGES, *SIGN_INS))}"


class OrgBody(msgspec.Struct, forbid_unknown_fields=True):
    """What may be said of an org; what is left out stays as it is."""

    unlimited: bool | None = None
    contact: Annotated[str, said(maxLength=500)] | None = None
    policy: Policy | None = None
    credit_line: MaybeLimit = msgspec.field(default_factory=msgspec.Raw)
    """How far below zero it may go; 0: not at all."""


class JournalQuery(Ordered):
    """Which entries; a page of some types may have fewer than `limit`, or none, and still a `next`."""

    type: Annotated[str, said(description=f"One or more types, by commas; none: all. {_TYPES}.")] | None = None
    since: AskedTime | None = msgspec.field(default=None, name="from")
    until: AskedTime | None = msgspec.field(default=None, name="to")


class OrgsApi:
    """What admins set, and what those of an org see."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[Route]:
        org = "/v1/orgs/{org}"
        listed = Operation("orgs", Page[shapes.Balance], query=Paging)
        get = Operation("orgs", shapes.OrgSettings, gives=GIVES_ETAG)
        put = Operation(
            "orgs", shapes.Org, OrgBody, headers=IfMatch, statuses=(200, 201), problems=(412,), gives=GIVES_ETAG,
            example={"contact": "ops@acme.example"},
        )  # fmt: skip
        journal = Operation("orgs", Page[shapes.JournalEntry], query=JournalQuery)
        return [
            Route("GET", "/v1/orgs", self.list_orgs, SEE, about=listed),
            Route("GET", org, self.get_org, SEE, about=get),
            Route("PUT", org, self.put_org, (ADMIN,), about=put),
            Route("GET", f"{org}/balance", self.balance, SEE, about=Operation("orgs", shapes.Balance)),
            Route("GET", f"{org}/journal", self.journal, SEE, about=journal),
            Route("GET", "/v1/audit", self.audit, (ADMIN,), about=journal._replace(tag="tokens")),
        ]

    async def list_orgs(self, request: web.Request) -> web.Response:
        """Balances of the orgs that the caller may see, by name."""
        limit, cursor = paging(request)
        token = token_of(request)
        names = await self._ledger.accounts.orgs() if token.org is None else [token.org]
        names = [name for name in names if cursor is None or name > cursor]
        items = []
        for name in names[:limit]:
            try:
                items.append(balance_shape(await self._ledger.accounts.balance(name)))
            except UnknownOrg:
                continue
        return answer({"items": items, "next": names[limit - 1] if len(names) > limit else None})

    async def get_org(self, request: web.Request) -> web.Response:
        """What is set for an org."""
        found = await self._ledger.accounts.balance(request.match_info["org"])
        return answer(org_shape(found), headers=etag(found.revision))

    async def put_org(self, request: web.Request) -> web.Response:
        """Creates an org, or edits what is set for it."""
        org = required_name("org", request.match_info["org"])
        body = await read_json(request, OrgBody)
        if body.contact is not None and (len(body.contact) > _CONTACT_MAX or not body.contact.isprintable()):
            raise Problem(422, "invalid", f"contact: expected at most {_CONTACT_MAX} printable characters")
        _check_policy(body.policy or {})
        done = await self._ledger.accounts.upsert(
            org,
            **caller(request),
            if_revision=if_match(request),
            unlimited=body.unlimited,
            contact=body.contact,
            policy=body.policy,
            credit_line_micro=amount("credit_line", body.credit_line) if is_given(body.credit_line) else None,
        )
        after = await self._ledger.accounts.balance(org)
        shape = {**balance_shape(after), **org_shape(after)}
        return answer(shape, 201 if done == "created" else 200, etag(after.revision))

    async def balance(self, request: web.Request) -> web.Response:
        """What an org has, all of one instant."""
        return answer(balance_shape(await self._ledger.accounts.balance(request.match_info["org"])))

    async def journal(self, request: web.Request) -> web.Response:
        """What moved credits or changed limits, and what was refused, in the order it happened."""
        limit, cursor = paging(request)
        items, after = await journal_page(
            self._ledger, request.match_info["org"], cursor, limit, _journal_filter(request)
        )
        return answer({"items": items, "next": after})

    async def audit(self, request: web.Request) -> web.Response:
        """Changes that concern no org: tokens that were made and revoked, and rates that were put into force."""
        limit, cursor = paging(request)
        items, after = await audit_page(self._ledger, cursor, limit, _journal_filter(request))
        return answer({"items": items, "next": after})


def _check_policy(policy: dict[str, Any]) -> None:
    """Raises: Problem 422: what is misspelled would be passed over without a word."""
    for name, value in policy.items():
        if name in _CHOICES:
            if value not in (None, *_CHOICES[name]):
                raise Problem(422, "invalid", f"policy.{name}: {value!r:.40} is none of {', '.join(_CHOICES[name])}")
        elif name in _NUMBERS:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 <= value <= _NUMBER_MAX):
                raise Problem(422, "invalid", f"policy.{name}: {value!r:.40} is not a number from 0 to {_NUMBER_MAX}")
        elif not name.startswith("x-"):
            known = ", ".join((*_CHOICES, *_NUMBERS))
            raise Problem(422, "invalid", f"policy: {name!r:.80} is none of {known}; a name of your own begins with x-")


def _journal_filter(request: web.Request) -> JournalFilter:
    """Raises: Problem 422."""
    asked = request.query
    types = frozenset(name for name in asked.get("type", "").split(",") if name)
    since, until = (time(name, asked.get(name) or None) for name in ("from", "to"))
    return JournalFilter(types, since, until, newest_first(request))
