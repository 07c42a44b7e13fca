"""What the pages of an org have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict

from aiohttp import web

from console.pages import Pages
from console.payments import Till
from ledger.store import Ledger
from ledger.tokens import Token

SEE = ("admin", "owner", "viewer")
"""Roles that see an org."""
CHANGE = ("admin", "owner")
"""Roles that change something in it."""
CHANGED_MEANWHILE = (
    "Somebody else changed this since you opened the page. Below is what is set now: change it again where that is "
    "needed."
)
_AT_ONCE = 2


class Signed(TypedDict):
    """Who changes something, and from where: as the ledger's calls take it."""

    who: str
    address: str | None


@dataclass(frozen=True, slots=True)
class Desk:
    """`till` None: nothing is sold. `turns`: reads of usage go on beside admissions, a few at a time.

    `address_of`: the caller's address, for the journal.
    """

    ledger: Ledger
    pages: Pages
    till: Till | None
    address_of: Callable[[web.Request], str | None]
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def caller(self, request: web.Request) -> Token:
        """Who asks, in a guarded request."""
        return self.pages.token_of(request)

    def signed(self, request: web.Request) -> Signed:
        """For the journal: `**desk.signed(request)`."""
        return Signed(who=self.caller(request).who, address=self.address_of(request))

    def may_change(self, request: web.Request) -> bool:
        """Whether the caller sees forms."""
        return self.caller(request).role in CHANGE


def page_number(request: web.Request, name: str = "page") -> int:
    """The number of a page of a list, from 1; what is none is the first."""
    text = request.query.get(name, "1")
    return max(1, int(text)) if text.isascii() and text.isdigit() and len(text) < 7 else 1
