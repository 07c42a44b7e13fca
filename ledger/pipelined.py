"""Script calls that many tasks make at about the same time, sent to the server together.

One awaited round trip a call is what limits an enforcer; calls that share a pipeline cost a fraction of it, and those
of a script that takes many requests at once share even the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import msgspec
from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ledger.connect import Client, again
from ledger.lua import Script

BATCH_MAX = 256
"""Calls that share a pipeline at most, so that no one waits for too many others. Scripts that take many rely on it."""
_BATCH_MIN = 8
"""Where fewer wait, they all go: less is not worth a pipeline of its own."""
FLIGHTS_MAX = 1
"""Pipelines under way at once. With more, each would carry less, and what a pipeline costs by itself weighs more."""
FLIGHT_SECONDS = 5.0
"""How long the server may take for one."""

OnLate = Callable[[Any], None]
"""Gets the answer of a call whose caller gave it up."""


class _Call(msgspec.Struct, eq=False):
    answer: asyncio.Future[Any]
    script: Script
    names: tuple[str, ...]
    arguments: tuple[Any, ...]
    request: bytes | None = None
    on_late: OnLate | None = None
    is_shared: bool = False

    def settle(self, answer: Any) -> None:
        if self.answer.done():
            if self.on_late is not None and not isinstance(answer, Exception):
                self.on_late(answer)
        elif isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class _Command:
    """What is sent for one call, or for several that are the same but for their requests."""

    __slots__ = ("calls", "in_full")

    def __init__(self, calls: list[_Call], in_full: bool = False) -> None:
        self.calls = calls
        self.in_full = in_full

    def words(self) -> tuple[Any, ...]:
        """With the script's text, after which the server has it, or by its digest."""
        call = self.calls[0]
        first = ("EVAL", call.script.text) if self.in_full else ("EVALSHA", call.script.digest)
        requests = [each.request for each in self.calls] if call.request is not None else ()
        return (*first, len(call.names), *call.names, *call.arguments, *requests)

    def settle(self, answer: Any) -> None:
        if self.calls[0].request is None or isinstance(answer, Exception):
            for call in self.calls:
                call.settle(answer)
        else:
            for call, part in zip(self.calls, answer, strict=True):
                call.settle(part)


class Pipelined:
    """Collects calls while a pipeline is under way; the next one takes them all."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._waiting: list[_Call] = []
        self._flights: set[asyncio.Task[None]] = set()
        self._flying = 0
        self._is_due = False
        self._idle: list[Any] = []  # connections that are kept; the pool closes them with the client
        self.answered_at = 0.0
        """When the server last answered anybody, on the loop's clock."""

    def call(self, script: Script, names: Sequence[str], arguments: Sequence[Any]) -> Coroutine[Any, Any, Any]:
        """The script's answer. Sent again after a lost connection, so the script has to be safe to repeat.

        Raises: LedgerUnavailable.
        """
        return again(lambda: self._queue(_Call(_future(), script, tuple(names), tuple(arguments))))

    def shared(self, script: Script, names: tuple[str, ...], arguments: tuple[Any, ...]) -> Coroutine[Any, Any, Any]:
        """As `call`, of a script that only reads: all that ask for the same at the same time share one answer."""
        return again(lambda: self._queue(_Call(_future(), script, names, arguments, is_shared=True)))

    def among(
        self, script: Script, names: tuple[str, ...], arguments: tuple[Any, ...], request: bytes, on_late: OnLate | None
    ) -> asyncio.Future[Any]:
        """The answer to one of the requests that a script takes after its arguments, to answer them in a list.

        Asked once only: the future gets whatever error there is. When that is done before, the answer, if one comes,
        goes to `on_late`.
        """
        return self._queue(_Call(_future(), script, names, arguments, request, on_late, True))

    def _queue(self, call: _Call) -> asyncio.Future[Any]:
        self._waiting.append(call)
        if not self._is_due and self._flying < FLIGHTS_MAX:
            self._is_due = True  # it takes off in the loop's next turn, with all that were called in this one
            self._flying += 1
            flight = asyncio.get_running_loop().create_task(self._fly())
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)
        return call.answer

    async def _fly(self) -> None:
        """One pipeline after the other, as long as there are calls."""
        self._is_due = False
        try:
            landed = 0
            while self._waiting:
                size = _share(landed, len(self._waiting))
                calls, self._waiting = self._waiting[:size], self._waiting[size:]
                await self._carry([call for call in calls if not call.answer.done()])
                landed = len(calls)
                # A turn of the loop for what was read meanwhile to call, too: fewer pipelines, that carry more each.
                await asyncio.sleep(0)
        finally:
            self._flying -= 1

    async def _carry(self, calls: list[_Call]) -> None:
        try:
            async with asyncio.timeout(FLIGHT_SECONDS):
                await self._settle(_together(calls))
        except TimeoutError:
            _fail(calls, RedisTimeoutError(f"no answer within {FLIGHT_SECONDS:g} s"))
        except asyncio.CancelledError:
            for call in calls:
                call.answer.cancel()
            raise
        except Exception as error:
            _fail(calls, error)

    async def _settle(self, commands: list[_Command]) -> None:
        if not commands:
            return
        repeated: list[_Command] = []
        answers = await self._exchange(commands)
        self.answered_at = asyncio.get_running_loop().time()
        for command, answer in zip(commands, answers, strict=True):
            if isinstance(answer, NoScriptError):
                repeated.append(_Command(command.calls, in_full=True))
            elif isinstance(answer, ResponseError) and len(command.calls) > 1:
                # What one of them met is no reason to fail the others.
                repeated.extend(_Command([call]) for call in command.calls)
            else:
                command.settle(answer)
        await self._settle(repeated)

    async def _exchange(self, commands: list[_Command]) -> list[Any]:
        if not isinstance(self._client, Redis):  # a cluster: its pipeline knows which node has which key
            pipe: Any = self._client.pipeline()
            for command in commands:
                pipe.execute_command(*command.words())
            clustered: list[Any] = await pipe.execute(raise_on_error=False)
            return clustered
        # Redis' own pipeline, packing and pool cost several times as much a command as the connection under them.
        pool: Any = self._client.connection_pool
        connection = self._idle.pop() if self._idle else await pool.get_connection()
        limit, connection.socket_timeout = connection.socket_timeout, None  # there is one for all of it: see _carry
        try:
            packed = b"".join([pack_command(command.words()) for command in commands])
            await connection.send_packed_command(packed, False)
            answers: list[Any] = []
            for _ in commands:
                try:
                    answers.append(await connection.read_response())
                except ResponseError as error:
                    answers.append(error)
        except BaseException:
            # What is left unread would be taken for the answers of the next one.
            await connection.disconnect(nowait=True)
            connection.socket_timeout = limit
            await pool.release(connection)
            raise
        connection.socket_timeout = limit
        self._idle.append(connection)
        return answers


def _share(landed: int, waiting: int) -> int:
    """How many of those that wait a pipeline carries, after one that carried `landed`: half of both. Were it all, then
    soon everybody would be under way at the same time, and the server and this process idle by turns."""
    return min(BATCH_MAX, max(_BATCH_MIN, (landed + waiting + 1) // 2) if landed else waiting)


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _together(calls: Iterable[_Call]) -> list[_Command]:
    """Calls that may share one command do, where they are of the same script on the same keys."""
    commands: list[_Command] = []
    known: dict[tuple[Any, ...], _Command] = {}
    for call in calls:
        if not call.is_shared:
            commands.append(_Command([call]))
            continue
        kind = (call.script.name, call.names[0], call.arguments)  # the first key of an org says which the others are
        command = known.get(kind)
        if command is None:
            command = known[kind] = _Command([call])
            commands.append(command)
        else:
            command.calls.append(call)
    return commands


def _fail(calls: list[_Call], error: Exception) -> None:
    for call in calls:
        call.settle(error)
