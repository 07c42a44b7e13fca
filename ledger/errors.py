"""Everything the ledger raises. A refusal is a value (`Decision`); only faults are exceptions."""

from __future__ import annotations


class CreditsError(Exception):
    """Something went wrong in Apolo Credits."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.__class__.__doc__)


class LedgerUnavailable(CreditsError):
    """The ledger's server cannot be reached or does not answer in time; a retry is safe."""


class LedgerDamaged(CreditsError):
    """The ledger's server answers with data that is not the ledger it was."""


class TooLarge(CreditsError):
    """A sum would be larger than the ledger can count."""

    left: frozenset[str] = frozenset()
    """Orgs that were left for another round because of it, or besides."""


class IdempotencyConflict(CreditsError):
    """The idempotency key is known, with another body."""


class Changed(CreditsError):
    """Somebody else changed it since it was read: read it again."""


class Insufficient(CreditsError):
    """There are not as many credits available."""


class LastAdmin(CreditsError):
    """Nobody could administer over HTTP any more."""


class UnknownOrg(CreditsError):
    """No org of this name."""

    def __init__(self, org: str) -> None:
        super().__init__(f"There is no org {org!r}. Check the name, or have an administrator make it.")
        self.org = org


class InvalidRequest(CreditsError):
    """A value is not acceptable; the message names it and says what would be."""


class DataDirBusy(CreditsError):
    """Another process already serves this data directory."""
