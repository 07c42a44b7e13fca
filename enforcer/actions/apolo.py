"""Cancels jobs of the Apolo platform, with the reason where their users see it."""

from __future__ import annotations

import asyncio
from typing import Final

from config.sources import ApoloSource as ApoloSettings
from enforcer.actions.base import ActionError, Outcome
from enforcer.actions.rest import Rest

REASON: Final = "QuotaExhausted"
"""The platform's own word for it, which its command line and console know."""
_FINAL: Final = frozenset({"succeeded", "failed", "cancelled"})
_TRIES: Final = 5


class ApoloActions:
    """The platform has no signal and no suspension for others to use: a job goes on or is cancelled."""

    def __init__(self, settings: ApoloSettings, *, retry_seconds: float = 0.2) -> None:
        self._remote = settings.platform_cluster or settings.cluster
        self._rest = Rest(settings.url, settings.token, timeout_seconds=settings.timeout_seconds)
        self._retry_seconds = retry_seconds

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        return Outcome.CANNOT

    async def suspend(self, workload_id: str, reason: str) -> Outcome:
        return Outcome.CANNOT

    async def resume(self, workload_id: str) -> Outcome:
        return Outcome.CANNOT

    async def stop(self, workload_id: str, reason: str) -> Outcome:
        """Cancel the job; its pods are deleted by the platform, gracefully. Raises: ActionError."""
        path = f"jobs/{workload_id}"
        body = {"status": "cancelled", "reason": REASON, "description": reason}
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(self._retry_seconds)
            status, _, text = await self._rest.call("PUT", f"{path}/status", body)
            match status:
                case 200 | 202 | 204:
                    return Outcome.DONE
                case 404:
                    return Outcome.OVER
                case 409:
                    continue  # the job moved on at the same moment
                case 400:
                    # A job that is over refuses every change, with the same status as a request that is wrong.
                    found, job, _ = await self._rest.call("GET", path)
                    if found == 404 or (isinstance(job, dict) and job.get("status") in _FINAL):
                        return Outcome.OVER
                case 401 | 403:
                    raise ActionError(
                        f"the token may not cancel jobs of {self._remote} ({status}); let a cluster admin run: "
                        f"apolo acl grant job://{self._remote} NAME manage (NAME: the user of the token)"
                    )
                case 429 | 502 | 503 | 504:
                    return Outcome.LATER
            raise ActionError(f"job {workload_id} cannot be cancelled: {status} {text}")
        return Outcome.LATER

    async def close(self) -> None:
        """Close the connections."""
        await self._rest.close()
