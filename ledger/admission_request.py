"""What is asked of admission, and the terms on which it is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

LISTED_US: Final = 86_400_000_000
"""How long a hold lives whose work a source lists, without a word of that source: it says when it is over."""

COUNT_MAX: Final = 10_000_000
"""How many units may be asked for at once, through whatever way: more than the tasks of any array of Slurm."""
RUNTIME_SECONDS_MAX: Final = 10 * 366 * 86_400
"""The longest time limit that can be said."""


class AdmissionRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Work that wants to start, `count` times over (an array, replicas): all of it or none.

    `kind` is job or app; `preset` may be absent for an app that has a rate of its own. `replaces`: the hold that
    the work has already (count None: as many as it has left). `source`: name of the one that lists the work from when
    it waits; "": nobody may, so its hold lives for no longer than the terms say. `owner`: id of the work it is a part
    of, whose hold passes over. `hold_id`: that of the hold to make, so that a request can be repeated; "": a new one.
    """

    cluster: str
    org: str
    project: str = ""
    user: str = ""
    kind: str = "job"
    preset: str | None = None
    app: str | None = None
    workload_id: str | None = None
    max_runtime_us: int | None = None
    count: int | None = 1
    dry_run: bool = False
    replaces: str | None = None
    owner: str | None = None
    hold_id: str = ""
    source: str = ""
    was_let_in: bool = False
    """Without the ledger: no hold is to be made for it where it is charged already."""
    bills_app: bool = True
    """False where another workload carries the app's own rate (a pod of an app instance)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of work: credits for `hold_us`, or for its time limit if that is shorter."""

    hold_us: int = 900_000_000
    unknown_org: str = "deny"
    buy_url: str | None = None
