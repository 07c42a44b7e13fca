"""`POST /k8s/admission`: a validating webhook for pods and jobs.

Never answers 404 or 409, which the callers of the API server take for something else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiohttp import web
from msgspec.structs import replace

from api.routes import Operation, Route
from config.preset_sizes import FittingPresets, rooms
from config.sources import ApoloSource, KubernetesSource, SourceSettings
from enforcer.access import ADMIN, CHALLENGE, SCHEDULER
from enforcer.admission.desk import Desk
from enforcer.admission.listing import PodListing
from enforcer.admission.namespaces import NamespaceLabels
from enforcer.admission.review import NotAReview, Work, parse_review, passes, review_answer, work_of
from enforcer.bodies import read_bytes
from enforcer.callers import WAITED, Callers
from enforcer.failures import Failures
from enforcer.problems import Problem
from ledger.admission import AdmissionRequest, Decision
from ledger.errors import CreditsError
from ledger.model import Code

_ASIDE_PART: Final = 0.25
"""Of the time for a request, which all that is done for it shares: what a look at the namespace may take, and whether
a pod was admitted before."""
BODY_MAX: Final = 3 * 1024 * 1024 + 64 * 1024
log = logging.getLogger(__name__)


class KubernetesApi:
    """Answers API servers. Who calls shows a client certificate or a token: as a header, or in the path."""

    def __init__(
        self, desk: Desk, callers: Callers, sources: Sequence[SourceSettings], asks_certificates: bool,
        failures: Failures,
    ) -> None:  # fmt: skip
        """`asks_certificates`: the listener lets nobody in without one it trusts."""
        self._desk = desk
        self._callers = callers
        self._asks_certificates = asks_certificates
        self._failures = failures
        found = [source for source in sources if isinstance(source, KubernetesSource)]
        if not found:
            clusters = dict.fromkeys(source.cluster for source in sources)
            found = [KubernetesSource(name=f"kubernetes-{name}", cluster=name) for name in clusters]
        self._sources = {source.cluster: source for source in found}
        # Where the platform is asked for its jobs, their pods are left to it, and charged by the jobs' ids.
        self._by_job = {source.cluster for source in sources if isinstance(source, ApoloSource)}
        self._listing = PodListing(sources)
        self._sizes = {source.cluster: FittingPresets(rooms(source.presets)) for source in found}
        self._aside_seconds = desk.settings.decision_seconds * _ASIDE_PART
        self._namespaces = {source.cluster: NamespaceLabels(source) for source in found}
        self._noting: set[asyncio.Task[None]] = set()

    def routes(self) -> list[Route]:
        paths = ("/k8s/admission", "/k8s/admission/{cluster}", "/k8s/admission/{cluster}/{token}")
        about = Operation(
            "admission", dict[str, Any], dict[str, Any], path={"token": str}, problems=(400, 401, 429, 503),
            body_max=BODY_MAX,
        )  # fmt: skip
        return [Route("POST", path, self.review, None, about=about) for path in paths]

    async def close(self) -> None:
        """Close the connections to the API servers."""
        for noting in self._noting:
            noting.cancel()
        for namespaces in self._namespaces.values():
            await namespaces.close()

    async def misdirected(self, request: web.Request) -> web.StreamResponse:
        """A path below /k8s/admission that is none of ours: never 404, which means an object."""
        known = ", ".join(sorted(self._sources))
        raise Problem(
            400, "not_a_review",
            f"Reviews are sent by POST to /k8s/admission/CLUSTER, or /k8s/admission/CLUSTER/TOKEN; clusters: {known}.",
        )  # fmt: skip

    async def review(self, request: web.Request) -> web.Response:
        """Kubernetes' question about a pod or job: an AdmissionReview (admission.k8s.io/v1), in and out.

        Who calls shows a client certificate (where the listener asks for one), or a scheduler's token: as a bearer, or
        as the last part of the path.
        """
        await self._check_caller(request)
        data = await _read(request)
        until = self._desk.until(request.get(WAITED, 0.0))
        uid = ""
        try:
            review = parse_review(data)
            uid = review.uid
            settings = self._settings(request)
            why = passes(review, settings)
            if why is not None:
                return _json(review_answer(uid, True, noted={"passed": why}))
            owner = await self._namespaces[settings.cluster].place(review.namespace or "", self._aside(until))
            by_job = settings.cluster in self._by_job
            work = work_of(review, settings, self._sizes[settings.cluster], owner or ("", ""), by_job=by_job)
            if review.what == "pods":
                work = replace(work, request=replace(work.request, source=self._listing.source_of(work)))
            decision = await self._decide(work, f"{review.who} ({settings.cluster})", until)
        except NotAReview as error:
            if not uid:
                raise Problem(400, "not_a_review", str(error)) from None
            return _json(review_answer(uid, False, str(error), 400))
        except CreditsError as error:
            log.error("%s", error)
            return _json(review_answer(uid, False, "Credits cannot be checked: the enforcer has a problem.", 500))
        noted = {"code": decision.code.value}
        if decision.hold_id:
            noted["hold"] = decision.hold_id
        if not decision.allowed:
            return _json(review_answer(uid, False, decision.reason, noted=noted))
        warnings = [decision.reason] if decision.code is not Code.OK else []
        return _json(review_answer(uid, True, warnings=warnings, noted=noted))

    async def _decide(self, work: Work, who: str, until: float) -> Decision:
        asked = work.request
        if work.missing and (not asked.org or self._unpriced_is_denied(asked.cluster)):
            if not asked.org and self._desk.settings.unknown_org == "allow":
                return Decision(True, Code.OK, "")
            code = Code.UNPRICED if asked.org else Code.UNKNOWN_ORG
            why = "it is not known what this costs" if asked.org else "nobody could be charged"
            reason = f"Label {work.missing} is missing, so {why}. Set it, or ask an administrator."
            refusal = Decision(False, code, reason)
            return await self._desk.refuse(asked, refusal, who=who, via="kubernetes", until=until)
        admitted, identity = self._desk.ledger.admitted, work.identity

        async def was_admitted() -> bool:
            # Refused when it is started anew, the platform's job would go on without its pod, and cost.
            return await admitted.has(asked.org, *identity)

        excuse = was_admitted if identity else None
        decision = await self._desk.decide(asked, who=who, via="kubernetes", until=until, excuse=excuse)
        goes_on = decision.allowed and decision.code is Code.OK and decision.required_micro and not decision.hold_id
        if goes_on and work.pod and not asked.dry_run and not await self._is_so(was_admitted, until):
            # The platform's job is charged already, and this is not its pod started anew: it is to pay for itself.
            asked = replace(asked, workload_id=work.pod, source="")
            decision = await self._desk.decide(asked, who=who, via="kubernetes", until=until)
        # What is let through for another reason than that it is paid for is no more admitted than before.
        if identity and decision.allowed and decision.code is Code.OK and decision.hold_id:
            noting = asyncio.create_task(self._note(asked, identity))
            self._noting.add(noting)
            noting.add_done_callback(self._noting.discard)
            await asyncio.wait({noting}, timeout=self._aside(until))  # what takes longer goes on beside
        return decision

    async def _note(self, asked: AdmissionRequest, identity: tuple[str, ...]) -> None:
        try:
            await self._desk.ledger.admitted.add(asked.org, *identity)
        except CreditsError as error:
            log.warning("that pod %s was admitted cannot be noted: %s", asked.workload_id, error)

    async def _is_so(self, ask: Callable[[], Awaitable[bool]], until: float) -> bool:
        try:
            async with asyncio.timeout(self._aside(until)):
                return await ask()
        except (CreditsError, TimeoutError) as error:
            log.warning("whether a pod was admitted before is not known: %s", error or "no answer in time")
            return False

    def _aside(self, until: float) -> float:
        """Seconds for something beside the decision."""
        return min(self._aside_seconds, until - asyncio.get_running_loop().time())

    def _unpriced_is_denied(self, cluster: str) -> bool:
        plan = self._desk.ledger.admissions.plan_at_hand(cluster)
        return plan is None or plan.at(self._desk.ledger.clock()).unpriced != "free"

    def _settings(self, request: web.Request) -> KubernetesSource:
        cluster = request.match_info.get("cluster")
        if cluster is None and len(self._sources) == 1:
            return next(iter(self._sources.values()))
        if cluster not in self._sources:
            known = ", ".join(sorted(self._sources))
            said = f"There is no cluster {cluster:.100} here" if cluster else "The path names no cluster"
            raise NotAReview(f"{said}: /k8s/admission/CLUSTER is for one of {known}.")
        return self._sources[cluster]

    async def _check_caller(self, request: web.Request) -> None:
        if self._asks_certificates:
            return
        scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            credential = request.match_info.get("token", "")
        token = self._callers.known(credential) or await self._callers.find_in_time(request, credential)
        if token is None and credential:
            self._failures.refuse(request.remote)
        if token is None or token.role not in (SCHEDULER, ADMIN) or token.org is not None:
            raise Problem(
                401, "unauthorized",
                "The API server needs a client certificate (enforcer.tls.client_ca), or a scheduler's token: as a "
                "bearer, or in the path /k8s/admission/CLUSTER/TOKEN.",
                CHALLENGE,
            )  # fmt: skip


async def _read(request: web.Request) -> bytes:
    """The body. Raises: Problem 400 for a larger one than an API server sends: such are no reviews."""
    try:
        return await read_bytes(request, BODY_MAX)
    except Problem as error:
        raise Problem(400, "not_a_review", error.detail, error.headers) from None


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
