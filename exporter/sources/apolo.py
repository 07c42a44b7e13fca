"""The `apolo` source: jobs and disks of a cluster of the Apolo platform, through its API."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Final

from yarl import URL

from config.sources import ApoloSource as ApoloSettings
from exporter.sources.apolo_client import ApoloClient, NotAllowed, NotFound, Params
from exporter.sources.apolo_config import ClusterConfig, rates_of, read_config, sizes_of
from exporter.sources.apolo_disks import DiskReader, gather_bounded
from exporter.sources.apolo_records import ACTIVE, FINAL, Verdict, read_job
from exporter.sources.base import SourceError
from exporter.sources.preset_sizes import OVERSIZED, PresetSizes
from exporter.sources.storage_usage import STALE, StorageView
from exporter.sources.uncharged import Uncharged
from ledger.clock import Clock, format_time, now_us
from ledger.model import Observation, RateTable, Snapshot

logger = logging.getLogger(__name__)

DROPPED: Final = "dropped"
"""Counted once: a job whose record was deleted while it ran; it is charged until it was last seen."""

_SECOND_US: Final = 1_000_000
_DAY_US: Final = 86_400 * _SECOND_US
_OVERLAP_US: Final = 600 * _SECOND_US
"""How far back a round looks again: clocks differ, and records appear late."""
_CONFIG_US: Final = 60 * _SECOND_US
_RIGHTS_US: Final = 600 * _SECOND_US


class _Found:
    """What a round's looks came to. A later word on a job replaces an earlier one."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[Observation, bool]] = {}
        self.broken: set[str | None] = set()
        self.unbillable = Uncharged()
        self.sure = True
        """Nothing that may be running was left out."""

    def add(self, verdict: Verdict) -> None:
        if verdict.reason is not None:
            self.unbillable.add(verdict.reason, verdict.id)
            self.broken.add(verdict.id)
            self.sure = self.sure and not verdict.active
        elif verdict.observation is not None:
            self.jobs[verdict.observation.id] = verdict.observation, verdict.active
            if verdict.oversized:
                self.unbillable.add(OVERSIZED, verdict.id)


class ApoloSource:
    """Three looks each round, since the API cannot say what ended: jobs that are active, those that were active
    the round before, and those created since. At its start it looks through all that the platform still keeps.
    """

    def __init__(self, settings: ApoloSettings, clock: Clock = now_us, *, retry_seconds: float = 0.5) -> None:
        self.name = settings.name
        self.cluster = settings.cluster
        self._settings = settings
        self._remote = settings.platform_cluster or settings.cluster
        self._clock = clock
        self._client = ApoloClient(
            settings.url,
            settings.token.read,
            timeout_seconds=settings.timeout_seconds,
            retry_seconds=retry_seconds,
        )
        self._disks = DiskReader(self._client, self._remote, settings.disk_class, settings.orgs)
        self._stored = StorageView()
        self._stored_us: int | None = None
        self._config: tuple[ClusterConfig, URL] | None = None
        self._config_us = 0
        self._sizes = PresetSizes()
        self._rights_us: int | None = None
        self._active: dict[str, Observation] = {}
        self._ended: dict[str, tuple[Observation, int]] = {}
        self._swept_us: int | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def rates(self) -> RateTable:
        """The prices in the platform's config now. Raises: SourceError."""
        try:
            config, _ = await self._platform(self._clock())
            return rates_of(config)
        except SourceError as error:
            raise SourceError(f"{self.name}: {error}") from error

    async def fetch(self, since_us: int | None) -> Snapshot:
        """Jobs that run, jobs that ended after `since_us`, and disks. Raises: SourceError."""
        try:
            return await self._fetch(since_us)
        except SourceError as error:
            raise SourceError(f"{self.name}: {error}") from error

    async def _fetch(self, since_us: int | None) -> Snapshot:
        # What is seen running from here on was running at this instant, so charges go up to here.
        taken_us = self._clock()
        config, admin_url = await self._platform(taken_us)
        if self._rights_us is None or taken_us - self._rights_us >= _RIGHTS_US:
            await self._check_rights(admin_url, taken_us)
        found = _Found()
        async for verdict in self._looks(since_us, taken_us):
            found.add(verdict)
        unseen = self._active.keys() - found.jobs.keys() - found.broken
        answers = await gather_bounded(unseen, self._one)
        if None in answers:
            # Where rights were taken away, everything looks deleted.
            await self._check_rights(admin_url, taken_us)
            for job_id, answer in zip(unseen, answers, strict=True):
                if answer is None:
                    found.unbillable.add(DROPPED, job_id)
        for answer in answers:
            if answer is not None:
                found.add(answer)
        if self._settings.disks:
            await self._look_at_disks(config, admin_url, taken_us)
        # Nothing failed: from here on this round counts.
        active = {job_id: job for job_id, job in self._active.items() if job_id in found.broken}
        ended = self._not_told_yet(since_us)
        for job_id, (job, is_active) in found.jobs.items():
            if is_active:
                # The meter knows by identity what has not changed.
                known = self._active.get(job_id)
                active[job_id] = known if known is not None and known == job else job
                ended.pop(job_id, None)
            elif job_id not in ended or ended[job_id][0] != job:
                ended[job_id] = job, taken_us
        self._active = active
        self._ended = ended
        self._swept_us = taken_us
        found.unbillable.update(self._stored.unbillable)
        return Snapshot(
            self.name,
            self.cluster,
            taken_us,
            [*active.values(), *(job for job, _ in ended.values()), *self._stored.volumes],
            complete=found.sure and self._stored.complete,
            unbillable=dict(found.unbillable),
            examples=found.unbillable.examples,
            pending=frozenset((job.org, job.id) for job in active.values() if job.started_us is None),
            lists_waiting=found.sure,
        )

    async def _looks(self, since_us: int | None, taken_us: int) -> AsyncIterator[Verdict]:
        """Active jobs, then recently created ones that are over, so that the later word on a job is the last."""
        async for verdict in self._list([("status", status) for status in ACTIVE]):
            yield verdict
        charged_us = 0 if since_us is None else since_us
        back_us = min(charged_us or taken_us, taken_us)
        if self._swept_us is None:
            back_us -= self._settings.lookback_days * _DAY_US
        else:
            back_us = min(back_us, self._swept_us) - _OVERLAP_US
        final = [("status", status) for status in FINAL]
        async for verdict in self._list([*final, ("since", format_time(max(back_us, 0)))]):
            job = verdict.observation
            if job is not None and job.ended_us is not None and job.ended_us < charged_us - _OVERLAP_US:
                continue
            yield verdict

    async def _list(self, params: Params) -> AsyncIterator[Verdict]:
        where = [("cluster_name", self._remote), *(("org_name", org) for org in self._settings.orgs)]
        async for line in self._client.lines(self._client.url / "jobs", [*where, *params]):
            yield read_job(line, self._remote, self._sizes)

    async def _one(self, job_id: str) -> Verdict | None:
        """One job by its id, None if the platform has no record of it any more."""
        try:
            body = await self._client.get(self._client.url / "jobs" / job_id)
        except NotFound:
            return None
        except NotAllowed:
            self._rights_us = None
            raise
        return read_job(body, self._remote, self._sizes)

    def _not_told_yet(self, since_us: int | None) -> dict[str, tuple[Observation, int]]:
        """Ended jobs, with when that was seen, of which the ledger may not know: snapshots can be lost."""
        known_us = 0 if since_us is None else since_us - _OVERLAP_US
        return {job_id: (job, seen_us) for job_id, (job, seen_us) in self._ended.items() if seen_us > known_us}

    async def _platform(self, taken_us: int) -> tuple[ClusterConfig, URL]:
        """The cluster's config and the admin API, asked for again from time to time: presets change."""
        if self._config is None or taken_us - self._config_us >= _CONFIG_US:
            body = await self._client.get(self._client.url / "config")
            config, admin_url = read_config(body, self._remote)
            self._sizes = sizes_of(config)
            self._config = config, URL(admin_url) if admin_url else self._client.url.origin() / "apis/admin/v1"
            self._config_us = taken_us
        return self._config

    async def _check_rights(self, admin_url: URL, taken_us: int) -> None:
        """Too small a right gives fewer jobs and no error, so it has to be asked for. Raises: NotAllowed."""
        schemes = ["job", "disk"] if self._settings.disks else ["job"]
        places = [f"{self._remote}/{org}" for org in self._settings.orgs] or [self._remote]
        needed = [(f"{scheme}://{place}", "read") for scheme in schemes for place in places]
        missing = await self._client.missing_rights(admin_url, needed)
        if missing:
            self._rights_us = None
            user = self._client.user()
            remedy = "; ".join(f"apolo acl grant {uri} {user} {act}" for act, uri in map(str.split, missing))
            raise NotAllowed(
                f"the token of {user!r} may not see the whole cluster, so jobs would go uncharged unseen; "
                f"let a cluster admin run: {remedy}"
            )
        self._rights_us = taken_us

    async def _look_at_disks(self, config: ClusterConfig, admin_url: URL, taken_us: int) -> None:
        seconds = self._settings.disks_interval_seconds
        if self._stored_us is not None and taken_us - self._stored_us < seconds * _SECOND_US:
            return
        try:
            if config.disks_url is None:
                raise SourceError("the platform's config has no disks_url; set disks: false")
            self._stored = await self._disks.view(admin_url, URL(config.disks_url))
            self._stored_us = taken_us
        except SourceError as error:
            # Jobs are charged all the same, and disks for the bytes last seen.
            logger.warning("%s: disks are as last seen: %s", self.name, error)
            known = self._stored.volumes
            self._stored = StorageView(known, self._stored_us is not None, {STALE: max(1, len(known))})
