"""What running work of a source had set aside ends when nobody meters the source any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Container

from exporter.books import Books
from exporter.rounds import TRIES
from ledger.errors import CreditsError
from ledger.plan import Plan

log = logging.getLogger(__name__)
QUIET_US = 600_000_000
"""A source that is not configured here and was not metered for so long is metered by nobody."""


async def retire_old(books: Books, configured: Container[str], now_us: int) -> None:
    """Give back what the running work of sources has set aside that are not configured and were not metered lately.

    What was charged stays. Should another exporter still meter such a source, its next round sets everything
    aside again. Raises: LedgerUnavailable, LedgerDamaged.
    """
    marks = await books.ledger.charging.source_marks()
    await _retire(books, [s for s in await _others(books, configured) if marks.get(s, 0) < now_us - QUIET_US])


async def retire_idle(books: Books, configured: Container[str], watch_seconds: float) -> None:
    """For ever: the same for those that nobody metered while this watched, since they may have been renamed."""
    before: dict[str, int] = {}
    while True:
        try:
            marks = await books.ledger.charging.source_marks()
            others = await _others(books, configured)
            await _retire(books, [s for s in others if s in before and before[s] == marks.get(s, 0)])
            before = {source: marks.get(source, 0) for source in others}
        except CreditsError as error:
            log.debug("Sources that are gone could not be looked for: %s", error)
        await asyncio.sleep(watch_seconds)


async def _others(books: Books, configured: Container[str]) -> set[str]:
    await books.load_all()
    return {source for state in books.states.values() for source in state.marks if source not in configured}


async def _retire(books: Books, sources: Collection[str]) -> None:
    for org in list(books.states):
        for source in sources:
            if source in books.states[org].marks:
                async with books.lock(org):
                    await _give_back(books, org, source)


async def _give_back(books: Books, org: str, source: str) -> None:
    state = books.states[org]
    for _ in range(TRIES):
        burns = await books.ledger.charging.burn(org, source)
        if not state.running.get(source) and not burns:
            return
        if await books.ledger.charging.commit(Plan(org, source, running={}), state):
            log.warning(
                "Source %s is not configured any more: what its running work of org %s had set aside is free again. "
                "What it ran is charged up to its last snapshot.",
                source,
                org,
            )
            return
        state = await books.reload(org)
