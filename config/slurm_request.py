"""What Slurm's submit hook asks: the body of `POST /v1/admission/slurm`, read and put in credits' words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from config.slurm_rules import SlurmRules, gres_of_request, preset_of

COUNT_MAX: Final = 4_000_001
"""More than any array has: Slurm numbers tasks below 4,000,001 at most."""
_ARRAY_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9})(?::(\d{1,9}))?)?", re.ASCII)


class SlurmBody(msgspec.Struct):
    """What the hook sends."""

    scheduler: str
    cluster: str
    account: str
    user: str
    partition: str = ""
    qos: str = ""
    slurm_cluster: str = ""
    array: str | None = None
    time_limit_minutes: int | None = None
    nodes: int | None = None
    tasks: int | None = None
    tres_per_job: str | None = None
    tres_per_node: str | None = None
    tres_per_socket: str | None = None
    tres_per_task: str | None = None
    job_id: int | None = None
    array_task: int | None = None
    replaces_hold: str | None = None


@dataclass(frozen=True, slots=True)
class SlurmRequest:
    """A job that is submitted, or a waiting one that is changed (then with `job_id`).

    `count`: tasks of an array, None for a changed job, of which Slurm does not say it. `is_task`: what is changed is
    one task of an array alone. `replaces_hold`: the hold that the job has already, all others of its array with it.
    `max_runtime_seconds` None: the partition's own limit.
    """

    cluster: str
    slurm_cluster: str
    account: str
    user: str
    partitions: tuple[str, ...]
    qos: str
    gres: Mapping[str, int]
    count: int | None
    max_runtime_seconds: int | None
    job_id: int | None
    is_task: bool
    replaces_hold: str | None

    def presets(self, rules: SlurmRules) -> tuple[str, ...]:
        """The presets it may come to run on, one for each partition it names: () where a partition has none.

        Its hold has to do for the dearest of them.
        """
        found = [preset_of(partition, self.qos, self.gres, rules) for partition in self.partitions]
        known = [preset for preset in found if preset]
        return tuple(dict.fromkeys(known)) if len(known) == len(found) else ()


def parse_slurm_request(payload: bytes) -> SlurmRequest:
    """Raises: ValueError saying what is wrong with it."""
    try:
        body = msgspec.json.decode(payload, type=SlurmBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a question of the Slurm hook: {error}") from error
    if body.scheduler != "slurm":
        raise ValueError(f"scheduler is {body.scheduler!r}, not 'slurm'")
    minutes = body.time_limit_minutes
    numbers = {
        "time_limit_minutes": minutes, "nodes": body.nodes, "tasks": body.tasks, "job_id": body.job_id,
        "array_task": body.array_task,
    }  # fmt: skip
    is_task = body.job_id is not None and body.array_task is not None
    for name, number in numbers.items():
        if number is not None and not 0 <= number < 2**31:
            raise ValueError(f"{name} is {number}")
    return SlurmRequest(
        cluster=body.cluster,
        slurm_cluster=body.slurm_cluster,
        account=body.account,
        user=body.user,
        partitions=tuple(part.strip() for part in body.partition.split(",")),
        qos=body.qos,
        gres=_gres(body),
        count=array_size(body.array) if body.job_id is None else 1 if is_task else None,
        max_runtime_seconds=None if minutes is None else minutes * 60,
        job_id=body.job_id,
        is_task=is_task,
        replaces_hold=body.replaces_hold,
    )


def array_size(text: str | None) -> int:
    """Tasks of an array such as `0-9:2,12%4`; 1 for no array. Raises: ValueError."""
    if not text:
        return 1
    wrong = ValueError(f"{text!r} is not a job array like 0-9:2,12%4")
    tasks = bytearray(COUNT_MAX)
    work = 0
    for part in text.partition("%")[0].split(","):
        match = _ARRAY_PART.fullmatch(part.strip())
        if match is None:
            raise wrong
        first = int(match[1])
        last = int(match[2] or first)
        step = int(match[3] or 1)
        if step == 0 or not first <= last < COUNT_MAX:
            raise wrong
        named = range(first, last + 1, step)
        # A user wrote this: naming the same tasks over and over must not cost more than naming all of them.
        work += len(named)
        if work > COUNT_MAX:
            raise wrong
        tasks[first : last + 1 : step] = b"\1" * len(named)
    return sum(tasks)


def _gres(body: SlurmBody) -> dict[str, int]:
    """GRES of the whole job; what is asked per socket counts once for each node, as sockets are not known."""
    nodes = max(body.nodes or 1, 1)
    asked = ((body.tres_per_job, 1), (body.tres_per_node, nodes), (body.tres_per_socket, nodes))
    total: dict[str, int] = {}
    for text, times in (*asked, (body.tres_per_task, max(body.tasks or 1, 1))):
        for name, count in gres_of_request(text or "", times).items():
            total[name] = total.get(name, 0) + count
    return total
