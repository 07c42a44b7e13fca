"""Which of an org's jobs were admitted before, so that a scheduler that starts one anew is not refused."""

from __future__ import annotations

import hashlib
from typing import Final

from ledger import keys
from ledger.clock import Clock, now_us
from ledger.lua import Scripts

REMEMBERED_US: Final = 30 * 86_400_000_000
_MOST: Final = 1000
"""Starts anew that a job of many pods can have open."""


class Admitted:
    """Jobs by all that tells them apart; each admission allows one start anew within 30 days."""

    def __init__(self, scripts: Scripts, clock: Clock | None = None) -> None:
        self._script = scripts.admitted
        self._clock: Clock = clock or now_us

    async def add(self, org: str, *parts: str) -> None:
        """A job was admitted: its cluster, place, creator, id, ...: what a copy of it would not have.

        Raises: LedgerUnavailable. A lost answer may count it twice.
        """
        await self._call("add", org, parts)

    async def take(self, org: str, *parts: str) -> bool:
        """Whether a job that would be refused may be started anew, which uses that up. Raises: LedgerUnavailable."""
        return bool(await self._call("take", org, parts))

    async def _call(self, what: str, org: str, parts: tuple[str, ...]) -> int:
        names, now = keys.of_org(org), self._clock()
        digest = hashlib.sha256(keys.US.join(parts).encode()).hexdigest()[:32]
        arguments = [what, digest, str(now), str(now - REMEMBERED_US), str(_MOST)]
        return int(await self._script([names.admitted, names.vouchers], arguments))
