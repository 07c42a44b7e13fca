"""The orgs' states in memory, and the rates they are charged at."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache

from exporter.matching import Lines
from ledger.model import RatePlan
from ledger.org_state import OrgState, Row
from ledger.rates_history import RateLine, line_of
from ledger.runs import Run
from ledger.store import Ledger


class Books:
    """The orgs' states in memory, shared by the rounds of all sources, and the rates they are charged at."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.states: dict[str, OrgState] = {}
        self.plans: dict[str, tuple[str, RatePlan | None]] = {}
        self._lines: dict[str, Lines] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._cluster_locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stale: set[str] = set()
        self._on_reload: list[Callable[[str], None]] = []
        self._on_rates: list[Callable[[], None]] = []

    def on_reload(self, forget: Callable[[str], None], forget_closed: Callable[[], None]) -> None:
        """Call `forget(org)` before an org's state is replaced, `forget_closed()` when rates changed."""
        self._on_reload.append(forget)
        self._on_rates.append(forget_closed)

    def cluster_lock(self, cluster: str) -> asyncio.Lock:
        """Held from matching to commit: sources of one cluster may list the same run, and take it from each other."""
        return self._cluster_locks[cluster]

    def lock(self, org: str) -> asyncio.Lock:
        return self._locks[org]

    async def load_all(self) -> None:
        """Read every org that is not in memory yet, or that a failed commit left in doubt."""
        for org in await self.ledger.accounts.orgs():
            await self.have(org)

    async def have(self, org: str) -> OrgState:
        """The state of an org, read from the ledger where it is not known or in doubt."""
        state = self.states.get(org)
        if state is None or org in self._stale:
            return await self.reload(org)
        return state

    async def confirm(self) -> None:
        """Read the orgs anew that the ledger does not have as they are in memory.

        A server that lost the tail of its log took commits back, and an org with nothing to commit would never
        learn of it from a refused one.
        """
        tokens = await self.ledger.charging.tokens(list(self.states))
        for org in [org for org, token in tokens.items() if token != self.states[org].token]:
            async with self.lock(org):  # another source's commit may be under way, so look again
                if (await self.ledger.charging.tokens([org]))[org] != self.states[org].token:
                    await self.reload(org)

    async def reload(self, org: str) -> OrgState:
        """Read an org's state from the ledger."""
        state = await self.ledger.charging.load(org)
        for cluster in {run.cluster for runs in state.runs.values() for run in runs.values()}:
            await self.lines(cluster)
        for forget in self._on_reload:
            forget(org)
        for source, runs in state.runs.items():
            for run in runs.values():
                self._anchor(state, source, run)
        self.states[org] = state
        self._stale.discard(org)
        return state

    async def row(self, org: str, number: int) -> Row:
        """A row of an org; the org is read again where another exporter made the row meanwhile."""
        state = await self.have(org)
        if number >= len(state.rows):
            state = await self.reload(org)
        return state.rows[number]

    def doubt(self, orgs: Iterable[str]) -> None:
        """What is in memory may not be what the ledger has: read it again before it is used."""
        self._stale.update(orgs)

    async def lines(self, cluster: str) -> Lines:
        """The rate lines of a cluster as last read."""
        if cluster not in self._lines:
            self._set_plan(cluster, *await self.ledger.rates.read(cluster))
        return self._lines[cluster]

    async def fix_rates(self, cluster: str, until_us: int) -> Lines:
        """The rate lines of a cluster, fixed for all time before `until_us`."""
        version = await self.ledger.rates.announce(cluster, until_us)
        if cluster not in self._lines or self.plans[cluster][0] != version:
            self._set_plan(cluster, *await self.ledger.rates.read(cluster))
            for forget_closed in self._on_rates:
                forget_closed()
            for state in self.states.values():
                for source, runs in state.runs.items():
                    for run in runs.values():
                        if run.cluster == cluster:
                            self._anchor(state, source, run)
        return self._lines[cluster]

    def _set_plan(self, cluster: str, version: str, plan: RatePlan | None) -> None:
        @cache
        def line(kind: str, resource: str, app: str, bills_app: bool) -> RateLine:
            return line_of(plan, kind, resource, app, bills_app)

        self.plans[cluster] = version, plan
        self._lines[cluster] = line

    def _anchor(self, state: OrgState, source: str, run: Run) -> None:
        row = state.rows[run.row]
        run.line = self._lines[run.cluster](row.kind, row.resource, row.app, run.bills_app)
        run.settle_anchor(run.charged_until(state.marks.get(source)))
