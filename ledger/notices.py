"""Events on their way to people: written once for their id, put into notices, sent at least once.

An event waits in one stream. A router puts it into a notice for each recipient and moves on, in one step. A notice
is taken, sent and taken off; who dies in between leaves it to be sent again under the same id.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from ledger import keys
from ledger.connect import Client, again
from ledger.lua import Scripts, text

EVENTS_KEPT: Final = 10_000
GIVE_UP_MS: Final = 86_400_000
"""An event older than this is news to nobody."""
_SEEN_MS: Final = 8 * GIVE_UP_MS
_FOLDED_MAX: Final = 50
_HANDS_MS: Final = 120_000
"""So long a notice is in the hands of who took it."""


class Notice(msgspec.Struct, frozen=True):
    """What is to be sent to one recipient. `channel`: `email` or `webhook`; `events`: JSON, the oldest first."""

    id: str
    group: str
    channel: str
    org: str
    to: str
    events: tuple[str, ...]
    first_ms: int
    attempts: int = 0
    more: int = 0


class Recipient(NamedTuple):
    """`group`: notices of it are `spacing_ms` apart, and a waiting one takes further events; "" for none."""

    channel: str
    to: str
    group: str
    spacing_ms: int


def event_id(*parts: str) -> str:
    """The id of an event, from what tells it from all others."""
    return hashlib.sha256(keys.US.join(parts).encode()).hexdigest()[:32]


def wall_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Notices:
    """The stream of events, how far its readers are, and the notices that wait."""

    def __init__(self, client: Client, scripts: Scripts) -> None:
        self._client: Any = client
        self._scripts = scripts

    async def note(self, event: Mapping[str, Any]) -> bool:
        """Have an event told, once for its id `event`. False where it was noted before."""
        arguments = [event["event"], msgspec.json.encode(event), str(wall_ms()), EVENTS_KEPT, _SEEN_MS]
        return bool(await self._scripts.event([keys.EVENTS, keys.EVENTS_SEEN], arguments))

    async def lead(self, who: str, seconds: float) -> bool:
        """Whether `who` is to send now, for so long; 0 leaves it to others."""
        return bool(await self._scripts.lease([keys.NOTIFIER], [who, str(int(seconds * 1000))]))

    async def cursor(self, reader: str) -> str:
        """Up to where in the stream a reader is; a new one begins a day ago."""
        start = f"{wall_ms() - GIVE_UP_MS}-0"
        await again(lambda: self._client.hsetnx(keys.NOTICES_CURSORS, reader, start))
        return text(await again(lambda: self._client.hget(keys.NOTICES_CURSORS, reader)))

    async def move(self, reader: str, place: str) -> None:
        """The reader is done with everything up to there."""
        await again(lambda: self._client.hset(keys.NOTICES_CURSORS, reader, place))

    async def events(self, after: str, count: int) -> list[tuple[str, bytes]]:
        """(place, event as JSON), the oldest first."""
        found = await again(lambda: self._client.xrange(keys.EVENTS, min=f"({after}", count=count))
        return [(text(place), fields[b"event"]) for place, fields in found]

    async def route(self, before: str, place: str, event: bytes, org: str, to: Sequence[Recipient]) -> bool:
        """Put an event into a notice for each recipient, and the router behind it. False: another was here."""
        now = wall_ms()
        named = text(msgspec.json.decode(event)["event"])
        arguments: list[Any] = [before, place, str(now), event, str(_FOLDED_MAX)]
        for one in to:
            notice_id = event_id(named, one.channel, one.to)
            notice = Notice(notice_id, one.group, one.channel, org, one.to, (text(event),), now)
            arguments += [one.group, notice_id, msgspec.json.encode(notice), str(one.spacing_ms)]
        names = [keys.NOTICES_CURSORS, keys.NOTICES, keys.NOTICES_DUE, keys.NOTICES_OPEN, keys.NOTICES_LAST]
        return bool(await self._scripts.notice_route(names, arguments))

    async def due(self, count: int) -> list[str]:
        """Ids of notices that are to be sent now, the longest due first."""
        now = wall_ms()
        found = await again(lambda: self._client.zrangebyscore(keys.NOTICES_DUE, "-inf", now, start=0, num=count))
        return [text(one) for one in found]

    async def take(self, notice_id: str) -> Notice | None:
        """A notice to be sent, which nobody else takes for a while; None where it is gone or taken."""
        names = [keys.NOTICES, keys.NOTICES_DUE, keys.NOTICES_OPEN, keys.NOTICES_LAST]
        packed = await self._scripts.notice_take(names, [notice_id, str(wall_ms()), str(_HANDS_MS)])
        return None if packed is None else msgspec.json.decode(packed, type=Notice)

    async def done(self, notice: Notice) -> None:
        """It was sent, or is given up."""

        async def drop() -> None:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hdel(keys.NOTICES, notice.id)
                pipe.zrem(keys.NOTICES_DUE, notice.id)
                await pipe.execute()

        await again(drop)

    async def later(self, notice: Notice, pause_ms: int) -> None:
        """It could not be sent, and is tried again."""
        tried = msgspec.structs.replace(notice, attempts=notice.attempts + 1)

        async def put() -> None:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(keys.NOTICES, notice.id, msgspec.json.encode(tried))
                pipe.zadd(keys.NOTICES_DUE, {notice.id: wall_ms() + pause_ms})
                await pipe.execute()

        await again(put)
