"""Outgoing webhook: every stage an org enters, signed, in order, tried again until it is taken."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import aiohttp
import msgspec

from config.values import Secret
from ledger import keys
from ledger.connect import again
from ledger.store import Ledger

SIGNATURE: Final = "Credits-Signature"
"""`t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY` under the shared secret."""
EVENT: Final = "Credits-Event"
"""The event's id: the same each time an event is sent again."""
_KEPT: Final = 10_000
_AT_ONCE: Final = 20
_SECONDS: Final = 5.0
_LAST_PAUSE: Final = 300.0
_GIVE_UP_MS: Final = 86_400_000
log = logging.getLogger(__name__)


class Notifier:
    """Events wait in the ledger, so that none is lost by a restart on either side."""

    def __init__(self, ledger: Ledger, url: str, secret: Secret | None, first_pause: float = 2.0) -> None:
        self._client: Any = ledger.client
        self._url = url
        self._secret = secret
        self._session: aiohttp.ClientSession | None = None
        self._first_pause = first_pause
        self._pause = 0.0
        self._not_before = 0.0

    async def note(self, event: Mapping[str, Any]) -> None:
        """Have an event sent; it needs an `event` of its own."""
        body = msgspec.json.encode(event)
        arguments = ("XADD", keys.EVENTS, "MAXLEN", "~", _KEPT, "*", "event", body)
        await again(lambda: self._client.execute_command(*arguments), pauses=())

    async def deliver(self) -> None:
        """Send what waits, oldest first, up to the first that is not taken; that one is tried again later."""
        if time.monotonic() < self._not_before:
            return
        items = await again(lambda: self._client.xrange(keys.EVENTS, count=_AT_ONCE))
        for name, fields in items:
            age_ms = time.time() * 1000 - int(name.partition(b"-")[0])
            if not await self._send(fields[b"event"]) and age_ms < _GIVE_UP_MS:
                self._pause = min(_LAST_PAUSE, max(self._first_pause, self._pause * 2))
                self._not_before = time.monotonic() + self._pause
                return
            self._pause = 0.0
            await again(partial(self._client.xdel, keys.EVENTS, name))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _send(self, body: bytes) -> bool:
        event = msgspec.json.decode(body)
        headers = {"Content-Type": "application/json", EVENT: event["event"]}
        if self._secret is not None:
            headers[SIGNATURE] = sign(self._secret.read(), body, int(time.time()))
        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            async with asyncio.timeout(_SECONDS):
                async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                    if 200 <= answer.status < 300:
                        return True
                    log.warning("the webhook answers %d; it is tried again", answer.status)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("the webhook cannot be reached (%s); it is tried again", error or type(error).__name__)
        return False


def sign(secret: str, body: bytes, seconds: int) -> str:
    """What the receiver compares the header with."""
    digest = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={digest}"
