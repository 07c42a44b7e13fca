"""The ledger as one thing: a server's connection and everything that is done through it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ledger import keys
from ledger.accounts import Accounts
from ledger.admission import Admissions
from ledger.admitted import Admitted
from ledger.budget_store import BudgetStore
from ledger.charging import Charging
from ledger.clock import Clock, now_us
from ledger.connect import Client, again, connect
from ledger.corrections import Corrections
from ledger.embedded import read_marker, write_marker
from ledger.errors import LedgerDamaged
from ledger.exhaustion import ExhaustionStore
from ledger.lua import Scripts, text
from ledger.notices import Notices
from ledger.rates_store import RatesStore
from ledger.refusals import Refusals
from ledger.tokens import Tokens
from ledger.transfers import Transfers

SCHEMA = "1"


class Ledger:
    """All operations, by who uses them. `epoch_us`: nothing before it is ever charged."""

    def __init__(self, client: Client, epoch_us: int, clock: Clock | None = None) -> None:
        self.client = client
        self.epoch_us = epoch_us
        self.given_clock = clock
        """Replaces this machine's and the server's in tests."""
        self.clock: Clock = clock or now_us
        self.scripts = Scripts(client)
        self.accounts = Accounts(client, self.scripts, clock)
        self.charging = Charging(client, self.scripts, clock)
        self.rates = RatesStore(client, self.scripts, clock)
        self.budgets = BudgetStore(client, self.scripts, self.rates, clock)
        self.admissions = Admissions(client, self.scripts, self.rates, self.budgets, clock)
        self.admitted = Admitted(client, clock)
        self.exhaustion = ExhaustionStore(client, self.scripts)
        self.notices = Notices(client, self.scripts)
        self.refusals = Refusals(client)
        self.tokens = Tokens(client, clock)
        self.corrections = Corrections(client, clock)
        self.transfers = Transfers(client, self.accounts, clock)


@asynccontextmanager
async def open_ledger(
    url: str, data_dir: Path | None = None, epoch_us: int | None = None, clock: Clock | None = None
) -> AsyncIterator[Ledger]:
    """The ledger at `url`; a new one is given its epoch (`epoch_us`, else now), which never changes after.

    Raises: LedgerUnavailable, LedgerDamaged, InvalidRequest (see `connect`).
    """
    async with connect(url, data_dir) as client:
        epoch = await _initialize(client, epoch_us if epoch_us is not None else (clock or now_us)())
        if url == "embedded" and data_dir is not None and read_marker(data_dir) is None:
            ledger_id = await again(lambda: client.hget(keys.META, "ledger_id"))
            write_marker(data_dir, text(ledger_id))
        yield Ledger(client, epoch, clock)


async def _initialize(client: Any, epoch_us: int) -> int:
    first = {"schema": SCHEMA, "ledger_id": secrets.token_hex(8), "epoch_us": str(epoch_us)}
    for name, value in first.items():
        await again(partial(client.hsetnx, keys.META, name, value))
    schema, epoch = await again(lambda: client.hmget(keys.META, ["schema", "epoch_us"]))
    if text(schema) != SCHEMA:
        raise LedgerDamaged(
            f"the ledger has schema {text(schema)}, this program knows {SCHEMA}; use the one that made it"
        )
    return int(epoch)
