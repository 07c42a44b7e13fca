"""What running work of a source had set aside ends when the source is no longer configured."""

from __future__ import annotations

import logging
from collections.abc import Container

from exporter.rounds import TRIES, Books
from ledger.plan import Plan

log = logging.getLogger(__name__)


async def retire_sources(books: Books, configured: Container[str]) -> None:
    """Give back what the running work of all other sources has set aside, and no longer count its burn.

    What was charged stays. Where another exporter on the same ledger still has such a source, its next round
    sets everything aside again. Raises: LedgerUnavailable, LedgerDamaged.
    """
    await books.load_all()
    for org in list(books.states):
        for source in [s for s in books.states[org].marks if s not in configured]:
            await _retire(books, org, source)


async def _retire(books: Books, org: str, source: str) -> None:
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
