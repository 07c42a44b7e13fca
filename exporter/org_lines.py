"""The lines of one org whose number grows with its projects, users and presets, kept between scrapes."""

from __future__ import annotations

from collections.abc import Callable

from exporter.exposition import line_head
from exporter.metric_names import BURN_RATE, SPENT, STORAGE_BYTES, WORKLOADS
from ledger.org_state import OrgState

BURN_UNIT = 10**12
"""Cost numerators a microsecond that are one micro-credit an hour."""


class LiveSums:
    """What runs now, by the heads of the lines that show it."""

    def __init__(self) -> None:
        self.workloads: dict[str, int] = {}
        self.burn: dict[str, int] = {}
        self.stored: dict[str, int] = {}
        self.unpriced: dict[tuple[str, str, str], int] = {}
        """(cluster, kind, resource) -> workloads."""


class OrgLines:
    """Heads of an org's lines, one per row: rows are only ever added to a state."""

    def __init__(self, state: OrgState, before: OrgLines | None = None) -> None:
        """`before`: those of the state that this one replaced."""
        self.state = state
        self._spent: list[str] = []
        self._workloads: list[str] = []
        self._burn: list[str] = []
        self._stored: list[str | None] = []
        self._shared: dict[str, str] = {}
        self._floors = _floors(state, before) if before is not None else {}

    def spent(self, text: Callable[[int], str], lines: list[str]) -> None:
        """Add a line for each row that was ever charged."""
        totals = self.state.totals
        self._extend()
        heads = self._spent
        for row, floor in list(self._floors.items()):
            if row in totals and totals[row].micro >= floor:
                del self._floors[row]
        floors = self._floors
        lines.extend(heads[row] + text(amounts.micro) for row, amounts in totals.items() if row not in floors)
        lines.extend(heads[row] + text(floor) for row, floor in floors.items())

    def live(self, sums: LiveSums, is_priced: Callable[[str, str, str, str], bool]) -> None:
        """Add what runs now; `is_priced(cluster, kind, resource, app)`."""
        self._extend()
        rows = self.state.rows
        for running in self.state.live.values():
            for row, live in running.items():
                head = self._workloads[row]
                sums.workloads[head] = sums.workloads.get(head, 0) + live.workloads
                head = self._burn[row]
                sums.burn[head] = sums.burn.get(head, 0) + live.per_us
                stored = self._stored[row]
                if stored is not None:
                    sums.stored[stored] = sums.stored.get(stored, 0) + live.stored
                if not live.per_us:
                    facts = rows[row]
                    if not is_priced(facts.cluster, facts.kind, facts.resource, facts.app):
                        key = facts.cluster, facts.kind, facts.resource
                        sums.unpriced[key] = sums.unpriced.get(key, 0) + live.workloads

    def _extend(self) -> None:
        org, share = self.state.name, self._share
        for row in self.state.rows[len(self._spent) :]:
            place = (row.cluster, org, row.project)
            spent = (*place, row.user, row.kind, row.resource, row.app)
            self._spent.append(line_head(SPENT, spent))
            self._workloads.append(share(line_head(WORKLOADS, (*place, row.kind, row.resource))))
            self._burn.append(share(line_head(BURN_RATE, place)))
            is_stored = row.kind == "storage"
            self._stored.append(share(line_head(STORAGE_BYTES, (*place, row.resource))) if is_stored else None)

    def _share(self, head: str) -> str:
        return self._shared.setdefault(head, head)


def _floors(state: OrgState, before: OrgLines) -> dict[int, int]:
    """Rows whose totals are lower than they were: the server lost its latest writes, and the time is charged again.

    Until then what was shown stays, since a counter that falls counts from zero for Prometheus.
    """
    old = before.state
    floors: dict[int, int] = {}
    for row, amounts in old.totals.items():
        shown = max(amounts.micro, before._floors.get(row, 0))
        number = state.row_numbers.get(old.rows[row])
        if number is not None and (number not in state.totals or state.totals[number].micro < shown):
            floors[number] = shown
    return floors
