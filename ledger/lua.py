"""The Lua scripts: loaded from `ledger/scripts`, sent by digest, and again in full where the server lacks them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ledger import keys
from ledger.connect import Client, again
from ledger.errors import LedgerUnavailable

_PRELUDE = "-- uses _common\n"
_WAIT_MS = 5000
_WAITING_MAX = 8
"""Calls of a script that wait for the disk at once: each has a connection to itself for up to a second."""


def _source(name: str) -> str:
    files = resources.files("ledger.scripts")
    text = (files / f"{name}.lua").read_text(encoding="utf-8")
    if text.startswith(_PRELUDE):
        text = (files / "_common.lua").read_text(encoding="utf-8") + text
    return text


class Script:
    """One script. Calling it is safe to repeat, by the script's own contract."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self.text = _source(name)
        self._waiting = asyncio.Semaphore(_WAITING_MAX)
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The script's answer; strings in it are bytes.

        Raises: LedgerUnavailable.
        """
        return await again(lambda: self._once(names, arguments))

    async def _once(self, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        # execute_command, since redis-py refuses evalsha in a cluster's pipeline and types it as str only.
        try:
            return await self._client.execute_command("EVALSHA", self.digest, len(names), *names, *arguments)
        except NoScriptError:
            return await self.in_full(names, arguments)

    async def in_full(self, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Once, with the script's text, after which the server has it."""
        return await self._client.execute_command("EVAL", self.text, len(names), *names, *arguments)

    async def durably(self, names: Sequence[str], arguments: Sequence[Any], marker: str | None = "") -> Any:
        """As a call, but returns only once the server has what was written on disk (WAITAOF where it has it).

        `marker`: a hash on the same node, for a field that is written after the script; "": the first key; None: for a
        script that writes whenever it is called.

        Raises: LedgerUnavailable also when the disk does not confirm in time; a retry is safe.
        """
        async with self._waiting:
            return await again(lambda: self._once_durably(names, arguments, marker))

    async def _once_durably(self, names: Sequence[str], arguments: Sequence[Any], marker: str | None) -> Any:
        # WAITAOF waits for what its own connection wrote, so the script goes over the same one: a server that lost
        # the write and came back meanwhile must not confirm it. The marker is for a script that is only repeated
        # and writes nothing: the log is sequential, so a write after the first covers it.
        call = ("EVALSHA", self.digest, len(names), *names, *arguments)
        rest: list[tuple[Any, ...]] = [("WAITAOF", 1, 0, _WAIT_MS)]
        if marker is not None:
            rest.insert(0, ("HSET", marker or names[0], "synced", "1"))
        first = None
        if not isinstance(self._client, Redis):
            first = await self(names, arguments)  # finds the node; the repetition below is harmless
        answer, *marked, waited = await self._together(names[0], call, *rest)
        if isinstance(answer, NoScriptError):
            call = ("EVAL", self.text, *call[2:])
            answer, *marked, waited = await self._together(names[0], call, *rest)
        for error in (answer, *marked):
            if isinstance(error, RedisError):
                raise error
        if isinstance(waited, RedisError):
            if "unknown command" not in str(waited) and "appendonly is disabled" not in str(waited):
                raise waited
            return first or answer  # docs/architecture.md says what then holds
        if int(waited[0]) < 1:
            raise LedgerUnavailable(
                "the ledger's server did not confirm the write to its disk in time; a retry is safe"
            )
        return first or answer

    async def _together(self, name: str, *commands: tuple[Any, ...]) -> list[Any]:
        """Answers, or errors, of commands over one connection to the node that has a key."""
        if isinstance(self._client, Redis):
            async with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return list(await pipe.execute(raise_on_error=False))
        node: Any = self._client.get_node_from_key(name)
        connection = node.acquire_connection()
        answers: list[Any] = []
        try:
            for command in commands:
                await connection.send_packed_command(connection.pack_commands([command]), False)
                try:
                    answers.append(await node.parse_response(connection, command[0]))
                except ResponseError as e:
                    answers.append(e)
        except BaseException:
            # What is left unread would be taken for the answers of the next one.
            await connection.disconnect(nowait=True)
            raise
        finally:
            node.release(connection)
        return answers


class Scripts:
    """All scripts of the ledger, on one client."""

    def __init__(self, client: Client) -> None:
        self.admit = Script(client, "admit")
        self.balance = Script(client, "balance")
        self.budget_remove = Script(client, "budget_remove")
        self.budget_set = Script(client, "budget_set")
        self.charge = Script(client, "charge")
        self.claim = Script(client, "claim")
        self.event = Script(client, "event")
        self.forget = Script(client, "forget")
        self.grant = Script(client, "grant")
        self.lease = Script(client, "lease")
        self.merge_hour = Script(client, "merge_hour")
        self.notice_route = Script(client, "notice_route")
        self.notice_take = Script(client, "notice_take")
        self.org = Script(client, "org")
        self.purchase = Script(client, "purchase")
        self.rates_clock = Script(client, "rates_clock")
        self.rates_publish = Script(client, "rates_publish")
        self.release = Script(client, "release")
        self.rollup = Script(client, "rollup")
        self.setting = Script(client, "setting")
        self.stage = Script(client, "stage")
        self.top_up_card = Script(client, "top_up_card")
        self.top_up_claim = Script(client, "top_up_claim")
        self.top_up_terms = Script(client, "top_up_terms")
        self.trim_journal = Script(client, "trim_journal")


def common_keys(org: keys.OrgKeys) -> list[str]:
    """The eight keys that `_common.lua` works on, in its order."""
    return [org.org, org.purse, org.holds, org.hold_expiry, org.hold_of, org.held, org.running, org.journal]


async def to_the_end(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of a script that says `more` while there are too many holds to end in one call."""
    while (answer := await call()) == [b"more"]:
        pass
    return answer


def text(value: Any) -> str:
    """A bytes answer as str; nil as ''."""
    return value.decode() if isinstance(value, bytes) else "" if value is None else str(value)
