"""`/v1/admission`, `/v1/quote` and release, over HTTP."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Annotated

import msgspec
from aiohttp import web

from api import shapes
from api.routes import Operation, Route
from api.types import HoldId, Name, said
from enforcer.access import ADMIN, OWNER, SCHEDULER, VIEWER, check_org, token_of
from enforcer.admission.desk import Desk
from enforcer.answers import Answer
from enforcer.bodies import answer, name, read_json, required_name
from enforcer.callers import WAITED
from enforcer.problems import Problem
from ledger.admission import AdmissionRequest
from ledger.admission_request import COUNT_MAX, RUNTIME_SECONDS_MAX
from ledger.admission_shapes import decision_shape, quote_shape
from ledger.hold_ids import HOLD_ID_MAX, new_hold_id, org_of_hold


class AdmissionBody(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked of admission and quote alike."""

    cluster: Name
    org: Name
    project: Name | None = None
    user: Name | None = None
    kind: Annotated[str, said(enum=["job", "app"])] = "job"
    preset: Name | None = None
    app: Name | None = None
    workload_id: Name | None = None
    max_runtime_seconds: Annotated[int, said(minimum=1, maximum=RUNTIME_SECONDS_MAX)] | None = None
    count: Annotated[int, said(minimum=1, maximum=COUNT_MAX)] = 1
    dry_run: bool = False

    def request(self) -> AdmissionRequest:
        """Raises: Problem 422 naming the field that is wrong."""
        if self.kind not in ("job", "app"):
            raise Problem(422, "invalid", f"kind: {self.kind!r:.40} is neither 'job' nor 'app'")
        if not self.preset and not self.app:
            raise Problem(422, "invalid", "preset: is needed to know the rate (an app may name only its app)")
        seconds = self.max_runtime_seconds
        if seconds is not None and not 1 <= seconds <= RUNTIME_SECONDS_MAX:
            said = f"max_runtime_seconds: {seconds} is not from 1 to {RUNTIME_SECONDS_MAX}; null: no limit"
            raise Problem(422, "invalid", said)
        if not 1 <= self.count <= COUNT_MAX:
            raise Problem(422, "invalid", f"count: {self.count} is not from 1 to {COUNT_MAX}")
        cluster, org, project, user, preset, app = _names(
            self.cluster, self.org, self.project, self.user, self.preset, self.app
        )
        return AdmissionRequest(
            cluster=cluster,
            org=org,
            project=project,
            user=user,
            kind=self.kind,
            preset=preset,
            app=app,
            workload_id=name("workload_id", self.workload_id) or None,
            max_runtime_us=None if seconds is None else seconds * 1_000_000,
            count=self.count,
            dry_run=self.dry_run,
            hold_id=new_hold_id(org),
        )


@lru_cache(maxsize=4096)  # the same few users come again and again
def _names(
    cluster: str, org: str, project: str | None, user: str | None, preset: str | None, app: str | None
) -> tuple[str, str, str, str, str | None, str | None]:
    """As a request has them. Raises: Problem 422 naming the first that is none."""
    return (
        required_name("cluster", cluster), required_name("org", org), name("project", project), name("user", user),
        name("preset", preset) or None, name("app", app) or None,
    )  # fmt: skip


class AdmissionApi:
    """The calls of schedulers and of people before they submit."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def routes(self) -> list[Route]:
        job = {"cluster": "default", "org": "acme", "project": "vision", "user": "ann", "preset": "gpu-large"}
        admit = Operation("admission", shapes.Decision, AdmissionBody, example=job)
        quote = Operation("admission", shapes.Quote, AdmissionBody, example={**job, "max_runtime_seconds": 7200})
        release = Operation("admission", shapes.Released, path={"hold_id": HoldId})
        return [
            Route("POST", "/v1/admission", self.admit, (SCHEDULER, ADMIN), about=admit),
            Route("POST", "/v1/quote", self.quote, (SCHEDULER, ADMIN, OWNER, VIEWER), about=quote),
            Route("POST", "/v1/admission/{hold_id}/release", self.release, (SCHEDULER, ADMIN), about=release),
        ]

    async def admit(self, request: web.Request) -> Answer:
        """May this work start? Credits are set aside for it, if so.

        A refusal is an answer like any other: 200 with `allowed: false`.
        """
        token = token_of(request)
        asked = (await read_json(request, AdmissionBody)).request()
        check_org(token, asked.org)
        decision = await self._desk.decide(asked, who=token.who, via="api", until=self._until(request))
        if request.transport is None:
            self._desk.unheard(asked, decision)
        return Answer(msgspec.json.encode(decision_shape(decision)))

    async def quote(self, request: web.Request) -> web.Response:
        """The same question without setting anything aside: what work would cost, and how long credits last."""
        asked = (await read_json(request, AdmissionBody)).request()
        check_org(token_of(request), asked.org)
        return answer(quote_shape(await self._desk.quote(asked, self._until(request))))

    def _until(self, request: web.Request) -> float | None:
        """When the time for it ends; None: it begins now, as nobody had to wait for who asks."""
        waited = request.get(WAITED)
        return None if waited is None else self._desk.until(waited)

    async def release(self, request: web.Request) -> web.Response:
        """The work was not started after all: gives back what was set aside."""
        hold_id = request.match_info["hold_id"]
        if len(hold_id) > HOLD_ID_MAX:
            raise Problem(404, "unknown_hold", "There is no such hold.")
        async with asyncio.timeout_at(self._desk.until(request.get(WAITED, 0.0))):
            orgs = await self._desk.ledger.accounts.orgs() if hold_id.startswith("::") else None
            org = org_of_hold(hold_id, orgs)
            check_org(token_of(request), org or "")  # first, so that it is not said whether an org is there
            if org is None:
                raise Problem(404, "unknown_hold", f"There is no hold {hold_id!r}.")
            released = await self._desk.ledger.admissions.release(org, hold_id)
        # Settled, expired and released holds are all over: asking again is no error.
        return answer({"hold_id": hold_id, "released": released is not None})
