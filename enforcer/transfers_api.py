"""Transfers between orgs over HTTP, and what finishes those that somebody left under way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Final

import msgspec
from aiohttp import web

from api import shapes
from api.routes import Operation, Route
from api.types import AskedCredits, IdempotencyKey, Name, said
from enforcer.access import ADMIN
from enforcer.bodies import amount, answer, read_json, required_name
from enforcer.headers import GIVES_REPLAYED, caller, idempotency_key, replayed
from ledger.corrections import REASON_MAX
from ledger.errors import CreditsError
from ledger.store import Ledger
from ledger.transfers import Transfers, transfer_shape

SWEEP_SECONDS: Final = 60.0
log = logging.getLogger(__name__)


class TransferBody(msgspec.Struct, forbid_unknown_fields=True):
    """Credits that are to move from one org to another."""

    source: Name = msgspec.field(name="from")
    target: Name = msgspec.field(name="to")
    credits: AskedCredits
    reason: Annotated[str, said(maxLength=REASON_MAX)] = ""


class TransfersApi:
    """Moves credits between orgs."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def routes(self) -> list[Route]:
        about = Operation(
            "orgs", shapes.Transfer, TransferBody, headers=IdempotencyKey, statuses=(201,), problems=(404, 409),
            gives=GIVES_REPLAYED, example={"from": "acme", "to": "globex", "credits": "100", "reason": "lent"},
        )  # fmt: skip
        return [Route("POST", "/v1/transfers", self.transfer, (ADMIN,), about=about)]

    async def transfer(self, request: web.Request) -> web.Response:
        """Moves credits from one org to another, where they expire when they would have.

        Only what is available moves, the soonest to expire first: what is held, what running work needs and restricted
        grants stay. Where this is answered by a 503, or not at all, ask again with the same key: nothing moves twice.
        """
        key = idempotency_key(request)
        body = await read_json(request, TransferBody)
        receipt = await self._ledger.transfers.transfer(
            required_name("from", body.source), required_name("to", body.target), amount("credits", body.credits),
            key=key, reason=body.reason, **caller(request),
        )  # fmt: skip
        return answer(transfer_shape(receipt.record), 201, replayed(receipt.replayed))


@asynccontextmanager
async def sweeping(transfers: Transfers, seconds: float = SWEEP_SECONDS) -> AsyncIterator[None]:
    """Finishes transfers that a crash left under way: at once, and then every `seconds`, while the block lasts."""
    task = asyncio.create_task(_sweep(transfers, seconds))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _sweep(transfers: Transfers, seconds: float) -> None:
    while True:
        try:
            finished = await transfers.sweep()
        except CreditsError as error:
            log.warning("transfers that may be under way are looked at again later: %s", error)
        except Exception:
            log.exception("transfers that may be under way could not be looked at")
        else:
            if finished:
                log.warning("finished %d transfers that were left under way", finished)
        await asyncio.sleep(seconds)
