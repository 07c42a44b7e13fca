"""The `kubernetes` source: pods, app instances and volumes of a cluster, followed by watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container
from typing import Final

import aiohttp

from config.preset_sizes import rooms
from config.sources import ApoloSource as ApoloSettings
from config.sources import KubernetesSource as KubernetesSettings
from exporter.sources.base import SourceError
from exporter.sources.kubernetes_client import KubernetesClient
from exporter.sources.kubernetes_namespaces import Namespaces
from exporter.sources.kubernetes_pods import Pods
from exporter.sources.kubernetes_records import PodReader
from exporter.sources.kubernetes_state import Claims
from exporter.sources.kubernetes_watch import Reflector, Sink
from exporter.sources.platform_jobs import PlatformJobs
from exporter.sources.preset_sizes import PresetSizes
from exporter.sources.storage_usage import StorageView, UsageReader
from ledger.clock import Clock, now_us
from ledger.model import Observation, Snapshot

SETTLE_US: Final = 5_000_000
"""Charges stay so far behind: what ends is told with the node's delay, and need not be taken back then."""
STALE_US: Final = 120_000_000
"""How long the API server may be silent before a round fails."""
HEARD_US: Final = 60_000_000
"""What is new is listed within so long, or the watch has ended: if not, the API server may be out of reach unnoticed,
and nothing is concluded from what is not listed."""
_USAGE_US: Final = 60_000_000
JOBS_SECONDS: Final = 2.0
"""How long a round waits for what the platform says of pods that look like those of its jobs."""


class KubernetesSource:
    """Watches run from the first fetch on; a fetch takes what they have come to, and asks the API server nothing."""

    def __init__(
        self,
        settings: KubernetesSettings,
        clock: Clock = now_us,
        *,
        beside: ApoloSettings | None = None,
        priced_apps: Callable[[], Container[str]] | None = None,
        settle_us: int = SETTLE_US,
        stale_us: int = STALE_US,
        page: int = 500,
        watch_seconds: float = 60.0,
        jobs_seconds: float = JOBS_SECONDS,
        back_off_seconds: float = 0.2,
    ) -> None:
        """`beside`: the source that meters the platform's jobs, and perhaps disks, of this cluster, so that they
        are not charged twice. `priced_apps`: the apps that have a rate of their own; None: any may."""
        self.name = settings.name
        self.cluster = settings.cluster
        self._settings = settings
        self._clock = clock
        self._priced_apps = priced_apps
        self._settle_us = settle_us
        self._stale_us = stale_us
        self._jobs_seconds = jobs_seconds
        sizes = PresetSizes(rooms(settings.presets))
        reader = PodReader(settings.labels, sizes, jobs=beside is None, disks=beside is None or not beside.disks)
        self._namespaces = Namespaces(settings.labels, self._replace_in)
        self._pods = Pods(reader, self._namespaces, settings.skip_namespaces)
        self._claims = Claims(reader, self._namespaces, settings.skip_namespaces)
        self._client = KubernetesClient(settings)
        self._jobs = None if beside is None else PlatformJobs(beside)
        self._asking: asyncio.Task[dict[str, bool | None]] | None = None
        self._usage: UsageReader | None = None
        if settings.storage is not None:
            self._usage = UsageReader(
                settings.storage.url,
                query=settings.storage.query,
                storage_class=settings.storage.storage_class,
                token=None if settings.storage.token is None else settings.storage.token.read,
                timeout_seconds=settings.timeout_seconds,
            )
        self._usage_session: aiohttp.ClientSession | None = None
        self._used = StorageView()
        self._used_us: int | None = None
        kinds: list[tuple[str, Sink, str]] = [
            ("/api/v1/namespaces", self._namespaces, ""),
            ("/api/v1/pods", self._pods, settings.selector),
        ]
        if settings.volumes:
            kinds.append(("/api/v1/persistentvolumeclaims", self._claims, ""))
        self._reflectors = [
            Reflector(
                self._client,
                path,
                sink,
                clock,
                selector=selector,
                page=page,
                watch_seconds=watch_seconds,
                back_off_seconds=back_off_seconds,
            )
            for path, sink, selector in kinds
        ]
        self._following: asyncio.Task[None] | None = None

    async def fetch(self, since_us: int | None) -> Snapshot:
        """What the watches have come to. Raises: SourceError while they have not, or are not to be trusted."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name=f"watch {self.name}")
        await self._until_synced()
        now = self._clock()
        taken_us = self._true_until(now) - self._settle_us
        self._pods.forget_told(since_us)
        self._claims.forget_told(since_us)
        if self._jobs is not None:
            await self._ask_about_jobs(self._jobs, since_us, now)
        self._pods.settle(taken_us, now)
        used = await self._ask_usage(now)
        workloads: list[Observation] = []
        for objects in (self._pods, self._claims):
            workloads.extend(objects.live.values())
            workloads.extend(ended for ended, _ in objects.ended.values())
        workloads += self._pods.app_runs(since_us, None if self._priced_apps is None else self._priced_apps())
        workloads += used.volumes
        unbillable = self._pods.unbillable()
        claims = self._claims.unbillable()
        unbillable.join(claims, claims.examples)
        unbillable.update(used.unbillable)
        return Snapshot(
            self.name,
            self.cluster,
            taken_us,
            workloads,
            complete=self._pods.complete and self._claims.complete and used.complete,
            unbillable=dict(unbillable),
            pending_holds=self._pods.waiting_holds(),
            pending=self._pods.waiting(),
            examples=unbillable.examples,
            lists_waiting=self._pods.complete and self._is_heard(now),
        )

    def versions(self) -> dict[str, str]:
        """Up to which version each kind of object is followed, for logs and tests."""
        return {reflector.path: reflector.version for reflector in self._reflectors}

    async def close(self) -> None:
        """End the watches and close the connections."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._client.close()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        if self._jobs is not None:
            await self._jobs.close()
        if self._usage_session is not None:
            await self._usage_session.close()

    async def _follow(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for reflector in self._reflectors:
                tasks.create_task(reflector.run(), name=f"watch {self.name} {reflector.path}")
                # Whose the pods are comes first, so that each is placed once.
                await reflector.synced.wait()

    async def _until_synced(self) -> None:
        assert self._following is not None, "fetch started it"
        synced = asyncio.create_task(self._all_synced())
        await asyncio.wait(
            {synced, self._following}, timeout=self._settings.timeout_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if self._following.done():
            failed = None if self._following.cancelled() else self._following.exception()
            self._following = None
            raise SourceError(f"{self.name}: the watch stopped: {failed!r}") from failed
        if not synced.done():
            synced.cancel()
            error = next((r.error for r in self._reflectors if r.error is not None), None)
            told = f": {error}" if error else f"; {len(self._pods.tracked)} pods so far"
            raise SourceError(f"{self.name}: the first list is not whole yet{told}")

    async def _all_synced(self) -> None:
        for reflector in self._reflectors:
            await reflector.synced.wait()

    def _true_until(self, now: int) -> int:
        """Up to when all copies are true. Raises: SourceError."""
        true_us = now
        for reflector in self._reflectors:
            heard_us = reflector.true_until_us(now)
            if heard_us is None or now - heard_us > self._stale_us:
                error = f": {reflector.error}" if reflector.error is not None else ""
                raise SourceError(
                    f"{self.name}: the API server has been silent about {reflector.path} "
                    f"for more than {self._stale_us // 1_000_000} s{error}"
                )
            true_us = min(true_us, heard_us)
        return true_us

    def _is_heard(self, now: int) -> bool:
        return all(one.heard_us is not None and now - one.heard_us <= HEARD_US for one in self._reflectors)

    async def _ask_about_jobs(self, jobs: PlatformJobs, since_us: int | None, now: int) -> None:
        """Take what the platform says of pods that may be of its jobs; it may answer later than this round."""
        if self._asking is None and (claimants := self._pods.claimants()):
            self._asking = asyncio.create_task(jobs.tell(claimants), name=f"jobs {self.name}")
        if self._asking is None:
            return
        await asyncio.wait({self._asking}, timeout=self._jobs_seconds)
        if self._asking.done():
            for uid, is_of_job in self._asking.result().items():
                self._pods.decide(uid, is_of_job, now, since_us)
            self._asking = None

    async def _ask_usage(self, now: int) -> StorageView:
        if self._usage is None:
            return self._used
        if self._used_us is None or now - self._used_us >= _USAGE_US:
            if self._usage_session is None:
                self._usage_session = aiohttp.ClientSession()
            self._used = await self._usage.view(self._usage_session)
            self._used_us = now
        return self._used

    def _replace_in(self, namespace: str) -> None:
        self._pods.replace_in(namespace)
        self._claims.replace_in(namespace)
