"""The meter: snapshots and what is charged already -> what to charge now. No I/O.

A run that simply goes on costs one floor and writes nothing of its own: all runs of an org and source that go
on share the mark "charged up to". Only runs that are new, changed or gone are written.
"""

from __future__ import annotations

from exporter.matching import Lines, Matcher, OrgWork
from exporter.org_round import OrgRound
from exporter.set_aside import set_aside
from ledger.model import Observation, Snapshot
from ledger.org_state import OrgState
from ledger.plan import Plan
from ledger.runs import Run, RunKey


class Meter:
    """Meters one source. Mutates the `Run`s of the states it is given; when a commit fails, reload the org."""

    def __init__(self, source: str, cluster: str, epoch_us: int, hold_us: int) -> None:
        """`hold_us`: the window that running work is to have set aside; 0: none."""
        self.source = source
        self.cluster = cluster
        self.hold_us = hold_us
        self.matcher = Matcher(source, cluster, epoch_us)
        self.unpriced_now: dict[str, int] = {}
        """By org, how many runs without a rate went on at its last round."""
        self._unpriced: set[RunKey] = set()
        self._too_late: set[RunKey] = set()

    @property
    def unpriced(self) -> int:
        """How many runs were found without a rate so far, each counted once."""
        return len(self._unpriced)

    @property
    def too_late(self) -> int:
        """How many runs came so late that they were not charged any more, each counted once."""
        return len(self._too_late)

    def let_go(self, state: OrgState, moved: list[tuple[Run, Observation]], snapshot: Snapshot, lines: Lines) -> Plan:
        """Close runs that belong to other orgs from this snapshot on."""
        begun = self._begin(state, snapshot, lines)
        for run, observation in moved:
            begun.let_go(run, observation)
        return begun.plan

    def partial(self, state: OrgState, work: OrgWork, snapshot: Snapshot, lines: Lines) -> Plan:
        """Take up what is new and changed, and leave the runs that go on for `plan`."""
        begun = self._begin(state, snapshot, lines)
        begun.take_up(work)
        return begun.plan

    def plan(self, state: OrgState, work: OrgWork, snapshot: Snapshot, lines: Lines) -> Plan:
        """The whole round of one org."""
        begun = self._begin(state, snapshot, lines)
        begun.take_up(work)
        plan, taken = begun.plan, snapshot.taken_us
        if begun.is_late:
            return plan
        begun.advance()
        if state.marks.get(self.source) != taken and (state.runs[self.source] or plan.is_charged or plan.changes):
            plan.taken_us = taken
        unpriced = set_aside(plan, state, taken, self.hold_us)
        self._unpriced.update(run.key for run in unpriced)
        self.unpriced_now[state.name] = len(unpriced)
        return plan

    def _begin(self, state: OrgState, snapshot: Snapshot, lines: Lines) -> OrgRound:
        return OrgRound(self.matcher, state, snapshot, lines, self._unpriced, self._too_late)
