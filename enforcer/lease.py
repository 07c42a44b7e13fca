"""The right to act on what runs: one enforcer has it at a time, for as long as it renews it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from ledger.errors import CreditsError
from ledger.exhaustion import ExhaustionStore

_RENEWALS: Final = 3
"""Within the time of a lease."""
log = logging.getLogger(__name__)


class LeaseLost(CreditsError):
    """Another enforcer may act on what runs by now; this one stops."""


class Lease:
    """Whoever holds it knows by his own clock until when at least: from before it was asked for."""

    def __init__(self, store: ExhaustionStore, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._who = secrets.token_hex(8)
        self._until = 0.0

    async def take(self) -> bool:
        """Whether it is ours now. Raises: LedgerUnavailable."""
        asked = time.monotonic()
        has = await self._store.lead(self._who, self._seconds)
        self._until = asked + self._seconds if has else 0.0
        return has

    @property
    def is_ours(self) -> bool:
        """Whether it is for sure."""
        return time.monotonic() < self._until

    def check(self) -> None:
        """Raises: LeaseLost, unless it is ours for sure."""
        if not self.is_ours:
            raise LeaseLost("Another enforcer acts on what runs now: the lease was not renewed in time.")

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew it for as long as the block lasts."""
        over = asyncio.Event()
        task = asyncio.create_task(self._keep(over))
        try:
            yield
        finally:
            # Asked to end rather than cancelled: a cancellation can get lost inside a connection that is just made.
            over.set()
            await task

    async def give_up(self) -> None:
        """Let another enforcer go on at once."""
        with suppress(CreditsError):
            await self._store.lead(self._who, 0)
        self._until = 0.0

    async def _keep(self, over: asyncio.Event) -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds / _RENEWALS):
                    await over.wait()
                return
            try:
                if not await self.take():
                    return  # whoever acts notices it
            except CreditsError as error:
                log.warning("the lease of who acts on what runs cannot be renewed: %s", error)
