"""Script calls that many tasks make at about the same time, sent to the server together.

One awaited round trip a call is what limits an enforcer; calls that share a pipeline cost a fraction of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ledger.connect import Client, again
from ledger.lua import Script

BATCH_MAX = 256
"""Calls that share a pipeline at most, so that no one waits for too many others."""
FLIGHTS_MAX = 1
"""Pipelines under way at once. With more, each would carry less, and what a pipeline costs by itself weighs more."""
FLIGHT_SECONDS = 5.0
"""How long the server may take for one."""

OnLate = Callable[[Any], None]
"""Gets the answer of a call whose caller gave it up."""


class _Call:
    __slots__ = ("answer", "arguments", "in_full", "names", "on_late", "script")

    def __init__(
        self, script: Script, names: Sequence[str], arguments: Sequence[Any], on_late: OnLate | None, in_full: bool
    ) -> None:
        self.script = script
        self.names = names
        self.arguments = arguments
        self.on_late = on_late
        self.in_full = in_full
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def command(self, in_full: bool) -> tuple[Any, ...]:
        """With the script's text, after which the server has it, or by its digest."""
        first = ("EVAL", self.script.text) if in_full else ("EVALSHA", self.script.digest)
        return (*first, len(self.names), *self.names, *self.arguments)


class Pipelined:
    """Collects calls while a pipeline is under way; the next one takes them all."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: list[_Call] = []
        self._flights: set[asyncio.Task[None]] = set()
        self._is_due = False
        self._idle: list[Any] = []  # connections that are kept; the pool closes them with the client

    async def call(
        self, script: Script, names: Sequence[str], arguments: Sequence[Any], on_late: OnLate | None = None
    ) -> Any:
        """The script's answer. Sent again after a lost connection, so the script has to be safe to repeat.

        Raises: LedgerUnavailable. When cancelled, the answer, if one comes, goes to `on_late`.
        """
        return await again(lambda: self._once(script, names, arguments, on_late))

    async def _once(
        self,
        script: Script,
        names: Sequence[str],
        arguments: Sequence[Any],
        on_late: OnLate | None,
        in_full: bool = False,
    ) -> Any:
        call = _Call(script, names, arguments, on_late, in_full)
        self._waiting.append(call)
        if not self._is_due and len(self._flights) < FLIGHTS_MAX:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._take_off)
        try:
            return await call.answer
        except NoScriptError:
            return await self._once(script, names, arguments, on_late, in_full=True)

    def _take_off(self) -> None:
        self._is_due = False
        while self._waiting and len(self._flights) < FLIGHTS_MAX:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            batch = [call for call in batch if not call.answer.done()]
            if batch:
                flight = asyncio.get_running_loop().create_task(self._fly(batch))
                self._flights.add(flight)
                flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        self._take_off()

    async def _fly(self, batch: list[_Call]) -> None:
        try:
            async with asyncio.timeout(FLIGHT_SECONDS):
                answers = await self._exchange(batch)
        except TimeoutError:
            self._fail(batch, RedisTimeoutError(f"no answer within {FLIGHT_SECONDS:g} s"))
            return
        except asyncio.CancelledError:
            for call in batch:
                call.answer.cancel()
            raise
        except Exception as error:
            self._fail(batch, error)
            return
        for call, answer in zip(batch, answers, strict=True):
            if call.answer.done():
                if call.on_late is not None and not isinstance(answer, Exception):
                    call.on_late(answer)
            elif isinstance(answer, Exception):
                call.answer.set_exception(answer)
            else:
                call.answer.set_result(answer)

    @staticmethod
    def _fail(batch: list[_Call], error: Exception) -> None:
        for call in batch:
            if not call.answer.done():
                call.answer.set_exception(error)

    async def _exchange(self, batch: list[_Call]) -> list[Any]:
        if not isinstance(self._client, Redis):  # a cluster: its pipeline knows which node has which key
            pipe: Any = self._client.pipeline()
            for call in batch:
                pipe.execute_command(*call.command(call.in_full))
            clustered: list[Any] = await pipe.execute(raise_on_error=False)
            return clustered
        # Redis' own pipeline, packing and pool cost several times as much a command as the connection under them.
        packed = []
        sent: set[Script] = set()
        for call in batch:
            in_full = call.in_full and call.script not in sent  # those after it find it there
            if in_full:
                sent.add(call.script)
            packed.append(pack_command(call.command(in_full)))
        pool: Any = self._client.connection_pool
        connection = self._idle.pop() if self._idle else await pool.get_connection()
        try:
            await connection.send_packed_command(b"".join(packed), False)
            answers: list[Any] = []
            for _ in batch:
                try:
                    # One time limit for all of them: see _fly.
                    answers.append(await connection.read_response(timeout=math.inf))
                except ResponseError as error:
                    answers.append(error)
        except BaseException:
            # What is left unread would be taken for the answers of the next one.
            await connection.disconnect(nowait=True)
            await pool.release(connection)
            raise
        self._idle.append(connection)
        return answers
