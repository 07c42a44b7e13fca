"""Grants over HTTP."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import web

from api import shapes
from api.routes import Operation, Route
from api.types import AskedCredits, AskedTime, IdempotencyKey, Name, said
from enforcer.access import ADMIN
from enforcer.bodies import amount, answer, read_json, required_name, time
from enforcer.headers import GIVES_REPLAYED, caller, idempotency_key, replayed
from enforcer.problems import Problem
from ledger.accounts import GRANT_SOURCES
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


class GrantsApi:
    """Credits that are given."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[Route]:
        grants = "/v1/orgs/{org}/grants"
        grant = Operation(
            "orgs", shapes.Grant, GrantBody, headers=IdempotencyKey, statuses=(201,), problems=(409,),
            gives=GIVES_REPLAYED,
            example={"credits": "1000", "reason": "Invoice 2026-11", "expires_at": "2027-12-31T00:00:00Z"},
        )  # fmt: skip
        return [Route("POST", grants, self.grant, (ADMIN,), about=grant)]

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
