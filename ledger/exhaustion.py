"""What the ledger keeps of orgs that run out: the stage of each tier, and what was done to which workload."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from ledger import keys
from ledger.connect import Client, again
from ledger.lua import Scripts, text
from ledger.org_state import Row, decode_rows
from ledger.runs import OPEN, Run
from ledger.scopes import preset_of

ORG_TIER: Final = ""
"""Names the org among the tiers; a budget's tier is named by its id."""
ACTS_FROM: Final = 3
"""The stages from here on (grace, suspend or stop) do something about what runs."""


class TierState(msgspec.Struct, frozen=True):
    """How far a tier's exhaustion went, since when. `until_us` ends the grace, once `until_counted_us` was counted too.

    `need_micro`: what was left when it was warned, or what it takes for what is suspended to go on.
    """

    stage: int = 0
    since_us: int = 0
    until_us: int = 0
    need_micro: int = 0
    until_counted_us: int = 0


@dataclass(frozen=True, slots=True)
class RunningWork:
    """A workload that is billed now, since `started_us`."""

    source: str
    id: str
    cluster: str
    project: str
    user: str
    started_us: int = 0
    preset: str = ""


class Act(NamedTuple):
    """What was done to a workload, when. `since_us`: when it was first tried without success.

    `counted_us`: what was counted (see `counted`) when its grace began. `run_us`: start of the run that it was done to.
    """

    what: str
    at_us: int
    since_us: int = 0
    counted_us: int = 0
    run_us: int = 0


@dataclass(frozen=True, slots=True)
class ExhaustionState:
    """An org's stages by tier; sums of holds and of running work by tier field; `acted`: (tier, source, id) -> act.

    `outbox`: events (JSON) that wait to be passed on.
    """

    stages: Mapping[str, TierState]
    held: Mapping[str, int]
    running: Mapping[str, int]
    acted: Mapping[tuple[str, str, str], Act]
    outbox: Sequence[bytes] = ()


class ExhaustionStore:
    """Reads and writes the above. Who acts holds a lease, so that several enforcers do not act at once."""

    def __init__(self, client: Client, scripts: Scripts) -> None:
        self._client: Any = client
        self._scripts = scripts

    async def lead(self, who: str, seconds: float) -> bool:
        """Whether `who` has the lease now, for so long; 0 gives it up."""
        return bool(await self._scripts.lease([keys.REAPER], [who, str(int(seconds * 1000))]))

    async def counted(self) -> int:
        """How much time (us) enforcers have counted while they looked, since the ledger began."""
        return int(await again(lambda: self._client.get(keys.COUNTED)) or 0)

    async def count(self, counted_us: int) -> None:
        """It is so much by now."""
        await again(lambda: self._client.set(keys.COUNTED, str(counted_us)))

    async def read(self, org: str) -> ExhaustionState:
        """All of one instant."""
        names = keys.of_org(org)

        async def ask() -> list[Any]:
            async with self._client.pipeline(transaction=True) as pipe:
                for name in (names.stages, names.held, names.running, names.acted):
                    pipe.hgetall(name)
                pipe.lrange(names.outbox, 0, -1)
                answer: list[Any] = await pipe.execute()
                return answer

        stages, held, running, acted, outbox = await again(ask)
        return ExhaustionState(
            {text(tier): msgspec.json.decode(data, type=TierState) for tier, data in stages.items()},
            {text(tier): int(micro) for tier, micro in held.items()},
            {text(tier): int(micro) for tier, micro in running.items()},
            {_split(text(field)): _act(text(what)) for field, what in acted.items()},
            outbox,
        )

    async def write(
        self, org: str, tier: str, before: TierState, state: TierState | None, entry: Mapping[str, Any] | None,
        event: bytes | None = None,
    ) -> bool:  # fmt: skip
        """Put a tier into a stage (None: forget it), with its journal entry and an event for the outbox, in one step.

        False, and nothing is written, where it is not as `before` any more: another enforcer was here.
        """
        names = keys.of_org(org)
        acting = "-"
        if tier == ORG_TIER and entry is not None:
            acting = entry["stage"] if state is not None and state.stage >= ACTS_FROM else ""
        arguments = [
            tier, _version(before), b"" if state is None else msgspec.json.encode(state),
            _version(state or TierState()), acting, b"" if entry is None else msgspec.json.encode(entry), event or b"",
        ]  # fmt: skip
        answer = await self._scripts.stage([names.stages, names.org, names.journal, names.outbox], arguments)
        return text(answer) == "ok"

    async def say_acting(self, org: str, word: str) -> None:
        """What balances say is done about what runs, where that is not the org's own tier; "": nothing."""
        name = keys.of_org(org).org
        if word:
            await again(lambda: self._client.hset(name, "acting", word))
        else:
            await again(lambda: self._client.hdel(name, "acting"))

    async def passed_on(self, org: str, event: bytes) -> None:
        """An event of the outbox is where it was to go."""
        await again(lambda: self._client.lrem(keys.of_org(org).outbox, 1, event))

    async def note(self, org: str, tier: str, source: str, workload: str, act: Act | None) -> None:
        """Remember what was done to a workload; None: forget it."""
        names, field = keys.of_org(org), keys.US.join((tier.replace(keys.US, "\x1e"), source, workload))
        if act is None:
            await again(lambda: self._client.hdel(names.acted, field))
        else:
            what = "@".join([act.what, *(str(us) for us in act[1:])])
            await again(lambda: self._client.hset(names.acted, field, what))

    async def set_aside(self, org: str, sources: Sequence[str]) -> dict[str, int]:
        """What running work of these sources is to have set aside, by tier field."""
        names = keys.of_org(org)
        found: dict[str, int] = {}
        for source in sources:
            fields = await again(partial(self._client.hgetall, names.running_of(source)))
            for tier, micro in fields.items():
                found[text(tier)] = found.get(text(tier), 0) + int(micro)
        return found

    async def running_work(self, org: str) -> list[RunningWork]:
        """Jobs and apps of an org that are billed at this moment."""
        names = keys.of_org(org)
        rows = decode_rows(await again(lambda: self._client.hgetall(names.rows)))
        records = await again(lambda: self._client.hvals(names.runs))
        return await asyncio.to_thread(_running, org, records, rows)


def _running(org: str, records: Sequence[bytes], rows: Sequence[Row]) -> list[RunningWork]:
    found = []
    for data in records:
        run = Run.decode(org, data)
        if run.kind != "storage" and run.state == OPEN and not _is_suspended(run):
            found.append(_work(run, rows[run.row]))
    return found


def _is_suspended(run: Run) -> bool:
    return bool(run.suspended) and run.suspended[-1][1] is None


def _work(run: Run, row: Row) -> RunningWork:
    preset = preset_of(row.kind, row.resource, row.app)
    return RunningWork(run.source, run.id, run.cluster, row.project, row.user, run.started_us or 0, preset)


def _split(field: str) -> tuple[str, str, str]:
    tier, source, workload = field.split(keys.US, 2)
    return tier.replace("\x1e", keys.US), source, workload


def _act(noted: str) -> Act:
    what, *times = noted.split("@")
    return Act(what, *(int(us) for us in times[:4])) if times else Act(what, 0)


def _version(state: TierState) -> str:
    return f"{state.stage}:{state.since_us}"
