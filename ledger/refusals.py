"""Decisions that refused, or let through by exception: who, what, why. The last ones of each org are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from ledger import keys
from ledger.connect import Client, again
from ledger.lua import text
from ledger.money import format_micro, parse_credits

KEPT: Final = 10_000
"""Entries kept of an org, about (the server trims in whole nodes)."""
REFUSAL, SHADOW, EXCEPTION = "refusal", "shadow", "exception"
"""Types: refused; let through since refusals are only tried out; let through while the ledger was away."""
_PAGE: Final = 500
_GROUPED: Final = ("org", "project", "user", "preset", "app", "code")


class Refused(NamedTuple):
    """One entry of one org."""

    org: str
    entry: dict[str, Any]


class Refusals:
    """The bounded part of the journal."""

    def __init__(self, client: Client) -> None:
        self._client: Any = client

    async def add(self, entries: Sequence[Refused]) -> None:
        """Append entries. One whose answer was lost may come to be there twice; its `event` tells.

        Those of orgs that are not there go into one stream, so that made-up names make no keys.
        """
        orgs = sorted({item.org for item in entries})
        there = await self._client.smismember(keys.ORGS, orgs)
        known = {org for org, is_there in zip(orgs, there, strict=True) if is_there}
        async with self._client.pipeline(transaction=False) as pipe:
            for item in entries:
                stream = keys.of_org(item.org).refusals if item.org in known else keys.REFUSALS
                entry = msgspec.json.encode({"org": item.org, **item.entry})
                pipe.execute_command("XADD", stream, "MAXLEN", "~", KEPT, "*", "entry", entry)
            await pipe.execute()

    async def read(self, org: str | None, after: str | None, limit: int) -> list[dict[str, Any]]:
        """Up to `limit` entries after an id, oldest first; of orgs nobody knows where `org` is None."""
        stream = keys.REFUSALS if org is None else keys.of_org(org).refusals
        start = "-" if after is None else f"({after}"
        items = await again(lambda: self._client.xrange(stream, min=start, max="+", count=limit))
        return [{"id": text(i), **msgspec.json.decode(fields[b"entry"])} for i, fields in items]

    async def latest(self, org: str, limit: int, before: str | None = None) -> list[dict[str, Any]]:
        """Up to `limit` entries of an org, the newest first; `before`: those older than an id."""
        stream, last = keys.of_org(org).refusals, "+" if before is None else f"({before}"
        items = await again(lambda: self._client.xrevrange(stream, max=last, min="-", count=limit))
        return [{"id": text(i), **msgspec.json.decode(fields[b"entry"])} for i, fields in items]

    async def entries(self, org: str | None, since_us: int, until_us: int) -> AsyncIterator[dict[str, Any]]:
        """All that are kept of an interval, oldest first."""
        after = f"{max(0, since_us // 1000 - 1)}-18446744073709551615"
        while True:
            page = await self.read(org, after, _PAGE)
            for entry in page:
                if int(entry["id"].partition("-")[0]) * 1000 >= until_us:
                    return
                yield entry
            if len(page) < _PAGE:
                return
            after = page[-1]["id"]

    async def shadow_report(self, org: str | None, since_us: int, until_us: int) -> list[dict[str, Any]]:
        """What shadow mode would have refused to an org (None: to orgs nobody knows).

        Rows by org, project, user, preset, app and code, the most frequent first; `required` is the sum of what each
        would have needed to start.
        """
        rows: dict[tuple[str, ...], list[Any]] = defaultdict(lambda: [0, 0, "", ""])
        async for entry in self.entries(org, since_us, until_us):
            if entry["type"] != SHADOW:
                continue
            row = rows[tuple(entry[name] or "" for name in _GROUPED)]
            row[0] += 1
            row[1] += parse_credits(entry["required"])
            row[2] = row[2] or entry["at"]
            row[3] = entry["at"]
        found = [
            {
                **dict(zip(_GROUPED, group, strict=True)), "count": count, "required": format_micro(required),
                "first_at": first, "last_at": last,
            }
            for group, (count, required, first, last) in rows.items()
        ]  # fmt: skip
        return sorted(found, key=lambda row: (-row["count"], *(row[name] for name in _GROUPED)))
