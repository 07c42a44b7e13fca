"""Who a token is: asked of the ledger within the time for a request, and also known while the ledger is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from ledger.errors import LedgerUnavailable
from ledger.tokens import Token, Tokens

WAITED: Final = web.RequestKey("waited", float)
"""Seconds that were waited for who calls, of the time for the request. Not there where nothing was waited for."""
_PART: Final = 0.8
"""Of the time for a request: how long to wait for who somebody is who was never seen. Nothing can go on without."""
_SEEN_PART: Final = 0.25
"""The same for somebody who was seen lately."""


class Callers:
    """Looks tokens up. One that was seen within an hour counts as last seen where the ledger does not say."""

    def __init__(self, tokens: Tokens, seconds: float, is_away: Callable[[], bool]) -> None:
        """`seconds`: for a whole request. `is_away`: whether the ledger is known not to answer."""
        self._tokens = tokens
        self._seconds = seconds
        self._is_away = is_away
        self.known = tokens.known

    async def find(self, request: web.Request, credential: str) -> Token | None:
        """For calls that cannot do without the ledger. Raises: LedgerUnavailable, TimeoutError."""
        async with asyncio.timeout(self._seconds):
            return await self._tokens.authenticate(credential.strip())

    async def find_in_time(self, request: web.Request, credential: str) -> Token | None:
        """For calls that are answered without the ledger, too, and share their time with this: see `WAITED`.

        Raises: LedgerUnavailable for one that was not seen within an hour, while the ledger does not answer.
        """
        credential, is_away = credential.strip(), self._is_away()
        seen = self._tokens.last_seen(credential)
        if seen is not None and is_away:
            return seen
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            async with asyncio.timeout(self._seconds * (_PART if seen is None and not is_away else _SEEN_PART)):
                return await self._tokens.authenticate(credential)
        except TimeoutError:
            seen = self._tokens.last_seen(credential)  # by now
            if seen is None:
                raise LedgerUnavailable("Who calls cannot be found out right now. Please try again.") from None
            return seen
        finally:
            request[WAITED] = loop.time() - start
