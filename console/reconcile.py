"""Asks the provider for payments whose webhook never came, again and again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from typing import Any, Final

from console.payments import Till
from ledger import keys
from ledger.connect import again
from ledger.errors import CreditsError, LedgerUnavailable
from ledger.store import Ledger

_DAY_US: Final = 86_400_000_000
_BACK_US: Final = 2 * _DAY_US
"""A session lives for a day at most, so what is paid now was created no longer ago, and some more."""
_FAR_BACK_US: Final = 120 * _DAY_US
"""Slow payments, refunds that fail and disputes take longer: once a day, and at the start, it looks so far."""
_FAILED_MAX: Final = 20
"""So many in one round are not the fault of these news."""
log = logging.getLogger(__name__)


class Reconciler:
    """Harmless beside webhooks and other processes that do the same: all of it is idempotent."""

    def __init__(self, ledger: Ledger, till: Till) -> None:
        self._ledger = ledger
        self._till = till
        self._looked_far_us = 0

    async def once(self) -> Counter[str]:
        """One round: what became of how many news. Where it breaks off, the next one begins where this did.

        News that cannot be dealt with hold up no others. Raises: ProviderUnavailable, LedgerUnavailable.
        """
        client: Any = self._ledger.client
        now = self._ledger.clock()
        is_far = now - self._looked_far_us >= _DAY_US
        before = await again(lambda: client.get(keys.PAYMENTS_CHECKED))
        since = self._ledger.epoch_us if before is None else int(before)
        since = max(0, min(since, now) - (_FAR_BACK_US if is_far else _BACK_US))
        results: Counter[str] = Counter()
        failed: list[Exception] = []
        for news in await self._till.provider.news_since(since):
            try:
                results[await self._till.take(news)] += 1
            except LedgerUnavailable:
                raise
            except Exception as error:
                log.warning("not dealt with: %s: %s", news, error)
                failed.append(error)
                if len(failed) == _FAILED_MAX:
                    break
        if failed:
            raise failed[0]
        await again(lambda: client.set(keys.PAYMENTS_CHECKED, str(now)))
        if is_far:
            self._looked_far_us = now
        if results["credited"] or results["changed"]:
            log.warning("%d payments and %d returns had no webhook", results["credited"], results["changed"])
        return results

    async def run(self, seconds: float) -> None:
        """A round every so often, until it is cancelled."""
        while True:
            try:
                await self.once()
            except CreditsError as error:
                log.warning("payments were not reconciled: %s", error)
            except Exception:
                log.exception("payments were not reconciled")
            await asyncio.sleep(seconds)


async def end(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
