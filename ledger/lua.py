"""The Lua scripts: loaded from `ledger/scripts`, sent by digest, and again in full where the server lacks them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from ledger import keys
from ledger.connect import Client, again
from ledger.errors import LedgerUnavailable

_PRELUDE = "-- uses _common\n"
_WAIT_MS = 5000


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
        self._text = _source(name)
        self.digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

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
        return await self._client.execute_command("EVAL", self._text, len(names), *names, *arguments)

    async def durably(self, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        """As a call, but returns only once the server has what was written on disk (WAITAOF where it has it).

        Raises: LedgerUnavailable also when the disk does not confirm in time; a retry is safe.
        """
        answer = await self(names, arguments)
        await again(lambda: self._wait_for_disk(names[0]))
        return answer

    async def _wait_for_disk(self, name: str) -> None:
        # WAITAOF waits for what its own connection wrote; the log is sequential, so a write after ours covers ours.
        marker = ("HSET", name, "synced", "1")
        if isinstance(self._client, Redis):
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.execute_command(*marker)
                pipe.execute_command("WAITAOF", 1, 0, _WAIT_MS)
                result = (await pipe.execute(raise_on_error=False))[1]
        else:
            node: Any = self._client.get_node_from_key(name)
            connection = node.acquire_connection()
            try:
                await connection.send_packed_command(connection.pack_commands([marker]), False)
                await node.parse_response(connection, "HSET")
                await connection.send_packed_command(connection.pack_commands([("WAITAOF", 1, 0, _WAIT_MS)]), False)
                try:
                    result = await node.parse_response(connection, "WAITAOF")
                except RedisError as e:
                    result = e
            finally:
                node.release(connection)
        if isinstance(result, RedisError):
            if "unknown command" in str(result) or "appendonly is disabled" in str(result):
                return  # docs/architecture.md says what then holds
            raise result
        if int(result[0]) < 1:
            raise LedgerUnavailable(
                "the ledger's server did not confirm the write to its disk in time; a retry is safe"
            )


class Scripts:
    """All scripts of the ledger, on one client."""

    def __init__(self, client: Client) -> None:
        self.admit = Script(client, "admit")
        self.balance = Script(client, "balance")
        self.budget_remove = Script(client, "budget_remove")
        self.budget_set = Script(client, "budget_set")
        self.charge = Script(client, "charge")
        self.grant = Script(client, "grant")
        self.org = Script(client, "org")
        self.rates_clock = Script(client, "rates_clock")
        self.rates_publish = Script(client, "rates_publish")
        self.release = Script(client, "release")
        self.rollup = Script(client, "rollup")


def common_keys(org: keys.OrgKeys) -> list[str]:
    """The eight keys that `_common.lua` works on, in its order."""
    return [org.org, org.purse, org.holds, org.hold_expiry, org.hold_of, org.held, org.running, org.journal]


def text(value: Any) -> str:
    """A bytes answer as str; nil as ''."""
    return value.decode() if isinstance(value, bytes) else "" if value is None else str(value)
