"""What can be done to work that runs on after the credits of its org are gone, on any kind of scheduler."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from ledger.errors import CreditsError


class ActionError(CreditsError):
    """The scheduler refused or did not answer; the message says what would help. Trying again is safe."""


class Outcome(StrEnum):
    """What came of an action."""

    DONE = "done"
    OVER = "over"
    """The workload has ended by itself, or is not there."""
    LATER = "later"
    """Not now, for a reason that passes: try again in the next round."""
    CANNOT = "cannot"
    """This kind of scheduler has no such action."""


class Actions(Protocol):
    """Acts on the workloads of one source, by the ids that the source gives them.

    `reason` is a sentence for the person whose work it is. Every action may be repeated.
    Raises: ActionError.
    """

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        """Tell the workload that its time is running out, so that it can save what it has."""

    async def suspend(self, workload_id: str, reason: str) -> Outcome:
        """Stop it in a way that can be undone."""

    async def resume(self, workload_id: str) -> Outcome:
        """Undo `suspend`."""

    async def stop(self, workload_id: str, reason: str) -> Outcome:
        """End it."""

    async def close(self) -> None:
        """Close the connections."""
