"""`POST /v1/admission/slurm`: the question of the job_submit hook, in Slurm's own words."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from aiohttp import web
from msgspec.structs import replace

from api import shapes
from api.routes import Operation, Route
from config.slurm_request import SlurmBody, SlurmRequest, parse_slurm_request
from config.slurm_rules import owner_of
from config.sources import SlurmSource
from enforcer.access import ADMIN, SCHEDULER, check_org, token_of
from enforcer.admission.accounts_tree import AccountTree
from enforcer.admission.desk import Desk
from enforcer.admission.listing import only_one
from enforcer.bodies import answer, read_bytes
from enforcer.callers import WAITED
from enforcer.problems import Problem
from ledger.admission import AdmissionRequest, Decision
from ledger.admission_shapes import decision_shape
from ledger.errors import LedgerUnavailable
from ledger.hold_ids import org_of_hold
from ledger.model import Code
from ledger.money import MICRO_MAX
from ledger.names import is_name


class SlurmApi:
    """Turns a submitted job into a request, by the same rules that the exporter charges it by."""

    def __init__(self, desk: Desk, sources: Sequence[SlurmSource]) -> None:
        self._desk = desk
        self._sources = {source.cluster: source for source in sources}
        self._listing = {cluster: source.name for cluster, source in only_one(SlurmSource, sources).items()}
        self.trees = {source.cluster: AccountTree(source) for source in sources}

    def routes(self) -> list[Route]:
        about = Operation("admission", shapes.Decision, SlurmBody)
        return [Route("POST", "/v1/admission/slurm", self.admit, (SCHEDULER, ADMIN), about=about)]

    async def admit(self, request: web.Request) -> web.Response:
        """The question of Slurm's submit hook, in Slurm's own words.

        200 with a decision; 422 for a job whose rules cannot be applied.
        """
        try:
            job = parse_slurm_request(await read_bytes(request))
        except ValueError as error:
            raise Problem(422, "invalid", str(error)) from None
        source = self._sources.get(job.cluster)
        if source is None:
            known = ", ".join(sorted(self._sources)) or "none"
            raise Problem(422, "invalid", f"cluster: there is no Slurm cluster {job.cluster!r:.80}; known: {known}")
        token = token_of(request)
        parents = self.trees[job.cluster].parents(job.slurm_cluster)
        if parents is None:
            raise Problem(
                503, "accounts_unavailable", "Slurm's account tree could not be read yet.", {"Retry-After": "5"}
            )
        owner = owner_of(job.account, source.rules, parents)
        if owner is not None:
            check_org(token, owner[0])
        until = self._desk.until(request.get(WAITED, 0.0))
        asked, refusal = await self._request(job, source, owner, until)
        if refusal is not None:
            refused = await self._desk.refuse(asked, refusal, who=token.who, via="slurm", until=until)
            return answer(decision_shape(refused))
        decision = await self._desk.decide(asked, who=token.who, via="slurm", until=until)
        if request.transport is None:  # slurmctld waits for a fraction of a second only
            self._desk.unheard(asked, decision)
        if decision.allowed and job.replaces_hold and not asked.replaces and not job.is_task:
            former = org_of_hold(job.replaces_hold, [])
            if former is not None and token.org in (None, former):
                self._desk.aftermath.release(former, job.replaces_hold)
        return answer(decision_shape(decision))

    async def _request(
        self, job: SlurmRequest, source: SlurmSource, owner: tuple[str, str] | None, until: float
    ) -> tuple[AdmissionRequest, Decision | None]:
        org, project = owner or ("", "")
        # One task of an array is held for by itself, by its own id, as what the array holds is for the others, too.
        held = None if job.is_task else _hold_of(job.replaces_hold, org)
        asked = AdmissionRequest(
            cluster=job.cluster, org=org or job.account or "?", project=project, user=job.user, kind="job",
            max_runtime_us=None if not job.max_runtime_seconds else job.max_runtime_seconds * 1_000_000,
            count=job.count, replaces=held,
            workload_id=None if job.job_id is None or held else str(job.job_id),
            source=self._listing.get(job.cluster, ""),
        )  # fmt: skip
        if not org:
            account = f"account {job.account!r:.80}" if job.account else "a job without an account"
            reason = f"No org pays for {account}. Submit with --account and one of yours, or ask an administrator."
            return asked, Decision(False, Code.UNKNOWN_ORG, reason, "org")
        if not all(is_name(text) for text in (org, job.user)) or not (project == "" or is_name(project)):
            raise Problem(422, "invalid", "account or user: is not a name")
        presets = job.presets(source.rules)
        if not presets:
            where = ", ".join(part or "(default)" for part in job.partitions)
            reason = (
                f"Nothing says what a job in partition {where[:80]} costs. Choose another, or ask an administrator."
            )
            return asked, Decision(False, Code.UNPRICED, reason)
        return replace(asked, preset=await self._dearest(job.cluster, presets, until)), None

    async def _dearest(self, cluster: str, presets: Sequence[str], until: float) -> str:
        """The preset whose hold does for all of them; one without a rate, if that is refused."""
        if len(presets) == 1:
            return presets[0]
        admissions = self._desk.ledger.admissions
        plan = admissions.plan_at_hand(cluster)
        if not self._desk.aftermath.is_away:
            with suppress(LedgerUnavailable, TimeoutError):
                async with asyncio.timeout_at(until - self._desk.settings.decision_seconds / 2):
                    plan = await admissions.plan(cluster)
        if plan is None:
            return presets[0]
        table = plan.at(self._desk.ledger.clock())
        unpriced = 0 if table.unpriced == "free" else MICRO_MAX
        return max(presets, key=lambda preset: table.presets.get(preset, unpriced))


def _hold_of(hold_id: str | None, org: str) -> str | None:
    """A job that moves to another org has no hold there to replace."""
    return hold_id if hold_id and org and org_of_hold(hold_id, [org]) == org else None
