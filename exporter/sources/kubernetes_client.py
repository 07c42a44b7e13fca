"""A thin client of the Kubernetes API: lists and watches."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
from yarl import URL

from config.sources import KubernetesSource as KubernetesSettings
from config.values import Secret
from exporter.sources.base import SourceError
from ledger.errors import CreditsError

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class KubernetesError(SourceError):
    """The API server refused or failed; `status` is its HTTP status, 0 where there was no answer."""

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class KubernetesClient:
    """Speaks to one API server. A token in a file is read at each request, as service accounts' are rotated."""

    def __init__(self, settings: KubernetesSettings, environ: Mapping[str, str] = os.environ) -> None:
        self._timeout_seconds = settings.timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self._settings = settings
        self._token = settings.token
        self._ca_file = settings.ca_file
        if settings.url is not None:
            self.url = URL(settings.url.rstrip("/"))
        else:
            host = environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
            port = environ.get("KUBERNETES_SERVICE_PORT", "443")
            self.url = URL.build(scheme="https", host=host, port=int(port))
            self._ca_file = self._ca_file or _ACCOUNT / "ca.crt"
            if self._token is None and settings.client_cert is None:
                self._token = Secret(file=_ACCOUNT / "token")

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: Mapping[str, str]) -> bytes:
        """The body of an answer 200. Raises: KubernetesError."""
        async with self._answer(path, params) as response:
            return await response.read()

    async def watch(self, path: str, params: Mapping[str, str], seconds: float) -> AsyncGenerator[bytes, None]:
        """The events of a watch, one JSON each; first an empty one, when the server has taken it.

        `seconds`: how long the server was asked to let it run; a silent connection is given up soon after.
        Raises: KubernetesError.
        """
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeout_seconds, sock_read=seconds + self._timeout_seconds
        )
        async with self._answer(path, params, timeout=timeout) as response:
            try:
                yield b""
                rest = b""
                async for chunk in response.content.iter_any():
                    if b"\n" not in chunk:
                        rest += chunk
                        continue
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if line:
                            yield line
            finally:
                # One that is given up midway is cut: over TLS a farewell would wait for the server's.
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()

    @asynccontextmanager
    async def _answer(
        self,
        path: str,
        params: Mapping[str, str],
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        where = f"GET {path}"
        try:
            async with self._open().get(
                self.url / path.lstrip("/"),
                params=params,
                headers=self._headers(),
                timeout=timeout or aiohttp.ClientTimeout(total=self._timeout_seconds),
            ) as response:
                if response.status >= 300:
                    raise await _refusal(where, response)
                yield response
        except TimeoutError:
            raise KubernetesError(f"{where}: the API server does not answer in time") from None
        except (aiohttp.ClientError, OSError) as cause:
            told = str(cause) or type(cause).__name__
            raise KubernetesError(f"{where}: the API server cannot be reached: {told}") from cause

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls()) if self.url.scheme == "https" else None
            self._session = aiohttp.ClientSession(connector=connector, read_bufsize=2**22)
        return self._session

    def _tls(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=self._ca_file and str(self._ca_file))
            if self._settings.client_cert is not None:
                context.load_cert_chain(self._settings.client_cert, self._settings.client_key)
        except (OSError, ssl.SSLError) as error:
            files = (self._ca_file, self._settings.client_cert, self._settings.client_key)
            told = ", ".join(str(file) for file in files if file is not None)
            help_ = "; outside of the cluster set url, token_file and ca_file" if self._settings.url is None else ""
            raise KubernetesError(
                f"the certificates for {self.url} ({told}) cannot be loaded: {error}{help_}"
            ) from error
        return context

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self._token is not None:
            try:
                headers["Authorization"] = f"Bearer {self._token.read()}"
            except CreditsError as error:
                raise KubernetesError(str(error)) from error
        return headers


async def _refusal(where: str, response: aiohttp.ClientResponse) -> KubernetesError:
    text = (await response.text(errors="replace"))[:300]
    asked = response.headers.get("Retry-After", "")
    if response.status in (401, 403):
        text = f"{text}; the service account needs the rights that docs/kubernetes.md lists"
    return KubernetesError(
        f"{where}: the API server answers {response.status}: {text}",
        response.status,
        float(asked) if asked.isdecimal() else None,
    )
