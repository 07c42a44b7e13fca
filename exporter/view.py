"""What `/metrics` shows of the ledger: the books of this exporter, and balances read after each round.

A scrape reads it and never asks the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from exporter.books import Books
from exporter.health import LedgerHealth, SourceHealth
from ledger.balances import Balance
from ledger.budget_store import BudgetState
from ledger.errors import CreditsError, LedgerUnavailable
from ledger.grant_list import granted_in_use
from ledger.model import RatePlan
from ledger.org_state import OrgState


class View:
    """Read-only for those that render it."""

    def __init__(self, books: Books, sources: Sequence[SourceHealth], ledger: LedgerHealth) -> None:
        self.sources = sources
        self.ledger = ledger
        self.epoch_us = books.ledger.epoch_us
        self.balances: Sequence[Balance] = ()
        self.budgets: Sequence[tuple[str, BudgetState]] = ()
        """(org, budget)"""
        self.unbillable: Mapping[tuple[str, str], int] = {}
        """(source, reason) -> how many."""
        self.in_use: Mapping[str, int] = {}
        """Micro-credits by org that the grants gave of which something is left."""
        self.orphans: Mapping[str, int] = {}
        """Holds by org whose workloads are metered already, so that they are set aside for twice."""
        self._books = books
        self._lock = asyncio.Lock()
        self._asked = 0
        self._covered = 0

    @property
    def is_whole(self) -> bool:
        """Whether a first round of every source was tried.

        Before that, totals are not shown: after a crash of the server that lost its latest writes they may be
        lower than what was shown before, until that time is charged again.
        """
        return all(source.tried for source in self.sources)

    @property
    def states(self) -> Mapping[str, OrgState]:
        """The orgs by name, as far as they are committed: rows have totals only once they are."""
        return self._books.states

    @property
    def plans(self) -> Mapping[str, RatePlan | None]:
        """The rates that clusters are charged at."""
        return {cluster: plan for cluster, (_, plan) in self._books.plans.items()}

    async def refresh(self) -> None:
        """Read anew what the books do not hold; callers that wait at the same time share one reading."""
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if self._covered >= mine:
                return
            covers = self._asked
            try:
                await self._read()
            except LedgerUnavailable:
                self.ledger.up = False
            except CreditsError:
                pass  # damaged data: the rounds tell of it
            else:
                self.ledger.up = True
            self._covered = covers

    async def _read(self) -> None:
        ledger = self._books.ledger
        balances = await ledger.accounts.balances()
        orgs = [balance.org for balance in balances]
        budgets = await asyncio.gather(*(ledger.budgets.states(org) for org in orgs))
        limited = [balance for balance in balances if not balance.unlimited]
        given = await asyncio.gather(*(granted_in_use(ledger, b.org, b.at_us) for b in limited))
        self.in_use = {balance.org: micro for balance, micro in zip(limited, given, strict=True)}
        holding = [balance.org for balance in balances if balance.holds]
        held = await asyncio.gather(*(ledger.charging.held_workloads(org) for org in holding))
        orphans = dict.fromkeys(orgs, 0)
        for org, workloads in zip(holding, held, strict=True):
            orphans[org] = sum(self._is_metered(org, cluster, workload) for cluster, workload in workloads)
        self.orphans = orphans
        self.unbillable = await ledger.charging.unbillable()
        self.balances = balances
        self.budgets = [(org, state) for org, states in zip(orgs, budgets, strict=True) for state in states]

    def _is_metered(self, org: str, cluster: str, workload: str) -> bool:
        """Whether a workload runs, by the books."""
        state = self.states.get(org)
        if state is None:
            return False
        runs = (latest.get((kind, workload)) for latest in state.latest.values() for kind in ("job", "app"))
        return any(run is not None and run.cluster == cluster for run in runs)
