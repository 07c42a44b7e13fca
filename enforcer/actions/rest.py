"""Small JSON requests to a scheduler's API, over TLS where it has it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
from yarl import URL

from config.values import Secret
from enforcer.actions.base import ActionError
from ledger.errors import CreditsError

TEXT_MAX: Final = 300
"""Characters of a refusal that are passed on."""


class Rest:
    """One API. The token is read at each request, as it may be rotated."""

    def __init__(
        self,
        url: str,
        token: Secret | None,
        *,
        ca_file: Path | None = None,
        client_cert: Path | None = None,
        client_key: Path | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        self.url = URL(url.rstrip("/"))
        self._token = token
        self._ca_file = ca_file
        self._client_cert = client_cert
        self._client_key = client_key
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, str]:
        """(status, JSON or None, the beginning of the text) of the answer. Sent once.

        Raises: ActionError where there is no answer.
        """
        url = self.url / path.lstrip("/")
        try:
            sent = dict(headers or {})
            if self._token is not None:
                sent["Authorization"] = f"Bearer {self._token.read()}"
            data = None if body is None else json.dumps(body)
            if data is not None:
                sent.setdefault("Content-Type", "application/json")
            async with asyncio.timeout(self._timeout_seconds):
                async with self._open().request(method, url, data=data, params=params, headers=sent) as response:
                    text = await response.text(errors="replace")
                    return response.status, _json(text), text[:TEXT_MAX]
        except TimeoutError:
            raise ActionError(f"{method} {url}: no answer within {self._timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError, CreditsError) as cause:
            raise ActionError(f"{method} {url}: {str(cause) or type(cause).__name__}") from cause

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = None
            if self.url.scheme == "https":
                context = ssl.create_default_context(cafile=None if self._ca_file is None else str(self._ca_file))
                if self._client_cert is not None:
                    context.load_cert_chain(self._client_cert, self._client_key)
                connector = aiohttp.TCPConnector(ssl=context)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
