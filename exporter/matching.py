"""Which observation is about which run, and which say something new. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ledger.model import Observation, Snapshot
from ledger.money import UNIT
from ledger.org_state import OrgState, Row
from ledger.rates_history import RateLine
from ledger.runs import ENDED, OPEN, PAUSED, Run, RunKey, key_of, merge_intervals, place_suspensions

Lines = Callable[[str, str, str, bool], RateLine]
"""(kind, resource, app, bills_app) -> the rates over time, of the source's cluster."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a run begins to be billed here when it was billed elsewhere before: another org, or another id, until `at`.

    `goes_on`: it is billed from `at` on also where it has no start of its own (storage). `limit_us`: the run time limit
    it had there, perhaps from a hold that ended when it was charged.
    """

    at: int
    carry: int
    leg: int
    goes_on: bool = False
    limit_us: int | None = None


@dataclass(slots=True)
class OrgWork:
    """What one snapshot says of one org that is not simply 'goes on as before'."""

    changed: list[tuple[Run, Observation]] = field(default_factory=list)
    new: list[Observation] = field(default_factory=list)
    moved: list[tuple[Run, Observation]] = field(default_factory=list)
    origins: dict[RunKey, Origin] = field(default_factory=dict)
    former: dict[RunKey, Run] = field(default_factory=dict)
    """Earlier legs, in this very org, of runs that come back to it."""
    over: list[Observation] = field(default_factory=list)
    """Newly listed jobs that ended with nothing to bill: only their holds are to end."""
    limits: dict[str, int] = field(default_factory=dict)
    settles: bool = True


class Matcher:
    """Remembers the runs one source lists, so that what goes on as before costs one look-up.

    `round` is the stamp of runs listed in the present round; `closed` holds runs that are over and still listed.
    """

    def __init__(self, source: str, cluster: str, epoch_us: int) -> None:
        self.source = source
        self.cluster = cluster
        self.epoch_us = epoch_us
        self.round = 0
        self.closed: dict[tuple[str, RunKey], Run] = {}
        self._by_object: dict[int, Run] = {}
        self._over: set[tuple[str, RunKey]] = set()
        self._stays: dict[tuple[str, RunKey], tuple[Observation, str]] = {}

    def forget(self, org: str) -> None:
        """Drop what is remembered of an org's runs, before or after its state is read anew."""
        self._by_object = {k: run for k, run in self._by_object.items() if run.org != org}
        self.closed = {k: run for k, run in self.closed.items() if k[0] != org}
        self._over = {k for k in self._over if k[0] != org}
        self._stays = {k: stays for k, stays in self._stays.items() if org not in (k[0], stays[1])}

    def forget_closed(self) -> None:
        """Drop what is remembered of runs that are over: their rate lines are out of date."""
        self.closed.clear()

    def know_closed(self, run: Run, lines: Lines, row: Row) -> None:
        """Remember a run that is over, so that being listed again costs nothing."""
        run.line = lines(row.kind, row.resource, row.app, run.bills_app)
        self.closed[run.org, run.key] = run

    def know_stays(self, observation: Observation, org: str) -> None:
        """Remember what is over, and stays with the org that was charged for it although it is listed in another."""
        self._stays[observation.org, key_of(observation)] = observation, org

    def sort(self, snapshot: Snapshot, states: dict[str, OrgState]) -> dict[str, OrgWork]:
        """What of a snapshot is new or changed, by org; runs that go on are stamped as listed.

        `new` observations are of runs this meter does not know: the ledger may (see `know_closed`).
        """
        self.round += 1
        stamp = self.round
        by_object = self._by_object
        work: dict[str, OrgWork] = {}
        over: set[tuple[str, RunKey]] = set()
        stays: dict[tuple[str, RunKey], tuple[Observation, str]] = {}
        for observation in snapshot.workloads:
            run = by_object.get(id(observation))
            # Else another source of the cluster took the run over, and this is a new object in an old one's place.
            if run is not None and run.observation is observation:
                run.stamp = stamp
                continue
            org = observation.org
            key = key_of(observation)
            known = self._stays.get((org, key))
            if known is not None and known[0] == observation:
                stays[org, key] = known
                continue
            state = states.get(org)
            run = state.runs.get(self.source, {}).get(key) if state else None
            if run is None:
                run = self.closed.get((org, key))
            if run is None and state is not None and (other := self.elsewhere(state, key)) is not None:
                if snapshot.taken_us < self.charged_until(state, other):
                    continue  # an older snapshot changes nothing that a newer one said
                run = self.adopt(state, other)
            if run is None:
                if not self._never_billable(observation):
                    work.setdefault(org, OrgWork()).new.append(observation)
                elif observation.ended_us is not None:
                    over.add((org, key))
                    if (org, key) not in self._over:
                        work.setdefault(org, OrgWork()).over.append(observation)
                continue
            run.stamp = stamp
            if state is not None and _same_facts(run, observation, state.rows[run.row]):
                self.watch(run, observation)
            else:
                work.setdefault(org, OrgWork()).changed.append((run, observation))
        self._over, self._stays = over, stays
        self.closed = {k: run for k, run in self.closed.items() if run.stamp == stamp}
        if len(by_object) > 2 * len(snapshot.workloads) + 1000:
            self._by_object = {k: run for k, run in by_object.items() if run.stamp == stamp}
        return work

    def _never_billable(self, observation: Observation) -> bool:
        """Not started yet, of no length, or over before the ledger's epoch."""
        started, ended = observation.started_us, observation.ended_us
        if started is None:
            return observation.kind != "storage"
        return ended is not None and (ended <= started or ended <= self.epoch_us)

    def elsewhere(self, state: OrgState, key: RunKey) -> Run | None:
        """A run that goes on in another source of the same cluster, which may be this one's former name."""
        for source, runs in state.runs.items():
            run = runs.get(key) if source != self.source else None
            if run is not None and run.cluster == self.cluster:
                return run
        return None

    def charged_until(self, state: OrgState, run: Run) -> int:
        """Up to when a run is charged, whichever source it goes on in."""
        return run.charged_until(state.marks.get(run.source))

    def adopt(self, state: OrgState, run: Run) -> Run:
        """Take over a run from another source of the same cluster."""
        run.until_us = self.charged_until(state, run)
        run.state = PAUSED
        run.observation = None
        del state.runs[run.source][run.key]
        state.latest.get(run.source, {}).pop(run.key[:2], None)
        return run

    def unwatch(self, run: Run) -> None:
        # Listed again, even just as before, it is to be looked at: it does not follow the mark any more.
        if run.observation is not None:
            self._by_object.pop(id(run.observation), None)
            run.observation = None

    def watch(self, run: Run, observation: Observation) -> None:
        if run.observation is not None:
            self._by_object.pop(id(run.observation), None)
        run.observation = observation
        self._by_object[id(observation)] = run


def units_of(observation: Observation) -> int:
    """Bytes of storage; UNIT for what is not billed by size."""
    return observation.bytes if observation.kind == "storage" else UNIT


def _same_facts(run: Run, observation: Observation, row: Row) -> bool:
    """Whether an observation says nothing new of a run."""
    if run.observation == observation:
        return True
    if (
        run.state not in (OPEN, ENDED)
        or run.ended_us != observation.ended_us
        or run.bills_app != observation.bills_app
        or (observation.limit_us is not None and run.limit_us != observation.limit_us)
    ):
        return False
    if run.state == OPEN and (
        run.points[-1][3] != units_of(observation)
        or (row.project, row.user, row.resource, row.app)
        != (observation.project, observation.user, observation.resource, observation.app)
    ):
        return False
    if observation.kind == "storage":
        return merge_intervals([*run.suspended, *observation.suspended]) == run.suspended
    if observation.suspended_before is not None and observation.started_us is not None:
        placed = place_suspensions(
            run.suspended, observation.started_us, observation.suspended_before, observation.suspended
        )
        return placed == run.suspended
    return run.suspended == observation.suspended
