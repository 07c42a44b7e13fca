"""One way to a ledger's server, whichever it is: embedded, standalone, behind Sentinel or a cluster.

Clients never send a command again by themselves: a write whose answer was lost would count twice. `again` does so
for calls that are idempotent by a key of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster, UnixDomainSocketConnection
from redis.asyncio.cluster import ClusterNode, ClusterPipeline
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ledger.embedded import EmbeddedServer, open_embedded, read_marker, write_marker
from ledger.errors import InvalidRequest, LedgerDamaged, LedgerUnavailable

Client = Redis | RedisCluster
T = TypeVar("T")

META_KEY = "credits:meta"
LEDGER_ID = "ledger_id"
_TIMEOUT_SECONDS = 5.0
_AGAIN_SECONDS = 10.0
_CONNECTIONS_MAX = 32
_VERSION_MIN = (7, 0)
_PAUSES_SECONDS = (0.02, 0.1, 0.4, 1.0)
_FORMS = (
    "embedded, redis://host:port/db, rediss://host:port/db, unix:///path?db=0, "
    "redis+sentinel://host:port[,host:port]/service[/db], redis+cluster://host:port[,host:port]"
)
# What passes by itself: a restart, a failover, slots on the move, a stall.
_PASSING = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    MasterDownError,
    SlotNotCoveredError,
    TryAgainError,
    OSError,
)
_LASTING = (AuthenticationError, AuthorizationError, NoPermissionError, OutOfMemoryError, ReadOnlyError)


@asynccontextmanager
async def connect(url: str, data_dir: Path | None) -> AsyncIterator[Client]:
    """A client of the server at `url` (answers are bytes), closed at the end.

    `data_dir` is that of `embedded`, whose server is started when it does not run yet.
    Raises: LedgerUnavailable when it does not answer now or is older than Redis 7.0; LedgerDamaged;
        InvalidRequest for a url of no known form.
    """
    async with AsyncExitStack() as stack:
        client: Client
        if url == "embedded":
            if data_dir is None:
                raise InvalidRequest("redis.url `embedded` needs a data_dir")
            entering = open_embedded(data_dir)
            server = await asyncio.to_thread(entering.__enter__)
            stack.callback(entering.__exit__, None, None, None)
            client = Redis.from_pool(
                BlockingConnectionPool(
                    connection_class=UnixDomainSocketConnection, path=server.socket_path, **_pool_options()
                )
            )
            where = f"the embedded server of {data_dir}"
        else:
            client, where = _client(url, stack), _where(url)
        stack.push_async_callback(client.aclose)
        await _check_server(client, where)
        if url == "embedded":
            assert data_dir is not None
            await check_marker(client, data_dir)
            keeper = asyncio.create_task(_keep_up(server))
            stack.push_async_callback(_cancel, keeper)
        yield client


async def again(call: Callable[[], Awaitable[T]], pauses: tuple[float, ...] = _PAUSES_SECONDS) -> T:
    """The result of `call()`, called anew after each pause (in seconds) when the connection failed.

    Only for calls that have the same effect once or often. No new try starts 10 s after the first.
    Raises: LedgerUnavailable at last; any other error of the server at once.
    """
    deadline = time.monotonic() + _AGAIN_SECONDS
    for pause in (*pauses, None):
        try:
            return await call()
        except _LASTING as e:
            raise LedgerUnavailable(f"the ledger's server refuses: {e}") from e
        except _PASSING as e:
            if pause is None or time.monotonic() + pause > deadline:
                raise LedgerUnavailable(f"the ledger's server does not answer: {e or type(e).__name__}") from e
        except ResponseError as e:
            if str(e).startswith("MISCONF"):
                raise LedgerUnavailable(f"the ledger's server cannot write to its disk (is it full?): {e}") from e
            raise
        await asyncio.sleep(pause)
    raise AssertionError("unreachable")


async def check_marker(client: Client, data_dir: Path) -> None:
    """Checks that the embedded server holds the ledger that its directory says it holds.

    A server that finds no manifest of its append-only file starts empty without a word. A directory of a ledger
    without a marker gets one.
    Raises: LedgerDamaged, with the remedy.
    """
    expected = read_marker(data_dir)
    answer: Any = await client.hget(META_KEY, LEDGER_ID)
    found = answer.decode() if answer else None
    if expected is None:
        if found is not None:
            write_marker(data_dir, found)
    elif found != expected:
        raise LedgerDamaged(
            f"data_dir {data_dir} is that of ledger {expected}, but its server started "
            + (f"with ledger {found}" if found else "empty")
            + ": files of its appendonlydir (the manifest above all) are missing or were replaced. Nothing was "
            "changed. Stop everything that uses it and restore data_dir from a backup; to begin a new, empty "
            f"ledger instead, move {data_dir} away"
        )


async def _check_server(client: Client, where: str) -> None:
    """Fails fast when the server is away, refuses us or is too old."""
    try:
        if isinstance(client, RedisCluster):
            answer: dict[str, Any] = await client.info("server", target_nodes=RedisCluster.PRIMARIES)
        else:
            answer = await client.info("server")
    except (RedisError, OSError) as e:
        raise LedgerUnavailable(f"{where} does not answer as a ledger's server: {e or type(e).__name__}") from e
    nodes = [answer] if "redis_version" in answer else list(answer.values())
    for node in nodes:
        version = str(node.get("redis_version", "0"))
        if tuple(int(n) for n in version.split(".")[:2] if n.isdigit()) < _VERSION_MIN:
            raise LedgerUnavailable(f"{where} runs version {version}; the ledger needs Redis 7.0 or newer, or Valkey")


async def _keep_up(server: EmbeddedServer) -> None:
    """Starts the embedded server again should its guard be killed too (the guard looks after all else)."""
    while True:
        await asyncio.sleep(1.0)
        with suppress(LedgerUnavailable):  # who needs it now gets that error with his own command
            await asyncio.to_thread(server.ensure)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _connection_options() -> dict[str, Any]:
    return {
        "socket_timeout": _TIMEOUT_SECONDS,
        "socket_connect_timeout": _TIMEOUT_SECONDS,
        "health_check_interval": 15,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }


def _pool_options() -> dict[str, Any]:
    return {**_connection_options(), "max_connections": _CONNECTIONS_MAX, "timeout": _TIMEOUT_SECONDS}


class _SentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the primary that Sentinel names; waits for a free one when all are in use."""


class _Cluster(RedisCluster):
    """A cluster whose pipelines, like its commands, look again where everything is after a lost connection."""

    def pipeline(self, transaction: Any | None = None, shard_hint: Any | None = None) -> ClusterPipeline:
        return _Pipeline(self, transaction)  # type: ignore[abstract]

    async def look_again(self) -> None:
        """Drops the connections kept to each node (each would fail in turn) and asks for the slots anew."""
        for node in self.get_nodes():
            node.update_active_connections_for_reconnect()
            await node.disconnect_free_connections()
        self._initialize = True


class _Pipeline(ClusterPipeline):
    def execute_command(self, *args: Any, **kwargs: Any) -> ClusterPipeline:
        # redis-py's transactions hand `keys`, meant for its cache, on to the functions that read the answers.
        kwargs.pop("keys", None)
        return super().execute_command(*args, **kwargs)

    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        cluster = self.cluster_client
        assert isinstance(cluster, _Cluster)
        try:
            results: list[Any] = await super().execute(raise_on_error, allow_redirections)
        except _PASSING:
            await cluster.look_again()
            raise
        if any(isinstance(result, _PASSING) for result in results):
            await cluster.look_again()
        return results


def _client(url: str, stack: AsyncExitStack) -> Client:
    parts = urlsplit(url)
    try:
        if parts.scheme in ("redis", "rediss", "unix"):
            return Redis.from_pool(BlockingConnectionPool.from_url(url, **_pool_options()))
        if parts.scheme == "redis+cluster":
            return _Cluster(
                startup_nodes=[ClusterNode(host, port) for host, port in _hosts(parts, 6379)],
                max_connections=_CONNECTIONS_MAX * 8,  # raises when exceeded instead of waiting
                **_login(parts),
                **_connection_options(),
            )
        if parts.scheme == "redis+sentinel":
            return _sentinel(parts, stack)
    except ValueError as e:
        raise InvalidRequest(f"redis.url {_where(url)}: {e}; write one of: {_FORMS}") from e
    raise InvalidRequest(f"redis.url {_where(url)} is none of: {_FORMS}")


def _sentinel(parts: SplitResult, stack: AsyncExitStack) -> Redis:
    """The password in the url is that of the servers; `?sentinel_password=` that of the sentinels."""
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("the name of the service is missing")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    sentinel_login = {
        name: options[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in options
    }
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        _hosts(parts, 26379), sentinel_kwargs={**_connection_options(), **sentinel_login}
    )
    for one in sentinel.sentinels:
        stack.push_async_callback(one.aclose)
    pool = _SentinelPool(unquote(service), sentinel, db=int(db or 0), **_login(parts), **_pool_options())  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)


def _hosts(parts: SplitResult, port: int) -> list[tuple[str, int]]:
    hosts = []
    for host in parts.netloc.rpartition("@")[2].split(","):
        one = urlsplit(f"//{host}")
        if not one.hostname:
            raise ValueError("a host is missing")
        hosts.append((one.hostname, one.port or port))
    return hosts


def _login(parts: SplitResult) -> dict[str, Any]:
    username, _, password = parts.netloc.rpartition("@")[0].partition(":")
    given = {"username": unquote(username), "password": unquote(password)}
    return {name: value for name, value in given.items() if value}


def _where(url: str) -> str:
    """The url without its secrets, for messages."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else repr(url)
