"""What the ledger keeps of orgs that run out: the stage of each tier, and what was done to which workload."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.clock import Clock, now_us
from ledger.connect import Client, again
from ledger.lua import text
from ledger.org_state import Row, decode_rows
from ledger.runs import OPEN, Run

ORG_TIER: Final = ""
"""Names the org among the tiers; a budget's tier is named by its id."""
ACTS_FROM: Final = 3
"""The stages from here on (grace, suspend or stop) do something about what runs."""


class TierState(msgspec.Struct, frozen=True):
    """How far a tier's exhaustion went, since when. `until_us` ends the grace; what is suspended needs `need_micro`."""

    stage: int = 0
    since_us: int = 0
    until_us: int = 0
    need_micro: int = 0


@dataclass(frozen=True, slots=True)
class RunningWork:
    """A workload that is billed now."""

    source: str
    id: str
    cluster: str
    project: str
    user: str


@dataclass(frozen=True, slots=True)
class ExhaustionState:
    """An org's stages by tier; sums of holds and of running work by tier field; `acted`: (tier, source, id) -> what."""

    stages: Mapping[str, TierState]
    held: Mapping[str, int]
    running: Mapping[str, int]
    acted: Mapping[tuple[str, str, str], str]


class ExhaustionStore:
    """Reads and writes the above. Who acts holds a lease, so that several enforcers do not act at once."""

    def __init__(self, client: Client, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._clock: Clock = clock or now_us

    async def lead(self, who: str, seconds: float) -> bool:
        """Whether `who` has the lease now, for so long."""

        async def ask() -> bool:
            ms = int(seconds * 1000)
            if await self._client.set(keys.REAPER, who, nx=True, px=ms):
                return True
            if text(await self._client.get(keys.REAPER)) != who:
                return False
            return bool(await self._client.pexpire(keys.REAPER, ms))

        return await again(ask)

    async def read(self, org: str) -> ExhaustionState:
        """All of one instant."""
        names = keys.of_org(org)

        async def ask() -> list[dict[bytes, bytes]]:
            async with self._client.pipeline(transaction=True) as pipe:
                for name in (names.stages, names.held, names.running, names.acted):
                    pipe.hgetall(name)
                answer: list[dict[bytes, bytes]] = await pipe.execute()
                return answer

        stages, held, running, acted = await again(ask)
        return ExhaustionState(
            {text(tier): msgspec.json.decode(data, type=TierState) for tier, data in stages.items()},
            {text(tier): int(micro) for tier, micro in held.items()},
            {text(tier): int(micro) for tier, micro in running.items()},
            {_split(text(field)): text(what) for field, what in acted.items()},
        )

    async def write(self, org: str, tier: str, state: TierState | None, entry: Mapping[str, Any] | None) -> None:
        """Put a tier into a stage (None: forget it), with its journal entry, in one step."""
        names = keys.of_org(org)

        async def put() -> None:
            async with self._client.pipeline(transaction=True) as pipe:
                if state is None:
                    pipe.hdel(names.stages, tier)
                else:
                    pipe.hset(names.stages, tier, msgspec.json.encode(state))
                if tier == ORG_TIER and entry is not None:
                    if state is not None and state.stage >= ACTS_FROM:
                        pipe.hset(names.org, "acting", entry["stage"])
                    else:
                        pipe.hdel(names.org, "acting")
                if entry is not None:
                    pipe.xadd(names.journal, {"entry": msgspec.json.encode(entry)})
                await pipe.execute()

        await again(put, pauses=())  # not repeated: the entry would be written twice; the next round sees what is there

    async def note(self, org: str, tier: str, source: str, workload: str, what: str | None) -> None:
        """Remember what was done to a workload; None: forget it."""
        names, field = keys.of_org(org), keys.US.join((tier.replace(keys.US, "\x1e"), source, workload))
        if what is None:
            await again(lambda: self._client.hdel(names.acted, field))
        else:
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
    return RunningWork(run.source, run.id, run.cluster, row.project, row.user)


def _split(field: str) -> tuple[str, str, str]:
    tier, source, workload = field.split(keys.US, 2)
    return tier.replace("\x1e", keys.US), source, workload
