"""Clients of every kind of server: what they refuse, and what they do when the server goes away."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ledger.connect import Client, again, connect
from ledger.errors import InvalidRequest, LedgerUnavailable
from tests.servers import (
    ServerProcess,
    TiedProcess,
    binary_path,
    cluster_options,
    form_cluster,
    free_port,
    wait_until,
)

MakeServer = Callable[..., ServerProcess]


async def test_every_backend_answers(any_client: Client) -> None:
    await any_client.set("a", "1")
    assert await any_client.get("a") == b"1"


async def test_an_absent_server_is_named_without_its_password() -> None:
    url = f"redis://user:sesame@127.0.0.1:{free_port()}/0"
    with pytest.raises(LedgerUnavailable) as e:
        async with connect(url, None):
            pass
    assert "127.0.0.1" in str(e.value)
    assert "sesame" not in str(e.value)


@pytest.mark.parametrize(
    "url",
    ["http://host", "host:6379", "", "redis+sentinel://host:26379", "redis+cluster://", "redis+cluster://h:x"],
)
async def test_a_url_of_no_known_form_is_refused_with_the_forms(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"redis\+sentinel://host:port"):
        async with connect(url, None):
            pass


async def test_a_server_older_than_redis_7_is_refused() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while header := await reader.readline():
            words = []
            for _ in range(int(header[1:])):
                await reader.readline()
                words.append((await reader.readline()).strip())
            info = b"$24\r\nredis_version:6.2.14\r\n\r\n\r\n"
            writer.write({b"INFO": info, b"PING": b"+PONG\r\n"}.get(words[0], b"+OK\r\n"))
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as old_server:
        port = old_server.sockets[0].getsockname()[1]
        with pytest.raises(LedgerUnavailable, match=r"6\.2\.14.*Redis 7\.0 or newer"):
            async with connect(f"redis://127.0.0.1:{port}", None):
                pass


async def test_a_stalled_server_counts_a_write_once(make_server: MakeServer) -> None:
    server = make_server()
    async with connect(f"{server.url}?socket_timeout=0.2", None) as client:
        await client.set("n", 0)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisTimeoutError):
                await client.incr("n")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert await again(lambda: client.get("n")) == b"1"


async def test_again_survives_a_restart_of_the_server(make_server: MakeServer) -> None:
    server = make_server()
    async with connect(server.url, None) as client:
        await client.set("n", 7)
        server.kill9()
        server.start()
        assert await again(lambda: client.get("n")) == b"7"


async def test_again_gives_up_as_unavailable(make_server: MakeServer) -> None:
    server = make_server()
    async with connect(server.url, None) as client:
        server.kill9()
        tries = 0

        async def call() -> object:
            nonlocal tries
            tries += 1
            return await client.get("n")

        with pytest.raises(LedgerUnavailable):
            await again(call, pauses=(0.01, 0.01))
        assert tries == 3


async def test_again_maps_a_timeout_and_leaves_other_errors_alone() -> None:
    async def slow() -> None:
        raise RedisTimeoutError("Timeout reading")

    async def wrong() -> None:
        raise ZeroDivisionError

    with pytest.raises(LedgerUnavailable, match="Timeout reading"):
        await again(slow, pauses=(0.0,))
    with pytest.raises(ZeroDivisionError):
        await again(wrong)


async def test_a_wrong_password_is_not_tried_again(make_server: MakeServer) -> None:
    server = make_server(options=("--requirepass", "right"), binary="valkey")
    with pytest.raises(LedgerUnavailable, match=r"server\.sock"):
        async with connect(f"unix://:wrong@{server.socket}", None):
            pass


async def test_more_callers_than_connections_wait_for_each_other(client: Client) -> None:
    await asyncio.gather(*(client.incr("n") for _ in range(500)))
    assert await client.get("n") == b"500"


async def test_a_full_disk_is_said_so() -> None:
    async def full() -> None:
        raise ResponseError("MISCONF Errors writing to the AOF file: No space left on device")

    with pytest.raises(LedgerUnavailable, match="cannot write to its disk"):
        await again(full)


@pytest.mark.slow
async def test_a_cluster_of_three_nodes(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledger.connect._TIMEOUT_SECONDS", 0.5)
    nodes = [make_server(port=free_port(), options=cluster_options()) for _ in range(3)]
    await form_cluster(nodes)
    async with connect(f"redis+cluster://127.0.0.1:{nodes[0].port}", None) as client:
        keys = [f"{{org{i}}}:n" for i in range(30)]
        for i, key in enumerate(keys):
            await client.set(key, i)
        script = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
        assert await client.eval(script, 1, keys[7], 3) == 10

        os.kill(nodes[2].pid, signal.SIGSTOP)  # a third of the writes fails, once each
        answers = await asyncio.gather(*(client.incr(key) for key in keys), return_exceptions=True)
        os.kill(nodes[2].pid, signal.SIGCONT)
        assert any(isinstance(answer, RedisTimeoutError | RedisConnectionError) for answer in answers)
        for i, key in enumerate(keys):
            value = int(await again(lambda key=key: client.get(key)) or 0)  # type: ignore[misc]
            assert value - (i + 3 * (i == 7)) in (0, 1)

        for node in nodes:
            node.restart()  # no connection kept from before works any more
        for key in keys:
            assert await again(lambda key=key: client.exists(key), (0.1,) * 80) == 1  # type: ignore[misc]
        nodes[1].restart()

        async def piped() -> list[bytes | None]:
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.get(key)
            return await pipe.execute()

        assert all(await again(piped, (0.1,) * 80))


@pytest.mark.slow
async def test_sentinel_leads_to_the_new_primary(make_server: MakeServer, tmp_path: Path) -> None:
    primary = make_server(port=free_port(), options=("--repl-diskless-sync-delay", "0"))
    replica = make_server(port=free_port(), options=("--replicaof", f"127.0.0.1 {primary.port}"))
    port = free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor ledger 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds ledger 300\nsentinel failover-timeout ledger 2000\n"
    )
    binary = binary_path("valkey")
    assert binary is not None
    sentinel = TiedProcess(binary, str(conf), "--sentinel", log=tmp_path / "sentinel.log")
    try:
        wait_until(lambda: b"slaves=1" in _tell(port, b"INFO Sentinel"))
        async with connect(f"redis+sentinel://127.0.0.1:{port}/ledger", None) as client:
            await asyncio.gather(*(client.incr("n") for _ in range(100)))
            assert await client.wait(1, 10_000) == 1
            primary.kill9()

            assert await again(lambda: client.get("n"), (0.1,) * 90) == b"100"
            assert _tell(port, b"SENTINEL get-master-addr-by-name ledger").split()[-1] == b"%d" % replica.port
            assert await client.incr("n") == 101
    finally:
        sentinel.end(signal.SIGKILL)


def _tell(port: int, command: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as s:
            s.sendall(command + b"\r\n")
            return s.recv(65536)
    except OSError:
        return b""
