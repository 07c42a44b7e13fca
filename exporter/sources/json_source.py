"""The `json` source: any scheduler, through a file, an http(s) URL or a command that gives one document."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from exporter.sources.base import SourceError
from exporter.sources.command import run_command
from exporter.sources.json_document import Cache, parse
from ledger.clock import format_time
from ledger.errors import CreditsError
from ledger.model import Snapshot

BYTES_MAX: Final = 512 * 1024 * 1024
"""Unpacked size of the largest document: about two million workloads."""
_REDIRECTS_MAX: Final = 5
_GZIP_MAGIC: Final = b"\x1f\x8b"


class JsonSource:
    """Fetches a document from one of `path`, `url` and `command` (a string goes to /bin/sh), and reads it.

    Every way may give gzip. An answer has to be whole within `timeout_seconds`. `token` gives the bearer
    token for the server of the URL, asked at each fetch (it may be rotated) and never sent to another server.
    A command finds the instant up to which is charged already in CREDITS_SINCE (RFC 3339, or empty), to list
    what has ended after it.
    """

    def __init__(
        self,
        *,
        name: str,
        cluster: str,
        path: str | os.PathLike[str] | None = None,
        url: str | None = None,
        command: str | Sequence[str] | None = None,
        token: Callable[[], str] | None = None,
        timeout_seconds: float = 10.0,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        if sum(bool(way) for way in (path, url, command)) != 1:
            raise ValueError("a json source has exactly one of path, url and command")
        self.name = name
        self.cluster = cluster
        self._path = None if path is None else Path(path)
        self._url = None if url is None else URL(url)
        self._token = token
        self._argv = ("/bin/sh", "-c", command) if isinstance(command, str) else tuple(command or ())
        self._timeout_seconds = timeout_seconds
        self._bytes_max = bytes_max
        self._cache = Cache()
        self._session: aiohttp.ClientSession | None = None
        # A thread of its own: a file system that hangs must not take the threads of the other sources.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"source-{name}")

    async def fetch(self, since_us: int | None) -> Snapshot:
        """The document as it is now. Raises: SourceError."""
        if self._argv:
            data = await self._run(since_us)
        else:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    data = await self._get()
            except TimeoutError:
                raise SourceError(f"{self.name}: no answer within {self._timeout_seconds:g} s") from None
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._parse, data)

    async def close(self) -> None:
        """Close connections; a read that hangs is left behind."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._session is not None:
            await self._session.close()

    async def _run(self, since_us: int | None) -> bytes:
        try:
            return await run_command(
                self._argv,
                timeout_seconds=self._timeout_seconds,
                bytes_max=self._bytes_max,
                environ={"CREDITS_SINCE": "" if since_us is None else format_time(since_us)},
            )
        except SourceError as error:
            raise SourceError(f"{self.name}: {error}") from error

    async def _get(self) -> bytes:
        if self._url is not None:
            return await self._download(self._url)
        assert self._path is not None, "the constructor made sure of it"
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, self._path)

    def _read(self, path: Path) -> bytes:
        try:
            # Opening a pipe would wait for its writer, so what the path is comes first.
            if not stat.S_ISREG(path.stat().st_mode):
                raise SourceError(f"{self.name}: {path} is not a regular file")
            with path.open("rb") as file:
                data = file.read(self._bytes_max + 1)
        except OSError as error:
            raise SourceError(f"{self.name}: {path} cannot be read: {error.strerror or error}") from error
        self._check_size(len(data))
        return data

    async def _download(self, url: URL) -> bytes:
        # Neither a password nor a token in the query belongs into logs.
        shown = url.with_user(None).with_query(None)
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        try:
            headers = {} if self._token is None else {"Authorization": f"Bearer {self._token()}"}
            async with self._session.get(url, headers=headers, max_redirects=_REDIRECTS_MAX) as response:
                if response.status != 200:
                    raise SourceError(f"{self.name}: {shown} answers {response.status} {response.reason}")
                if url.scheme == "https" and response.url.scheme != "https":
                    raise SourceError(f"{self.name}: {shown} redirects away from https")
                data = bytearray()
                async for chunk in response.content.iter_any():
                    data += chunk
                    self._check_size(len(data))
                return bytes(data)
        except (TimeoutError, SourceError):
            raise
        except CreditsError as error:
            raise SourceError(f"{self.name}: {error}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Some of these spell out the whole URL; those that tell of the connection do not.
            told = f": {error}" if isinstance(error, aiohttp.ClientConnectionError | OSError) else ""
            raise SourceError(f"{self.name}: {shown} cannot be fetched: {type(error).__name__}{told}") from error

    def _parse(self, data: bytes) -> Snapshot:
        if data.startswith(_GZIP_MAGIC):
            try:
                data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(self._bytes_max + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise SourceError(f"{self.name}: broken gzip: {error}") from error
            self._check_size(len(data))
        return parse(data, self.name, self.cluster, self._cache)

    def _check_size(self, size: int) -> None:
        if size > self._bytes_max:
            raise SourceError(f"{self.name}: the document is larger than {self._bytes_max} bytes")
