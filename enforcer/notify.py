"""Outgoing webhook of the cluster: every event, signed, in order, tried again until it is taken."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import msgspec

from config.values import Secret
from ledger.notices import GIVE_UP_MS, wall_ms
from ledger.store import Ledger

SIGNATURE: Final = "Credits-Signature"
"""`t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY` under the shared secret."""
EVENT: Final = "Credits-Event"
"""The event's id: the same each time an event is sent again."""
_AT_ONCE: Final = 20
_SECONDS: Final = 5.0
_LAST_PAUSE: Final = 300.0
_READER: Final = "webhook"
log = logging.getLogger(__name__)


class Notifier:
    """Events wait in the ledger, so that none is lost by a restart on either side."""

    def __init__(self, ledger: Ledger, url: str | None, secret: Secret | None, first_pause: float = 2.0) -> None:
        """`url` None: nobody is told by this webhook; events are noted all the same, for others."""
        self._notices = ledger.notices
        self._url = url
        self._secret = secret
        self._session: aiohttp.ClientSession | None = None
        self._first_pause = first_pause
        self._pause = 0.0
        self._not_before = 0.0

    async def note(self, event: Mapping[str, Any]) -> None:
        """Have an event sent; it needs an `event` of its own, by which it is noted once."""
        await self._notices.note(event)

    async def deliver(self) -> None:
        """Send what waits, oldest first, up to the first that is not taken; that one is tried again later."""
        if self._url is None or time.monotonic() < self._not_before:
            return
        before = await self._notices.cursor(_READER)
        for place, event in await self._notices.events(before, _AT_ONCE):
            age_ms = wall_ms() - int(place.partition("-")[0])
            if not await self._send(self._url, event) and age_ms < GIVE_UP_MS:
                self._pause = min(_LAST_PAUSE, max(self._first_pause, self._pause * 2))
                self._not_before = time.monotonic() + self._pause
                return
            self._pause = 0.0
            await self._notices.move(_READER, place)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _send(self, url: str, body: bytes) -> bool:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        secret = None if self._secret is None else self._secret.read()
        problem = await post(self._session, url, secret, body)
        if problem:
            log.warning("the webhook %s; it is tried again", problem)
        return not problem


async def post(session: aiohttp.ClientSession, url: str, secret: str | None, body: bytes) -> str:
    """Send an event, signed if there is a secret: "" where it was taken, else what is wrong."""
    headers = {"Content-Type": "application/json", EVENT: msgspec.json.decode(body)["event"]}
    if secret is not None:
        headers[SIGNATURE] = sign(secret, body, int(time.time()))
    try:
        async with asyncio.timeout(_SECONDS):
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                return "" if 200 <= answer.status < 300 else f"answers {answer.status}"
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return f"cannot be reached ({str(error) or type(error).__name__})"


def sign(secret: str, body: bytes, seconds: int) -> str:
    """What the receiver compares the header with."""
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"
