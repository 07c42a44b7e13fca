"""Finds what people are to be told of: purchases, refunds and auto top-ups in the journals, runway, and budgets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import msgspec

from ledger import keys
from ledger.clock import format_time
from ledger.connect import again
from ledger.errors import UnknownOrg
from ledger.lua import text
from ledger.money import HOUR_US, format_micro
from ledger.notice_prefs import NoticePreferences, Preferences
from ledger.notices import event_id, wall_ms
from ledger.store import Ledger
from ledger.top_ups import WHO

LEVELS: Final = (100, 80)
"""Per cent of a budget, the most first."""
_AT_ONCE: Final = 16
_PAGE: Final = 200
_RECOVERED: Final = (5, 4)
"""Runway is short again only after it was longer than the threshold by this: else it would flap around it."""


class Watch:
    """One look is `once()`; each event has an id that the next look would give it too."""

    def __init__(self, ledger: Ledger, preferences: NoticePreferences) -> None:
        self._ledger = ledger
        self._client: Any = ledger.client
        self._preferences = preferences

    async def once(self) -> None:
        """Raises: LedgerUnavailable; the next look begins where this one broke off."""
        await again(lambda: self._client.hsetnx(keys.NOTICES_CURSORS, "started_ms", wall_ms()))
        started = f"{text(await again(lambda: self._client.hget(keys.NOTICES_CURSORS, 'started_ms')))}-0"
        fields = await again(lambda: self._client.hgetall(keys.NOTICES_JOURNALS))
        places = {text(org): text(place) for org, place in fields.items()}
        gate = asyncio.Semaphore(_AT_ONCE)

        async def look(org: str) -> None:
            async with gate:
                await self._journal(org, places.get(org, started))

        await asyncio.gather(*(look(org) for org in await self._ledger.accounts.orgs()))
        for org in await self._preferences.orgs():
            wanted = await self._preferences.read(org)
            try:
                await self._runway(org, wanted)
                await self._budgets(org, wanted)
            except UnknownOrg:
                continue

    async def _journal(self, org: str, place: str) -> None:
        more = True
        while more:
            found = await again(partial(self._client.xrange, keys.of_org(org).journal, f"({place}", "+", _PAGE))
            for name, fields in found:
                place = text(name)
                if event := event_of(org, place, msgspec.json.decode(fields[b"entry"])):
                    await self._ledger.notices.note(event)
            if found:
                await again(partial(self._client.hset, keys.NOTICES_JOURNALS, org, place))
            more = len(found) == _PAGE

    async def _runway(self, org: str, wanted: Preferences) -> None:
        if "runway" not in wanted.kinds or not wanted.runway_hours:
            return
        balance = await self._ledger.accounts.balance(org)
        state, _, number = (await self._told(org, "runway") or "long:0").partition(":")
        ends, limit = balance.exhausted_us, int(wanted.runway_hours * HOUR_US)
        lasts = None if ends is None else ends - balance.at_us
        if state == "long" and lasts is not None and lasts <= limit:
            await self._ledger.notices.note(
                {
                    "event": event_id(org, "runway", number), "type": "runway", "at": format_time(balance.at_us),
                    "org": org, "left": format_micro(balance.left_micro), "hours": wanted.runway_hours,
                    "burn_rate": format_micro(balance.burn_micro), "exhausted_at": format_time(ends or 0),
                }
            )  # fmt: skip
            await self._tell(org, "runway", f"short:{number}")
        elif state == "short" and (lasts is None or lasts * _RECOVERED[1] > limit * _RECOVERED[0]):
            await self._tell(org, "runway", f"long:{int(number) + 1}")

    async def _budgets(self, org: str, wanted: Preferences) -> None:
        if "budget" not in wanted.kinds:
            return
        for state in await self._ledger.budgets.states(org):
            budget, limit = state.budget, state.budget.limit_micro
            level = next((one for one in LEVELS if limit and state.spent_micro * 100 >= limit * one), 0)
            start = budget.period_at(self._ledger.clock())[0]
            # A budget that was raised, or whose period starts anew, is told of again.
            name, now = f"budget:{budget.id}", f"{start}:{limit}"
            before, _, told = (await self._told(org, name)).rpartition("@")
            if before == now and int(told or 0) >= level:
                continue
            if level:
                await self._ledger.notices.note(
                    {
                        "event": event_id(org, name, now, str(level)), "type": "budget",
                        "at": format_time(self._ledger.clock()), "org": org, "project": budget.project,
                        "user": budget.user, "period": budget.period, "percent": level,
                        "credits": format_micro(limit), "left": format_micro(max(0, limit - state.spent_micro)),
                        "ends_at": None if state.ends_us is None else format_time(state.ends_us),
                    }
                )  # fmt: skip
            await self._tell(org, name, f"{now}@{level}")

    async def _told(self, org: str, what: str) -> str:
        return text(await again(lambda: self._client.hget(keys.of_org(org).notices, what)))

    async def _tell(self, org: str, what: str, value: str) -> None:
        await again(lambda: self._client.hset(keys.of_org(org).notices, what, value))


def event_of(org: str, place: str, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The event of a journal entry at a place in its stream; None where nobody is told of such entries."""
    kind = entry.get("type")
    event = {"event": event_id(org, "journal", place), "at": entry.get("at"), "org": org}
    if kind == "grant" and entry.get("payment") and entry.get("buyer") != WHO:
        return event | {"type": "purchase"} | _some(entry, "credits", "order", "payment", "buyer", "amount", "currency")
    if kind in ("withdrawal", "restoration") and entry.get("payment"):
        about = _some(entry, "credits", "forgiven", "order", "payment", "reason")
        return event | {"type": "refund", "restored": kind == "restoration"} | about
    if kind == "top_up":
        return event | {"type": "top_up"} | _some(entry, "outcome", "credits", "order", "reason", "paused")
    return None


def _some(entry: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: entry.get(name) for name in names}
