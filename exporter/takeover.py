"""Who is charged for a workload, and how another org takes it over, whatever other exporters do meanwhile.

Orgs are committed one by one, so no single write moves a workload from one to another. Instead each exporter goes
through the same steps, and any other one can go on from wherever it stopped:

1. the org it leaves lets go: its run is closed, charged up to an instant;
2. the claim says who is charged from that instant on (compared and set: of two exporters one wins);
3. that org is fenced, by a commit of nothing: what an exporter that read it before the claim was written is still
   about to commit is refused from then on, so that it cannot open the run there again;
4. the org it belongs to now begins to charge it.

Whoever opens a run therefore read the org's state before the claim that allows it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import msgspec

from exporter.books import Books
from exporter.matching import Lines, OrgWork, Origin
from exporter.meter import Meter
from exporter.org_round import facts
from ledger.charging import Claim
from ledger.model import Observation, Snapshot
from ledger.money import COST_DENOMINATOR
from ledger.org_state import OrgState
from ledger.plan import Plan
from ledger.runs import ENDED, GONE, NEVER, OPEN, Run, RunKey, cumulative, key_of


@dataclass(frozen=True, slots=True)
class Takeover:
    """What has to be so before an org opens a run: this claim; orgs that let go, and cannot open it again.

    `leaves`: the org that is to let go in this very round.
    """

    before: Claim
    claim: Claim
    leaves: str | None = None


@dataclass(slots=True)
class Takeovers:
    """By org and run. `contested`: orgs of which another exporter claimed a workload at the same time."""

    wanted: dict[str, dict[RunKey, Takeover]] = field(default_factory=dict)
    contested: set[str] = field(default_factory=set)


class TakeoverDesk:
    """Knows who is charged for the workloads of one source."""

    def __init__(self, books: Books, meter: Meter) -> None:
        self._books = books
        self._charging = books.ledger.charging
        self._meter = meter

    async def find(self, work: dict[str, OrgWork], snapshot: Snapshot, lines: Lines) -> Takeovers:
        """Look up what is new to memory: what was charged before, what is to be taken over, what is not to be."""
        return await _Search(self._books, self._meter, work, snapshot, lines).run()

    async def secure(
        self, work: dict[str, OrgWork], found: Takeovers, seen: dict[str, OrgState], kept: set[str]
    ) -> dict[str, set[RunKey]]:
        """Write the claims and fence the orgs before, once they let go; what cannot be had is taken out of `work`.

        `seen`: the orgs as `find` knew them. `kept`: those that did not let go. Returns what was taken out, by org.
        """
        refused: dict[str, set[RunKey]] = {}
        fences: set[str] = set()
        for org, wanted in found.wanted.items():
            refused[org] = {key for key, takeover in wanted.items() if takeover.leaves in kept}
            claims: dict[RunKey, tuple[Claim | None, Claim]] = {
                key: (takeover.before, takeover.claim)
                for key, takeover in wanted.items()
                if key not in refused[org] and takeover.before != takeover.claim
            }
            refused[org] |= await self._charging.claim(self._meter.cluster, claims)
            fences.update(former for key in wanted.keys() - refused[org] for former in wanted[key].claim.formers)
        unfenced = {org for org in sorted(fences) if not await self._fence(org, seen.get(org))}
        for org, wanted in found.wanted.items():
            refused[org] |= {key for key, takeover in wanted.items() if unfenced.intersection(takeover.claim.formers)}
            part = work[org]
            part.new = [observation for observation in part.new if key_of(observation) not in refused[org]]
            part.changed = [(run, observation) for run, observation in part.changed if run.key not in refused[org]]
        return {org: keys for org, keys in refused.items() if keys}

    async def _fence(self, org: str, seen: OrgState | None) -> bool:
        """Refuse what others may be about to commit for an org; False: it is not as it was seen, look again."""
        async with self._books.lock(org):
            state = self._books.states.get(org)
            if state is None or state is not seen:
                return False
            if await self._charging.commit(Plan(org, self._meter.source), state):
                return True
            self._books.doubt([org])
            return False


class _Search:
    """One look at what is new in a snapshot to what is in memory."""

    def __init__(self, books: Books, meter: Meter, work: dict[str, OrgWork], snapshot: Snapshot, lines: Lines) -> None:
        self._books = books
        self._charging = books.ledger.charging
        self._meter = meter
        self._work = work
        self._snapshot = snapshot
        self._lines = lines
        self._mark: int | None = None
        self._elsewhere: dict[tuple[str, RunKey], Run] = {}
        """By org and key, what other orgs were charged for of what is new to the org that is looked at."""

    async def run(self) -> Takeovers:
        """Puts into the orgs' work what was found, and takes out of it what is not to be charged there."""
        found = Takeovers()
        # Orgs that come in meanwhile are those of what is taken over: they have nothing new.
        for org, part in list(self._work.items()):
            if part.new:
                await self._look(org, part, found)
            elif part.over:
                part.settles, _ = await self._charging.hold_limits(org, self._meter.cluster, [])
        return found

    async def _look(self, org: str, part: OrgWork, found: Takeovers) -> None:
        charging, cluster = self._charging, self._meter.cluster
        by_key = {key_of(observation): observation for observation in part.new}
        known = await charging.find_ended(org, cluster, list(by_key))
        claims = await charging.find_claims(cluster, list(by_key))
        await self._find_elsewhere(org, claims, known)
        renamed = [one for key, one in by_key.items() if one.was and not (key in claims or key in known)]
        others = await self._charged_as_other(org, renamed)
        fresh: dict[RunKey, tuple[Claim | None, Claim]] = {}
        wanted: dict[RunKey, Takeover] = {}
        for key in list(by_key):
            claim, former = claims.get(key), known.get(key)
            if claim is None and former is None:
                since = others.get(key, 0)
                if since is None:
                    del by_key[key]  # until the source that lists the other id says that it is over
                    continue
                if since:
                    part.origins[key] = Origin(since, 0, 0)
                fresh[key] = None, Claim(org, since)
            elif claim is not None and _is_unopened(claim, former):
                change = await self._take_over(org, claim, by_key[key])
                if change is None:
                    del by_key[key]  # it stays with the org that was charged for it
                    continue
                part.origins[key], wanted[key] = change
                if former is not None:
                    part.former[key] = former
            elif former is not None:
                await self._go_on(part, key, by_key[key], former)
                if key not in part.origins:
                    del by_key[key]
                if claim is not None and claim.org != org:  # this org went on just before its fence
                    formers = tuple(name for name in (claim.org, *claim.formers) if name != org)
                    wanted[key] = Takeover(claim, dataclasses.replace(claim, org=org, formers=formers))
                elif claim is not None and claim.formers:
                    wanted[key] = Takeover(claim, claim)
        for key in await charging.claim(cluster, fresh):
            del by_key[key]
            found.contested.add(org)
        part.new = list(by_key.values())
        if wanted:
            found.wanted[org] = wanted
        part.settles, part.limits = await charging.hold_limits(
            org, cluster, [(observation.id, observation.hold_id) for observation in part.new]
        )

    async def _charged_as_other(self, org: str, renamed: list[Observation]) -> dict[RunKey, int | None]:
        """Up to when what is new was charged under another id, 0: never; None: it is still, so it is to wait.

        Under the id of another project's work, or of work that this source lists itself, it was not.
        """
        if not renamed:
            return {}
        cluster = self._meter.cluster
        state = await self._books.have(org)
        former = {(one.kind, one.was or "") for one in renamed}
        latest = [of_source for source, of_source in state.latest.items() if source != self._meter.source]
        runs = [of_source[key] for of_source in latest for key in former if key in of_source]
        if over := former - {(run.kind, run.id) for run in runs if run.state == OPEN}:
            runs += await self._charging.find_ended_by_id(org, cluster, over)
        until: dict[tuple[str, str, str], int] = {}
        for run in runs:
            if run.cluster == cluster and run.source != self._meter.source:
                key = run.kind, run.id, (await self._books.row(org, run.row)).project
                us = NEVER if run.state == OPEN else min(run.until_us, run.ended_us or NEVER)
                until[key] = max(us, until.get(key, 0))
        found = {key_of(one): until.get((one.kind, one.was or "", one.project), 0) for one in renamed}
        return {key: None if us == NEVER else us for key, us in found.items()}

    async def _go_on(self, part: OrgWork, key: RunKey, observation: Observation, former: Run) -> None:
        """The org goes on with a run of its own: in the same leg, or in a new one from where a volume was left."""
        row = await self._books.row(former.org, former.row)
        if former.kind == "storage" and former.state == GONE and await self._was_left(former.until_us, former):
            former.line = self._lines(row.kind, row.resource, row.app, former.bills_app)
            cost, _ = former.cumulative(former.until_us)
            part.origins[key] = Origin(former.until_us, cost % COST_DENOMINATOR, former.leg + 1, True)
            part.former[key] = former
        else:
            self._meter.matcher.know_closed(former, self._lines, row)
            part.changed.append((former, observation))

    async def _take_over(self, org: str, claim: Claim, observation: Observation) -> tuple[Origin, Takeover] | None:
        """Where an org begins to be charged for what another org was charged for; None if it does not.

        What is over stays with the org that it was charged to, whatever the scheduler calls it by now; and an
        older snapshot does not take back what a newer one said.
        """
        taken = self._snapshot.taken_us
        if claim.since_us > taken:
            return None
        name, run, is_open = await self._last_charged(org, claim, key_of(observation))
        if run is None:  # claimed, but never charged
            formers = (claim.org, *claim.formers)
            origin = Origin(claim.since_us, claim.carry, claim.leg)
        else:
            at = self._meter.matcher.charged_until(await self._books.have(name), run)
            if taken < at:
                return None
            if observation.ended_us is not None and name == claim.org:
                if not is_open and _is_known_to_be_over(run, observation):
                    self._meter.matcher.know_stays(observation, name)
                    return None
                ended_there = msgspec.structs.replace(observation, org=name)
                self._work.setdefault(name, OrgWork()).changed.append((run, ended_there))
                return None
            ended, suspended = run.ended_us, run.suspended
            if is_open:
                ended, suspended = facts(run, observation, at, taken)
                at = taken
                self._work.setdefault(name, OrgWork()).moved.append((run, observation))
            cost, _ = cumulative(run.points, ended, suspended, run.line, at)
            formers = (name,) if name == claim.org else (claim.org, *claim.formers)
            origin = Origin(at, cost % COST_DENOMINATOR, run.leg + 1, limit_us=run.limit_us)
        others = tuple(former for former in dict.fromkeys(formers) if former != org)
        after = Claim(org, origin.at, origin.carry, origin.leg, others)
        if not is_open and observation.kind == "storage":
            origin = dataclasses.replace(origin, goes_on=await self._was_left(origin.at, run))
        return origin, Takeover(claim, after, name if is_open else None)

    async def _was_left(self, at: int, run: Run | None) -> bool:
        """Whether this source finished no round after an instant at which a run (None: a claim of it) was left.

        If it finished one, what has no start of its own was not listed any more.
        """
        if not at or (run is not None and run.source != self._meter.source):
            return False
        if self._mark is None:
            mark = await self._charging.source_mark(self._meter.source)
            self._mark = NEVER if mark is None else mark
        return self._mark <= at

    async def _find_elsewhere(self, org: str, claims: dict[RunKey, Claim], known: dict[RunKey, Run]) -> None:
        """Look up what other orgs were charged for of what this org does not go on with."""
        asked: dict[str, list[RunKey]] = {}
        for key, claim in claims.items():
            if _is_unopened(claim, known.get(key)):
                for name in {claim.org, *claim.formers} - {org}:
                    asked.setdefault(name, []).append(key)
        self._elsewhere.clear()
        for name, keys in asked.items():
            ended = await self._charging.find_ended(name, self._meter.cluster, keys)
            self._elsewhere.update(((name, key), run) for key, run in ended.items())

    async def _last_charged(self, org: str, claim: Claim, key: RunKey) -> tuple[str, Run | None, bool]:
        """(other org, its run, is it open) that was charged last; the run is None where nobody was since the claim.

        That is the org of the claim; or, until it opened the run, one before it that went on just before its fence.
        """
        for name in (claim.org, *claim.formers):
            if name == org:
                continue
            state = await self._books.have(name)
            run = state.runs.get(self._meter.source, {}).get(key) or self._meter.matcher.elsewhere(state, key)
            if run is not None:
                return name, run, True
            run = self._elsewhere.get((name, key))
            if run is None or _is_unopened(claim, run):
                continue
            row = await self._books.row(name, run.row)
            run.line = self._lines(row.kind, row.resource, row.app, run.bills_app)
            return name, run, False
        return claim.org, None, False


def _is_known_to_be_over(run: Run, observation: Observation) -> bool:
    """Whether an observation says nothing that is not charged already."""
    return (run.state, run.ended_us, run.suspended) == (ENDED, observation.ended_us, observation.suspended)


def _is_unopened(claim: Claim, last: Run | None) -> bool:
    """Whether an org was not charged yet since the claim, `last` being what it was charged for before, if anything."""
    return last is None or last.until_us <= claim.since_us
