"""Tells a webhook of stage changes: signed, again until it takes them, and recognizable when told twice."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from typing import Final

import aiohttp

from config.settings import Webhook
from ledger.errors import CreditsError
from ledger.store import Ledger

SIGNATURE: Final = "Credits-Signature"
_TIMEOUT: Final = aiohttp.ClientTimeout(total=10)
_LOOK_SECONDS: Final = 5.0
_PAUSE_SECONDS_MAX: Final = 300.0
log = logging.getLogger(__name__)


def sign(secret: str, at: int, body: bytes) -> str:
    """Value of the signature header: `t=SECONDS,v1=HEX`, an HMAC-SHA256 over `SECONDS.BODY`."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Webhooks:
    """Delivers what is in the outboxes of all orgs, in order for each org, until cancelled."""

    def __init__(self, ledger: Ledger, settings: Webhook, *, look_seconds: float = _LOOK_SECONDS) -> None:
        self._ledger = ledger
        self._settings = settings
        self._look_seconds = look_seconds

    async def run(self) -> None:
        pause = self._look_seconds
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                try:
                    pause = self._look_seconds if await self.deliver(session) else min(2 * pause, _PAUSE_SECONDS_MAX)
                except (CreditsError, OSError) as error:
                    log.warning("stage changes are not told yet: %s", error)
                await asyncio.sleep(pause)

    async def deliver(self, session: aiohttp.ClientSession) -> bool:
        """One pass; False where the webhook did not take something."""
        for org in await self._ledger.accounts.orgs():
            for event_id, body in (await self._ledger.stages.outbox(org)).items():
                if not await self._post(session, f"{org}:{event_id}", body):
                    return False
                await self._ledger.stages.delivered(org, event_id)
        return True

    async def _post(self, session: aiohttp.ClientSession, event: str, body: bytes) -> bool:
        key = hashlib.sha256(event.encode()).hexdigest()
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": key,
            SIGNATURE: sign(self._settings.secret.read(), int(time.time()), body),
        }
        try:
            async with session.post(self._settings.url, data=body, headers=headers) as answer:
                if answer.status < 300:
                    return True
                log.warning("the webhook answered %d to %s; it is told again", answer.status, event)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("the webhook did not take %s: %s; it is told again", event, error or type(error).__name__)
        return False
