"""Whether a pod that looks like that of a job of the Apolo platform is: the platform is asked, once for each.

Labels and names of pods are their users' to choose. The platform's own word is its record of the job: the pod is of it
if the job is of this cluster and of the pod's namespace, and was not over before the pod was made.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final, NamedTuple

import msgspec

from config.sources import ApoloSource as ApoloSettings
from exporter.sources.apolo_client import ApoloClient, BadToken, NotAllowed, NotFound
from exporter.sources.apolo_disks import gather_bounded
from exporter.sources.apolo_records import ACTIVE, BROKEN, FINAL
from exporter.sources.base import SourceError
from ledger.clock import to_us

logger = logging.getLogger(__name__)
ASKED_MAX: Final = 100
"""Jobs asked for by their ids in one round; where there are more, all active ones are listed first."""
_CLOCKS_US: Final = 60_000_000
"""By how much the clocks of the platform and of Kubernetes may differ."""


class Claimant(NamedTuple):
    """A pod that has a job's label and its name."""

    uid: str
    job: str
    namespace: str
    created_us: int


class _Transition(msgspec.Struct, gc=False):
    transition_time: datetime


class _Job(msgspec.Struct, gc=False):
    id: str
    status: str
    statuses: Annotated[list[_Transition], msgspec.Meta(min_length=1)]
    cluster_name: str
    namespace: str


_job = msgspec.json.Decoder(_Job)


class PlatformJobs:
    """Asks one platform."""

    def __init__(self, settings: ApoloSettings) -> None:
        self._remote = settings.platform_cluster or settings.cluster
        self._client = ApoloClient(settings.url, settings.token.read, timeout_seconds=settings.timeout_seconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def tell(self, claimants: Iterable[Claimant]) -> dict[str, bool | None]:
        """UID -> whether the pod is of the job, None: there is no such job (any more). For as many as can be told now;
        nothing is raised."""
        left = {claimant.uid: claimant for claimant in claimants}
        told: dict[str, bool | None] = {}
        try:
            if len(left) > ASKED_MAX:
                active = await self._active({claimant.job for claimant in left.values()})
                told = {uid: True for uid, c in left.items() if (job := active.get(c.job)) and self._is_of(c, job)}
            asked = [claimant for uid, claimant in left.items() if uid not in told][:ASKED_MAX]
            answers = await gather_bounded(asked, self._one)
        except SourceError as error:
            logger.warning("Pods that look like those of jobs are passed over until the platform answers: %s", error)
            return told
        return told | {claimant.uid: answer for claimant, answer in zip(asked, answers, strict=True)}

    async def _active(self, wanted: set[str]) -> dict[str, _Job]:
        params = [("cluster_name", self._remote), *(("status", status) for status in ACTIVE)]
        found: dict[str, _Job] = {}
        async for line in self._client.lines(self._client.url / "jobs", params):
            try:
                job = _job.decode(line)
            except BROKEN:
                continue  # it is asked for by its id
            if job.id in wanted:
                found[job.id] = job
        return found

    async def _one(self, claimant: Claimant) -> bool | None:
        try:
            job = _job.decode(await self._client.get(self._client.url / "jobs" / claimant.job))
        except NotFound:
            return None
        except BadToken:
            raise
        except (NotAllowed, *BROKEN):
            return True  # there is such a job, and no more to tell: charged as a job, or not at all, but not twice
        return self._is_of(claimant, job)

    def _is_of(self, claimant: Claimant, job: _Job) -> bool:
        place = job.id, job.cluster_name, job.namespace
        if place != (claimant.job, self._remote, claimant.namespace):
            return False
        over = job.status in FINAL
        return not over or to_us(job.statuses[-1].transition_time) + _CLOCKS_US >= claimant.created_us
