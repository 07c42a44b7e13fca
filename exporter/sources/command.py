"""Runs a scheduler's command line tool: bounded in time and output, with nothing left running after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final, cast

from exporter.sources.base import SourceError

_STDERR_KEPT: Final = 2000
_REAP_SECONDS: Final = 5.0


class _Output(asyncio.SubprocessProtocol):
    """Collects what a process writes; `over` ends once it has exited and its pipes are closed."""

    def __init__(self, over: asyncio.Future[None], bytes_max: int) -> None:
        self.stdout = bytearray()
        self.stderr = b""
        self.too_long = False
        self._over = over
        self._bytes_max = bytes_max
        self._transport: asyncio.SubprocessTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.stderr = (self.stderr + data)[-_STDERR_KEPT:]
        elif len(self.stdout) + len(data) > self._bytes_max:
            self.too_long = True
            if self._transport is not None:
                kill_group(self._transport)
        else:
            self.stdout += data

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._over.done():
            self._over.set_result(None)


def kill_group(transport: asyncio.SubprocessTransport) -> None:
    """Kill the process of `transport` with all it started (its group), and close its pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(transport.get_pid(), signal.SIGKILL)
    transport.close()


async def run_command(
    argv: Sequence[str],
    *,
    timeout_seconds: float,
    bytes_max: int = 512 * 1024 * 1024,
    environ: Mapping[str, str] | None = None,
) -> bytes:
    """What the command wrote to its standard output, where it ended with 0 in time.

    The command runs in a process group of its own, which is killed when the time is over, when it writes
    more than `bytes_max`, or when the caller is cancelled. `environ` is added to our own environment.
    Raises: SourceError naming the program (never its arguments: they may hold secrets) and what it
        wrote last to its standard error.
    """
    program = argv[0]
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    try:
        transport, output = await loop.subprocess_exec(
            lambda: _Output(over, bytes_max),
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise SourceError(f"{program}: cannot be started: {error}") from error
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.shield(over)
    except TimeoutError:
        raise SourceError(f"{program}: not done after {timeout_seconds:g} s{_said(output.stderr)}") from None
    finally:
        if not over.done():
            kill_group(transport)
            # Only a process stuck in the kernel outlives SIGKILL; it is left to the kernel.
            await asyncio.wait([over], timeout=_REAP_SECONDS)
        transport.close()
    if output.too_long:
        raise SourceError(f"{program}: wrote more than {bytes_max} bytes")
    status = transport.get_returncode()
    if status:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with exit code {status}"
        raise SourceError(f"{program}: {how}{_said(output.stderr)}")
    return bytes(output.stdout)


def _said(stderr: bytes) -> str:
    """The last words of a failed command, on one line."""
    text = " ".join(stderr.decode("utf-8", "replace").split())
    return f": {text}" if text else ""
