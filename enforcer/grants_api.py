"""Grants and their corrections over HTTP."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from api import shapes
from api.routes import Operation, Route
from api.types import AskedChange, AskedCredits, AskedTime, IdempotencyKey, Name, Ordered, Page, said
from enforcer.access import ADMIN, SEE
from enforcer.bodies import amount, answer, paging, read_json, required_name, time
from enforcer.headers import GIVES_REPLAYED, caller, idempotency_key, newest_first, replayed
from enforcer.problems import Problem
from ledger.accounts import GRANT_SOURCES
from ledger.corrections import REASON_MAX, correction_shape
from ledger.grant_list import grant_state_shape, grants_page
from ledger.scopes import NAMES_MAX
from ledger.shapes import grant_shape
from ledger.store import Ledger


class OnlyBody(msgspec.Struct, forbid_unknown_fields=True):
    """For which work a grant pays: on one of these presets, in one of these clusters; an empty list: any."""

    presets: Annotated[list[Name], said(maxItems=NAMES_MAX)] = []
    clusters: Annotated[list[Name], said(maxItems=NAMES_MAX)] = []


class GrantBody(msgspec.Struct, forbid_unknown_fields=True):
    """Amounts are decimals: as text, or as JSON numbers, which are read as decimals too."""

    credits: AskedCredits
    reason: str = ""
    source: Annotated[str, said(enum=list(GRANT_SOURCES))] = "provision"
    effective_at: AskedTime | None = None
    expires_at: AskedTime | None = None
    purpose: str = ""
    only: OnlyBody | None = None


class CorrectionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Credits to give, or to take back where they are below 0."""

    credits: AskedChange
    corrects: Annotated[
        str, said(minLength=1, maxLength=300, description="Key of a grant, or id of a journal entry or a workload.")
    ]
    reason: Annotated[str, said(minLength=1, maxLength=REASON_MAX)]


class GrantsApi:
    """Credits that are given, and given or taken back for a reason."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[Route]:
        grants = "/v1/orgs/{org}/grants"
        grant = Operation(
            "orgs", shapes.Grant, GrantBody, headers=IdempotencyKey, statuses=(201,), problems=(409,),
            gives=GIVES_REPLAYED,
            example={"credits": "1000", "reason": "Invoice 2026-11", "expires_at": "2027-12-31T00:00:00Z"},
        )  # fmt: skip
        listed = Operation("orgs", Page[shapes.GrantState], query=Ordered)
        correct = Operation(
            "orgs", shapes.Correction, CorrectionBody, headers=IdempotencyKey, statuses=(201,), problems=(409,),
            gives=GIVES_REPLAYED,
            example={"credits": "-900", "corrects": "invoice-2026-11", "reason": "1000 typed for 100"},
        )  # fmt: skip
        return [
            Route("GET", grants, self.list_grants, SEE, about=listed),
            Route("POST", grants, self.grant, (ADMIN,), about=grant),
            Route("POST", "/v1/orgs/{org}/corrections", self.correct, (ADMIN,), about=correct),
        ]

    async def list_grants(self, request: web.Request) -> web.Response:
        """All grants of an org, what is left of each, and whether it counts now."""
        limit, cursor = paging(request)
        org = request.match_info["org"]
        found, after = await grants_page(self._ledger, org, cursor, limit, newest_first=newest_first(request))
        return answer({"items": [grant_state_shape(org, one) for one in found], "next": after})

    async def grant(self, request: web.Request) -> web.Response:
        """Gives credits to an org. The same key answers the same again, for ever."""
        org = required_name("org", request.match_info["org"])
        key = idempotency_key(request)
        body = await read_json(request, GrantBody)
        only = body.only or OnlyBody()
        if body.only is not None and not (only.presets or only.clusters):
            raise Problem(
                422, "invalid", "only: name a preset or a cluster, or leave it out: then it pays for any work."
            )
        receipt = await self._ledger.accounts.grant(
            org, amount("credits", body.credits), key=key, **caller(request), source=body.source,
            reason=body.reason[:1000], effective_us=time("effective_at", body.effective_at),
            expires_us=time("expires_at", body.expires_at), purpose=body.purpose[:1000], presets=only.presets,
            clusters=only.clusters,
        )  # fmt: skip
        shape = grant_shape(org, receipt)
        return answer(shape, 201, replayed(shape.pop("replayed")))

    async def correct(self, request: web.Request) -> web.Response:
        """Gives credits or takes them back, because a grant, an entry or a charge was wrong.

        What is taken back comes from the corrected grant, then from those in force, the soonest to expire first; the
        rest is an overdraft. A grant can be corrected down to 0 in all, not below.
        """
        org = request.match_info["org"]
        key = idempotency_key(request)
        body = await read_json(request, CorrectionBody)
        await self._ledger.accounts.balance(org)  # says it when there is no such org
        receipt = await self._ledger.corrections.correct(
            org, amount("credits", body.credits), corrects=body.corrects, key=key, reason=body.reason, **caller(request)
        )
        return answer(correction_shape(org, receipt.record), 201, replayed(receipt.replayed))
