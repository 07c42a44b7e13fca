"""The disks of an Apolo cluster: one list for each project, with a second look before a disk counts as deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any, Final, TypeVar

import msgspec
from yarl import URL

from exporter.sources import names
from exporter.sources.apolo_client import ApoloClient, NotFound, Params
from exporter.sources.apolo_records import BROKEN, Count
from exporter.sources.base import SourceError
from exporter.sources.names import Unbillable, optional_name, required_id, required_name
from exporter.sources.storage_usage import StorageView
from ledger.model import Kind, Observation

AT_ONCE: Final = 8
"""Requests in flight: enough to hide latency, too few to be a load."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Disk(msgspec.Struct):
    id: str
    storage: Count
    owner: str | None = None
    org_name: str | None = None
    project_name: str | None = None
    status: str = "Ready"


class Project(msgspec.Struct, frozen=True):
    """A project of an org on the cluster; without an org it has no disks that anybody pays."""

    name: str
    org_name: str | None = None


_disks = msgspec.json.Decoder(list[msgspec.Raw])
_disk = msgspec.json.Decoder(_Disk)
_projects = msgspec.json.Decoder(list[Project])


def read_projects(data: bytes) -> list[Project]:
    """GET clusters/{cluster}/projects. Raises: SourceError."""
    try:
        return _projects.decode(data)
    except BROKEN as error:
        raise SourceError(f"the list of projects cannot be read: {error}") from error


def read_disks(data: bytes, project: Project, storage_class: str) -> tuple[list[Observation], int]:
    """(a project's disks, how many entries are malformed). A disk that is not bound yet is not charged.

    Raises: SourceError where the answer is no list.
    """
    try:
        entries = _disks.decode(data)
    except BROKEN as error:
        raise SourceError(f"the disks of project {project.name!r} cannot be read: {error}") from error
    found: list[Observation] = []
    malformed = 0
    for entry in entries:
        try:
            observation = read_disk(bytes(entry), project, storage_class)
        except Unbillable:
            malformed += 1
            continue
        if observation is not None:
            found.append(observation)
    return found, malformed


def read_disk(data: bytes, project: Project, storage_class: str) -> Observation | None:
    """One disk, None where it is not bound yet. Raises: Unbillable."""
    try:
        disk = _disk.decode(data)
    except BROKEN as error:
        raise Unbillable(names.MALFORMED) from error
    if disk.status == "Pending":
        return None
    return Observation(
        required_id(disk.id),
        Kind.STORAGE.value,
        required_name(disk.org_name or project.org_name, names.NO_ORG),
        optional_name(disk.project_name or project.name),
        optional_name(disk.owner),
        storage_class,
        bytes=disk.storage,
    )


async def gather_bounded(items: Iterable[Item], ask: Callable[[Item], Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results for all items, in order, a few asked at once. Raises: what the first failing one raises."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: Item) -> Result:
        async with gate:
            return await ask(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


class DiskReader:
    """Lists disks at most once an interval, since every project costs a request; between, they are as last seen."""

    def __init__(self, client: ApoloClient, cluster: str, storage_class: str, orgs: Collection[str]) -> None:
        self._client = client
        self._cluster = cluster
        self._storage_class = storage_class
        self._orgs = frozenset(orgs)
        self._known: dict[str, tuple[Project, Observation]] | None = None

    async def view(self, admin_url: URL, disks_url: URL) -> StorageView:
        """The disks now. Raises: SourceError; what was known stays known then."""
        projects = [
            project
            for project in read_projects(await self._client.get(admin_url / "clusters" / self._cluster / "projects"))
            if project.org_name and (not self._orgs or project.org_name in self._orgs)
        ]

        async def ask(project: Project) -> tuple[Project, list[Observation], int]:
            body = await self._client.get(disks_url, _place(project))
            return project, *read_disks(body, project, self._storage_class)

        found: dict[str, tuple[Project, Observation]] = {}
        malformed = 0
        for project, disks, broken in await gather_bounded(projects, ask):
            malformed += broken
            found.update((disk.id, (project, disk)) for disk in disks)
        missing = [place for disk_id, place in (self._known or {}).items() if disk_id not in found]
        still = await gather_bounded(missing, lambda place: self._second_look(disks_url, *place))
        for (project, _), disk in zip(missing, still, strict=True):
            if disk is not None:
                found[disk.id] = project, disk
        # The server gives an empty list where it fails, and after a restart there is nothing to compare with.
        sure = bool(found) or self._known is not None
        self._known = found
        return StorageView(
            tuple(disk for _, disk in found.values()),
            sure and not malformed,
            {names.MALFORMED: malformed} if malformed else {},
        )

    async def _second_look(self, disks_url: URL, project: Project, last: Observation) -> Observation | None:
        """A disk that its project's list left out: None if it is gone indeed."""
        try:
            body = await self._client.get(disks_url / last.id, _place(project))
            return read_disk(body, project, self._storage_class)
        except NotFound:
            return None
        except Unbillable:
            return last


def _place(project: Project) -> Params:
    return [("org_name", project.org_name or ""), ("project_name", project.name)]
