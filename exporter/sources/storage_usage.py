"""Shared storage by use: bytes of each project's folder, out of a Prometheus (`storage_used_bytes`)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from exporter.sources import names
from exporter.sources.base import SourceError
from exporter.sources.names import Unbillable, optional_name, required_name
from ledger.errors import CreditsError
from ledger.model import Kind, Observation

logger = logging.getLogger(__name__)

QUERY: Final = "max by (org_name, project_name) (storage_used_bytes)"
STALE: Final = "stale_storage"
"""Storage that could not be asked for: it is charged for the bytes last reported."""
_NO_ORG: Final = "no_org"
_BYTES_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class StorageView:
    """What is stored. Not `complete`: what is missing here is not deleted."""

    volumes: tuple[Observation, ...] = ()
    complete: bool = True
    unbillable: dict[str, int] = field(default_factory=dict)


class _Series(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _Data(msgspec.Struct):
    resultType: str  # noqa: N815 - Prometheus' own name
    result: list[_Series]


class _Answer(msgspec.Struct):
    status: str
    data: _Data | None = None
    error: str = ""


_answer = msgspec.json.Decoder(_Answer)


def read_usage(body: bytes, storage_class: str) -> StorageView:
    """The answer to an instant query. Series of one project (replicas) count once, the larger.

    Raises: SourceError for what is not such an answer.
    """
    try:
        answer = _answer.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"Prometheus answers with something else: {error}") from error
    if answer.status != "success" or answer.data is None or answer.data.resultType != "vector":
        raise SourceError(f"Prometheus refuses the query for storage: {answer.error or answer.status}")
    largest: dict[tuple[str, str], int] = {}
    unbillable: dict[str, int] = {}
    for series in answer.data.result:
        try:
            org = series.metric.get("org_name", "")
            org = required_name("" if org == _NO_ORG else org, names.NO_ORG)
            place = org, optional_name(series.metric.get("project_name"))
            size = _bytes(series.value[1])
        except Unbillable as verdict:
            unbillable[verdict.reason] = unbillable.get(verdict.reason, 0) + 1
            continue
        largest[place] = max(size, largest.get(place, 0))
    volumes = tuple(
        Observation(f"storage:{org}/{project}", Kind.STORAGE.value, org, project, "", storage_class, bytes=size)
        for (org, project), size in sorted(largest.items())
    )
    return StorageView(volumes, names.MALFORMED not in unbillable, unbillable)


def _bytes(text: str) -> int:
    try:
        size = int(Decimal(text))
    except (InvalidOperation, ValueError, OverflowError) as error:
        raise Unbillable(names.MALFORMED) from error
    if not 0 <= size <= _BYTES_MAX:
        raise Unbillable(names.MALFORMED)
    return size


class UsageReader:
    """Asks a Prometheus. What it cannot say for now stays as it was; an empty answer is no answer."""

    def __init__(
        self,
        url: str,
        *,
        query: str = QUERY,
        storage_class: str = "default",
        token: Callable[[], str] | None = None,
        timeout_seconds: float = 10.0,
    ) -> None:
        self._url = URL(url.rstrip("/")) / "api/v1/query"
        self._query = query
        self._storage_class = storage_class
        self._token = token
        self._timeout_seconds = timeout_seconds
        self._known: tuple[Observation, ...] | None = None

    async def view(self, session: aiohttp.ClientSession) -> StorageView:
        """What is stored now; where that is not to be had, what was stored last, counted as stale."""
        try:
            found = read_usage(await self._ask(session), self._storage_class)
        except SourceError as error:
            logger.warning("%s", error)
            found = StorageView()
        # An exporter that is away leaves an empty vector behind, just as if all had been deleted.
        if not found.volumes:
            known = self._known or ()
            return StorageView(known, self._known is not None, {STALE: max(1, len(known))})
        self._known = found.volumes
        return found

    async def _ask(self, session: aiohttp.ClientSession) -> bytes:
        try:
            headers = {} if self._token is None else {"Authorization": f"Bearer {self._token()}"}
            async with asyncio.timeout(self._timeout_seconds):
                async with session.get(self._url, params={"query": self._query}, headers=headers) as response:
                    return await response.read()
        except (aiohttp.ClientError, OSError, CreditsError) as error:
            raise SourceError(f"Prometheus cannot be asked for storage: {error}") from error
