"""Passes charges on to the Apolo platform, so that the balances on its own screens agree with the ledger's.

Only ever adds to what was spent there: balances are never read and never overwritten.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from yarl import URL

from config.sources import ApoloSource as ApoloSettings
from exporter.health import Once
from exporter.sources.apolo_client import ApoloClient
from exporter.sources.base import SourceError
from ledger.charge_back import ChargeBacks, Progress, Subject
from ledger.clock import Clock, now_us
from ledger.money import format_micro
from ledger.runs import hour_of
from ledger.store import Ledger

log = logging.getLogger(__name__)
_ITSELF: Final = frozenset({400, 404, 409, 422})
"""Answers that are about one org or user: the platform does not know it, say. Others have their turn."""


@dataclass(slots=True)
class Outstanding:
    """Micro-credits that the platform was not charged for: by subject, and as corrections it never will be told."""

    orgs: int = 0
    users: int = 0
    refunded: int = 0


class ChargeBack:
    """Passes on what was charged in full hours of the cluster of one source."""

    def __init__(
        self, ledger: Ledger, settings: ApoloSettings, clock: Clock = now_us, *, retry_seconds: float = 0.5
    ) -> None:
        assert settings.charge_back is not None, "it is on"
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._store = ChargeBacks(ledger, settings.cluster)
        back = settings.charge_back
        self._interval_seconds = back.interval_seconds
        token = back.token or settings.token
        self._client = ApoloClient(
            settings.url, token.read, timeout_seconds=settings.timeout_seconds, retry_seconds=retry_seconds
        )
        self._admin = URL(back.admin_url) if back.admin_url else self._client.url.origin() / "apis/admin/v1"
        self._once = Once(f"Charging back of source {settings.name}")
        self.source = settings.name
        self.outstanding: Outstanding | None = None
        """As of the last time, None before the first."""

    async def run(self) -> None:
        """Until cancelled. What fails is told once, and tried again the next time."""
        while True:
            try:
                await self.once()
            except Exception as error:
                self._once.failed(error, " The same amounts are passed on, once, when it works again.")
            else:
                self._once.well()
            await asyncio.sleep(self._interval_seconds)

    async def once(self) -> int:
        """Pass on all that is due; how many postings were made.

        Raises: SourceError, where the platform refused or did not answer; LedgerUnavailable, LedgerDamaged.
            Everything may be repeated.
        """
        mark = await self._ledger.charging.source_mark(self.source)
        if mark is None:
            return 0
        await self._store.begin(self._clock())
        hour = hour_of(min(mark, self._clock()))
        due: list[tuple[str, Subject]] = []
        left = Outstanding()
        for org in self._settings.orgs or await self._ledger.accounts.orgs():
            charges = await self._store.read(org, hour)
            left.refunded += charges.refunded_micro
            for subject in charges.subjects:
                if subject.due_micro:
                    due.append((org, subject))
                    _count(left, subject.user, subject.due_micro)
        self.outstanding = left
        made = 0
        refusals: list[str] = []
        for org, subject in due:
            try:
                made += await self._pass_on(org, subject, hour, left)
            except _Refused as refusal:
                refusals.append(str(refusal))
        if refusals:
            counted = Counter(refusals).most_common(3)
            raise SourceError(
                f"{len(refusals)} orgs or users cannot be charged: " + "; ".join(text for text, _ in counted)
            )
        return made

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _pass_on(self, org: str, subject: Subject, hour: int, left: Outstanding) -> int:
        """The posting that is under way, then the rest; how many were made."""
        progress, made = subject.progress, 0
        for _ in range(2):
            if not progress.pending_micro:
                rest = subject.charged_micro - progress.done_micro
                if rest <= 0:
                    break
                planned = progress.next(rest, hour)
                # Durable before it is sent: what is sent again must be the same.
                if await self._store.put(org, {subject.user: (progress, planned)}, durably=True):
                    break  # another exporter is at work on it
                progress = planned
            await self._post(org, subject.user, progress)
            if await self._store.put(org, {subject.user: (progress, progress.confirmed())}, durably=False):
                break
            _count(left, subject.user, -progress.pending_micro)
            progress = progress.confirmed()
            made += 1
        return made

    async def _post(self, org: str, user: str, progress: Progress) -> None:
        place = ["orgs", org, *(["users", user] if user else ()), "spending"]
        if not {".", ".."}.isdisjoint(place):
            raise _Refused(f"{org!r}, {user!r} cannot be named in an address")
        url = self._admin.joinpath(*(quote(name, safe="") for name in place), encoded=True)
        amount = format_micro(progress.pending_micro)
        key = await self._store.key_of(org, user, progress)
        status, text = await self._client.post(url, {"spending": amount}, [("idempotency_key", key)])
        if 200 <= status < 300:
            return
        told = f"{url} answers {status}: {text[:200]}"
        if status in _ITSELF:
            raise _Refused(told)
        if status in (401, 403):
            raise SourceError(f"{told}; charge_back.token has to be one that may charge the orgs of the cluster")
        raise SourceError(told)


class _Refused(SourceError):
    """One subject cannot be charged."""


def _count(left: Outstanding, user: str, micro: int) -> None:
    if user:
        left.users += micro
    else:
        left.orgs += micro
