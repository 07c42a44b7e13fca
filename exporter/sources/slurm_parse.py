"""What Slurm's tools print, as runs of jobs: `squeue --json` of 22.05 to 24.11, and `sacct`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from config.slurm_rules import gres_of_request, gres_of_tres
from exporter.sources.base import SourceError
from exporter.sources.slurm_run import JobRun, Phase, hold_in

SACCT_DELIMITER: Final = "\x1f"
"""Stands in no name, while `|` may."""
SACCT_FIELDS: Final = (
    "JobIDRaw", "State", "Start", "End", "ElapsedRaw", "User",
    "Account", "Partition", "QOS", "AllocTRES", "AdminComment",
)  # fmt: skip
_SECONDS_MAX: Final = 2**33
_SKEW: Final = 2
"""Seconds by which slurmctld's clock may be ahead of ours; the shortest time limit is 60 s."""

_PENDING: Final = frozenset(
    # CONFIGURING: nodes are still being booted, and Slurm moves the start once they are up.
    ["PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "REVOKED"]
)
_RUNNING: Final = frozenset(["RUNNING", "STOPPED", "SIGNALING", "RESIZING"])
_ENDED: Final = frozenset(
    [
        # The end is final while nodes are still being cleaned.
        *("COMPLETING", "STAGE_OUT"),
        *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE"),
        *("OUT_OF_MEMORY", "LAUNCH_FAILED", "RECONFIG_FAIL"),
    ]
)
# In accounting. A resized job has a record up to each resize; the last one goes from its start to its end.
_NOT_OVER: Final = frozenset(["PENDING", "RUNNING", "SUSPENDED", "RESIZING"])


class _Number(msgspec.Struct):
    """How Slurm >= 23.02 writes a number."""

    set: bool = False
    infinite: bool = False
    number: int | float = 0


_Numeric = int | float | _Number | None


class _Job(msgspec.Struct):
    """The fields of a job in squeue's JSON that are used here."""

    job_id: int
    job_state: str | list[str]
    start_time: _Numeric
    end_time: _Numeric
    user_name: str | None = None
    user_id: int | None = None
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    tres_alloc_str: str | None = None
    gres_detail: list[str] | None = None
    suspend_time: _Numeric = None
    pre_sus_time: _Numeric = None
    time_limit: _Numeric = None
    admin_comment: str | None = None
    restart_cnt: _Numeric = None
    array_task_id: _Numeric = None


class _Fault(msgspec.Struct):
    description: str = ""
    error: str = ""
    source: str = ""


class _Answer(msgspec.Struct):
    jobs: list[msgspec.Raw]
    errors: list[_Fault] = []


def parse_squeue(payload: bytes, taken: int) -> tuple[list[JobRun], int]:
    """All runs that squeue lists at `taken` (seconds since 1970), and how many records were not usable.

    Raises: SourceError for anything but a whole list: squeue ends with 0 and an empty list, with `errors`
        beside it, when slurmctld does not answer.
    """
    try:
        answer = msgspec.json.decode(payload, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"squeue --json gave no list of jobs: {error}") from error
    if answer.errors:
        said = "; ".join(" ".join(filter(None, (one.source, one.description, one.error))) for one in answer.errors)
        raise SourceError(f"squeue could not list jobs: {said}. Is slurmctld up?")
    runs = []
    malformed = 0
    for raw in answer.jobs:
        try:
            runs.append(_run(msgspec.json.decode(raw, type=_Job), taken))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
            malformed += 1
    return runs, malformed


def parse_sacct(payload: bytes) -> tuple[list[JobRun], int]:
    """All runs that started and ended, of sacct's lines (SACCT_FIELDS), and how many lines were not usable."""
    runs = []
    malformed = 0
    for line in payload.decode("utf-8", "replace").split("\n"):
        if not line:
            continue
        cells = line.split(SACCT_DELIMITER)
        if len(cells) != len(SACCT_FIELDS):
            malformed += 1
            continue
        job_id, state, start, end, elapsed, user, account, partition, qos, tres, comment = cells
        if not (start.isdecimal() and end.isdecimal()) or state in _NOT_OVER:
            continue
        try:
            since, until, used = (_seconds(int(text)) for text in (start, end, elapsed))
            run = JobRun(
                int(job_id), Phase.ENDED, user, account, partition, qos, gres_of_tres(tres), since, until,
                hold_id=hold_in(comment), resumed=(until, used) if used < until - since else None,
            )  # fmt: skip
        except ValueError:
            malformed += 1
            continue
        if tres and since:
            runs.append(run)
    return runs, malformed


def _run(job: _Job, taken: int) -> JobRun:
    """Raises: ValueError for a record that makes no sense."""
    phase = _phase([job.job_state] if isinstance(job.job_state, str) else job.job_state)
    start = end = resumed = None
    if phase is Phase.ENDED:
        end = _seconds(_number(job.end_time))
        if end > taken + _SKEW:
            # A job being requeued is COMPLETING with the times of a run to come; the run before is gone from here.
            phase, end = Phase.PENDING, None
    # A job cancelled while it waited has a start and an end, but nothing was ever given to it.
    if phase is not Phase.PENDING and (job.tres_alloc_str or phase is not Phase.ENDED):
        start = _seconds(_number(job.start_time))
        if since := _seconds(_number(job.suspend_time)):
            resumed = since, _seconds(_number(job.pre_sus_time))
        elif phase is Phase.SUSPENDED:
            raise ValueError("suspended, since when is not said")
        if start == 0 or (end is not None and end < start):
            raise ValueError("no start, or an end before it")
    minutes = _number(job.time_limit)
    return JobRun(
        job_id=job.job_id,
        phase=phase,
        user=job.user_name or ("" if job.user_id is None else str(job.user_id)),
        account=job.account or "",
        partition=job.partition or "",
        qos=job.qos or "",
        gres=_gres(job),
        start=start,
        end=end,
        resumed=resumed,
        limit=None if minutes is None else int(minutes) * 60,
        hold_id=hold_in(job.admin_comment),
        restarts=int(_number(job.restart_cnt) or 0),
        is_task=_number(job.array_task_id) is not None,
    )


def _phase(states: Iterable[str]) -> Phase:
    """What several states at once (a base state with flags) come to. Raises: ValueError for an unknown one."""
    found = set(states)
    if found & _PENDING:
        return Phase.PENDING
    if found & _ENDED:
        return Phase.ENDED
    if "SUSPENDED" in found:
        return Phase.SUSPENDED
    if found & _RUNNING:
        return Phase.RUNNING
    raise ValueError(f"unknown state {sorted(found)}")


def _gres(job: _Job) -> dict[str, int]:
    if "gres/" in (job.tres_alloc_str or ""):
        return gres_of_tres(job.tres_alloc_str or "")
    total: dict[str, int] = {}
    # Without slurmdbd there are no GRES among the TRES: one entry for each node, then.
    for on_node in job.gres_detail or ():
        for name, count in gres_of_request(on_node).items():
            total[name] = total.get(name, 0) + count
    return total


def _number(value: _Numeric) -> int | float | None:
    if isinstance(value, _Number):
        return value.number if value.set and not value.infinite else None
    return value


def _seconds(value: float | None) -> int:
    """Whole seconds since 1970, 0 for none. Raises: ValueError."""
    seconds = int(value or 0)
    if not 0 <= seconds < _SECONDS_MAX:
        raise ValueError(f"{value} is no time")
    return seconds
