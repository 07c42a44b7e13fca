"""A thin client of the Apolo platform's API: bounded, retried where that is safe, with errors that help."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from exporter.sources.base import SourceError
from ledger.errors import CreditsError

LINE_MAX: Final = 16 * 2**20
"""Bytes of the longest line of a list: a job carries its whole environment."""
_STREAM_SECONDS: Final = 900
_ATTEMPTS: Final = 3
_RETRY_AFTER_MAX: Final = 10.0
_PASSING: Final = frozenset({429, 502, 503, 504})
_URL_HINT: Final = "is `url` that of the platform's API, with /api/v1?"
_IDENTITY: Final = ("identity", "https://platform.neuromation.io/user")

Params = Sequence[tuple[str, str]]


class NotFound(SourceError):
    """The platform knows no such thing."""


class NotAllowed(SourceError):
    """The token may not do this."""


class BadToken(NotAllowed):
    """The token is none, or none any more."""


class _Missing(msgspec.Struct):
    missing: list[dict[str, str]] = []


class ApoloClient:
    """Speaks to one platform. `token` is asked at each request, as tokens are rotated."""

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        timeout_seconds: float = 60.0,
        retry_seconds: float = 0.5,
    ) -> None:
        self.url = URL(url.rstrip("/"))
        self._token = token
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def get(self, url: URL, params: Params = ()) -> bytes:
        """The body of an answer 200. Raises: SourceError; NotFound and NotAllowed among them."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    async with self._open().get(url, params=params, headers=self._headers()) as response:
                        if response.status == 200:
                            return await response.read()
                        error = await _refusal(response)
                        if response.status not in _PASSING or attempt == _ATTEMPTS:
                            raise error
                        pause = _pause(response, self._retry_seconds * 2 ** (attempt - 1))
            except TimeoutError:
                raise SourceError(f"{_shown(url)} gave no answer within {self._timeout_seconds:g} s") from None
            except (aiohttp.ClientError, OSError) as cause:
                if attempt == _ATTEMPTS:
                    raise SourceError(f"{_shown(url)} cannot be reached: {_told(cause)}") from cause
                pause = self._retry_seconds * 2 ** (attempt - 1)
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def lines(self, url: URL, params: Params = ()) -> AsyncIterator[bytes]:
        """The lines of an ndjson list, as they come.

        Raises: SourceError where the list breaks off; what was given before is not the whole list then.
        """
        headers = self._headers() | {"Accept": "application/x-ndjson"}
        try:
            async with asyncio.timeout(_STREAM_SECONDS):
                async with self._open().get(url, params=params, headers=headers) as response:
                    if response.status != 200:
                        raise await _refusal(response)
                    if response.content_type != "application/x-ndjson":
                        raise SourceError(
                            f"{_shown(url)} answers with {response.content_type}, not with a list of lines; {_URL_HINT}"
                        )
                    rest = b""
                    async for chunk in response.content.iter_any():
                        *whole, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
                        for line in whole:
                            if line:
                                yield line
                        if len(rest) > LINE_MAX:
                            raise SourceError(f"{_shown(url)} sends a line of more than {LINE_MAX} bytes")
                    if rest:
                        yield rest
        except TimeoutError:
            raise SourceError(f"{_shown(url)}: the list does not go on or end") from None
        except (aiohttp.ClientError, OSError) as cause:
            raise SourceError(f"{_shown(url)}: the list breaks off: {_told(cause)}") from cause

    async def missing_rights(self, admin_url: URL, needed: Params) -> list[str]:
        """Which of the rights (uri, action) the token does not have, as `action uri`.

        Raises: SourceError where the platform does not say.
        """
        url = admin_url / "users" / self.user() / "permissions" / "check"
        status, text = await self.post(url, [{"uri": uri, "action": action} for uri, action in needed])
        if status == 200:
            return []
        if status == 403:
            try:
                missing = msgspec.json.decode(text, type=_Missing).missing
            except msgspec.DecodeError:
                missing = []
            if missing:
                return [f"{right.get('action', '?')} {right.get('uri', '?')}" for right in missing]
        if status == 401:
            raise NotAllowed(_bad_token(url))
        hint = f"; {_URL_HINT}" if status in (404, 405) else ""
        raise SourceError(
            f"{_shown(url)} answers {status} instead of telling the token's rights: {text[:300] or 'no text'}{hint}"
        )

    def user(self) -> str:
        """Whose the token is. Raises: SourceError for a token that does not say."""
        parts = self._bearer().split(".")
        try:
            payload = parts[1] + "=" * (-len(parts[1]) % 4)
            claims = msgspec.json.decode(base64.urlsafe_b64decode(payload))
            user = next(claims[claim] for claim in _IDENTITY if claim in claims)
        except (IndexError, binascii.Error, msgspec.DecodeError, UnicodeError, StopIteration, TypeError):
            raise SourceError(
                "the token does not say whose it is; use a token of the platform (`apolo config show-token`)"
            ) from None
        return str(user)

    async def post(self, url: URL, body: object, params: Params = ()) -> tuple[int, str]:
        """(status, text) of one try. Raises: SourceError where there is no answer: it may have been done or not."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                async with self._open().post(url, json=body, params=params, headers=self._headers()) as response:
                    return response.status, await response.text(errors="replace")
        except TimeoutError:
            raise SourceError(f"{_shown(url)} gave no answer within {self._timeout_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as cause:
            raise SourceError(f"{_shown(url)} cannot be reached: {_told(cause)}") from cause

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=self._timeout_seconds),
                read_bufsize=2**22,
            )
        return self._session

    def _bearer(self) -> str:
        try:
            return self._token()
        except CreditsError as error:
            raise SourceError(str(error)) from error

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._bearer()}"}


def _bad_token(url: URL) -> str:
    return f"{_shown(url)} does not accept the token (401): it is wrong or has expired; give a new one"


async def _refusal(response: aiohttp.ClientResponse) -> SourceError:
    text = (await response.text(errors="replace"))[:300]
    where = _shown(response.url)
    if response.status == 404:
        return NotFound(f"{where} is not there: {text}")
    if response.status == 401:
        return BadToken(_bad_token(response.url))
    if response.status == 403:
        return NotAllowed(f"{where} is not allowed to the token's user (403): {text}")
    return SourceError(f"{where} answers {response.status}: {text}")


def _pause(response: aiohttp.ClientResponse, seconds: float) -> float:
    """How long to wait: what the server asks for, within reason."""
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), _RETRY_AFTER_MAX) if asked.isdecimal() else seconds


def _shown(url: URL) -> str:
    # Neither a password nor a query full of ids belongs into logs.
    return str(url.with_user(None).with_query(None))


def _told(cause: Exception) -> str:
    return str(cause) or type(cause).__name__
