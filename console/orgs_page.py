"""The list of all orgs: what each has, how long it lasts, and how far it is from running out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from console.desk import Desk, page_number
from console.texts import STAGES
from ledger.balances import Balance
from ledger.errors import UnknownOrg

_AT_ONCE: Final = 50
_SORTED_MAX: Final = 5000
_READ_AT_ONCE: Final = 64
_WORST_FIRST: Final = {"stop": 0, "suspend": 1, "grace": 2, "block": 3, "warn": 4, "ok": 5}
_NEVER: Final = 1 << 62


def _available(balance: Balance) -> int:
    return _NEVER if balance.unlimited else balance.available_micro


def _runway(balance: Balance) -> int:
    us = balance.exhausted_us
    return _NEVER if us is None else us


_ORDERS: Final[dict[str, tuple[str, Callable[[Balance], int]]]] = {
    "stage": ("Worst stage first", lambda balance: _WORST_FIRST.get(balance.stage, 0)),
    "runway": ("Shortest runway first", _runway),
    "available": ("Least available first", _available),
    "burn": ("Highest burn first", lambda balance: -balance.burn_micro),
}


class OrgsPage:
    """One page."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """`q`: part of the name; `sort`; `page`. Raises: LedgerUnavailable."""
        wanted, order = request.query.get("q", "").strip(), request.query.get("sort", "name")
        everybody = await self._desk.ledger.accounts.orgs()
        names = [name for name in everybody if wanted.casefold() in name.casefold()]
        too_many = order in _ORDERS and len(names) > _SORTED_MAX
        if order not in _ORDERS or too_many:
            order = "name"
        number = page_number(request)
        start = (number - 1) * _AT_ONCE
        if order == "name":
            shown = await self._balances(names[start : start + _AT_ONCE])
        else:
            found = await self._balances(names)
            found.sort(key=lambda balance: (_ORDERS[order][1](balance), balance.org))
            shown = found[start : start + _AT_ONCE]
        asked = {name: value for name, value in (("q", wanted), ("sort", order)) if value not in ("", "name")}
        return self._desk.pages.render(
            request,
            "orgs.html",
            balances=shown,
            count=len(names),
            all_count=len(everybody),
            start=start,
            wanted=wanted,
            order=order,
            orders=[("name", "By name"), *((key, title) for key, (title, _) in _ORDERS.items())],
            problem=f"More than {_SORTED_MAX} orgs are sorted by name only; search for some of them."
            if too_many
            else "",
            stages=STAGES,
            first_page=f"?{urlencode({**asked, 'page': '1'})}" if number > 1 else None,
            next_page=f"?{urlencode({**asked, 'page': str(number + 1)})}" if len(names) > start + _AT_ONCE else None,
        )

    async def _balances(self, names: Sequence[str]) -> list[Balance]:
        """In the order of the names; of a few at a time, for admissions go on meanwhile."""
        found: list[Balance] = []
        async with self._desk.turns:
            for begin in range(0, len(names), _READ_AT_ONCE):
                part = await asyncio.gather(*(self._balance(name) for name in names[begin : begin + _READ_AT_ONCE]))
                found += [balance for balance in part if balance is not None]
        return found

    async def _balance(self, org: str) -> Balance | None:
        try:
            return await self._desk.ledger.accounts.balance(org)
        except UnknownOrg:  # it has a name, and nothing was ever granted to it
            return None
