"""What was changed that concerns no org: who, when, from where. An entry is written before its change.

So no change is without its entry; after a crash in between, an entry may tell of a change that never came.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ledger import keys
from ledger.clock import Clock, format_time, now_us
from ledger.connect import Client, again

CHANGES: Final = ("token_created", "token_revoked", "token_kept", "rates")
SIGN_INS: Final = ("signed_in", "signed_out", "signed_out_everywhere", "everybody_signed_out", "role_chosen")
"""Types of entries."""


class Audit:
    """Appends to `credits:audit`; ledger/journal.py reads it."""

    def __init__(self, client: Client, clock: Clock | None = None) -> None:
        self._client: Any = client
        self._clock: Clock = clock or now_us

    async def add(self, kind: str, who: str, address: str | None, **facts: Any) -> None:
        """One entry; `facts` are as programs get them. A lost answer may have it written twice.

        Raises: LedgerUnavailable.
        """
        assert kind in CHANGES or kind in SIGN_INS, kind
        entry = {"type": kind, "at": format_time(self._clock()), "who": who, "from": address, **facts}
        await again(lambda: self._client.xadd(keys.AUDIT, {"entry": msgspec.json.encode(entry)}))
