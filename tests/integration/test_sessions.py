"""Sessions in the ledger's server: they are known to all, and end when they have to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger import keys
from ledger.connect import Client, connect
from ledger.sessions import EVERYBODY, Person, SessionStore
from ledger.tokens import Tokens
from tests.servers import ServerProcess, cluster_options, form_cluster, free_port

T0 = 1_795_000_000_000_000
HOUR_US = 3_600_000_000


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


def store(client: Client, clock: Callable[[], int], seconds: float = 7200.0, idle: float = 600.0) -> SessionStore:
    return SessionStore(client, seconds, idle, clock)


async def test_only_a_digest_of_the_secret_is_kept(client: Any) -> None:
    sessions, tokens = store(client, Hands()), Tokens(client, Hands())
    record, token = await tokens.create("owner", "acme")
    secret = await sessions.begin(sessions.of_token(record))
    assert len(secret) >= 43
    everything = b""
    for key in await client.keys("*"):
        kind = await client.type(key)
        everything += key + (await client.dump(key) if kind != b"hash" else str(await client.hgetall(key)).encode())
    assert secret.encode() not in everything
    assert token.encode() not in everything
    assert await sessions.find(secret + "x") is None
    assert await sessions.find("") is None
    assert await sessions.find("é" * 43) is None
    assert await sessions.find("x" * 100_000) is None


async def test_every_sign_in_has_a_secret_of_its_own(client: Client) -> None:
    sessions, tokens = store(client, Hands()), Tokens(client, Hands())
    record, _ = await tokens.create("admin")
    one, other = [await sessions.begin(sessions.of_token(record)) for _ in range(2)]
    assert one != other
    await sessions.end(one)
    assert await sessions.find(one) is None
    assert await sessions.find(other) is not None


async def test_a_session_acts_as_its_token_is_now_and_ends_with_it(client: Any) -> None:
    clock = Hands()
    sessions, tokens = store(client, clock), Tokens(client, clock)
    record, _ = await tokens.create("owner", "acme", expires_us=T0 + HOUR_US)
    secret = await sessions.begin(sessions.of_token(record))
    session = await sessions.find(secret)
    assert session is not None
    assert await sessions.caller(session) == record
    changed = msgspec.structs.replace(record, role="viewer")
    await client.hset(keys.TOKENS, record.id, msgspec.json.encode(changed))
    assert await sessions.caller(session) == changed
    clock.us += HOUR_US - 1
    assert await sessions.caller(session) is not None
    clock.us += 1
    assert await sessions.caller(session) is None
    assert await sessions.find(secret) is None


async def test_a_revoked_token_ends_its_session_at_once(client: Client) -> None:
    sessions, tokens = store(client, Hands()), Tokens(client, Hands())
    record, _ = await tokens.create("owner", "acme")
    session = await sessions.find(await sessions.begin(sessions.of_token(record)))
    assert session is not None
    await Tokens(client).revoke(record.id)  # by another process
    assert await sessions.caller(session) is None


async def test_a_session_is_over_after_its_time_however_busy(client: Any) -> None:
    clock = Hands()
    sessions = store(client, clock)
    record, _ = await Tokens(client, clock).create("admin")
    secret = await sessions.begin(sessions.of_token(record))
    clock.us += 2 * HOUR_US - 1
    assert await sessions.find(secret) is not None
    clock.us += 1
    assert await sessions.find(secret) is None
    clock.us -= HOUR_US
    assert await sessions.find(secret) is None  # it was ended, not only refused


async def test_idling_ends_a_session_and_use_puts_it_off(client: Any) -> None:
    sessions = store(client, Hands(), idle=600)
    record, _ = await Tokens(client, Hands()).create("admin")
    secret = await sessions.begin(sessions.of_token(record))
    (name,) = await client.keys("credits:session:*")
    assert 0 < await client.pttl(name) <= 600_000
    await client.pexpire(name, 5_000)
    assert await sessions.find(secret) is not None
    assert await client.pttl(name) > 500_000
    short = store(client, Hands(), idle=0.02)
    other = await short.begin(short.of_token(record))
    async with asyncio.timeout(10):
        while await client.exists(*await client.keys("credits:session:*")) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert await sessions.find(other) is None
    assert await sessions.find(secret) is not None


async def test_signing_out_everywhere_ends_all_of_a_person_and_nobody_elses(client: Client) -> None:
    sessions, tokens = store(client, Hands()), Tokens(client, Hands())
    ann, _ = await tokens.create("owner", "acme")
    bob, _ = await tokens.create("owner", "acme")
    anns = [await sessions.begin(sessions.of_token(ann)) for _ in range(3)]
    bobs = await sessions.begin(sessions.of_token(bob))
    went_on = await sessions.find(anns[2])
    assert went_on is not None
    await sessions.end_all(f"token:{ann.id}")
    assert [await sessions.find(secret) for secret in anns] == [None] * 3
    # What was found just before and goes on under a new secret is over all the same.
    assert await sessions.find(await sessions.begin(went_on)) is None
    assert await sessions.find(bobs) is not None
    assert await sessions.find(await sessions.begin(sessions.of_token(ann))) is not None


async def test_everybody_is_signed_out_at_once(client: Any) -> None:
    sessions, tokens = store(client, Hands()), Tokens(client, Hands())
    ann, _ = await tokens.create("owner", "acme")
    secrets = [
        await sessions.begin(sessions.of_token(ann)),
        await sessions.begin(sessions.of_person("https://id", "u1", "bob", (("admin", None),))),
    ]
    await sessions.end_all(EVERYBODY)
    assert [await sessions.find(secret) for secret in secrets] == [None, None]
    after = await sessions.begin(sessions.of_token(ann))
    assert await sessions.find(after) is not None
    # What says so is there for as long as a session may be that has to carry it.
    assert await client.pttl(keys.sessions_of(EVERYBODY)) > 7_190_000


async def test_a_person_of_several_orgs_acts_for_none_before_choosing(client: Client) -> None:
    sessions = store(client, Hands())
    choices: tuple[tuple[str, str | None], ...] = (("owner", "acme"), ("viewer", "globex"))
    session = await sessions.find(await sessions.begin(sessions.of_person("https://id", "u1", "ann@acme", choices)))
    assert session is not None
    assert await sessions.caller(session) is None
    caller = await sessions.caller(msgspec.structs.replace(session, chosen=1))
    assert isinstance(caller, Person)
    assert (caller.role, caller.org, caller.who) == ("viewer", "globex", "sso:ann@acme (viewer)")
    single = sessions.of_person("https://id", "u1", "ann@acme", choices[:1])
    assert (await sessions.caller(single)).org == "acme"  # type: ignore[union-attr]
    assert sessions.of_person("https://other", "u1", "ann@acme", choices).person != session.person


async def test_a_session_survives_a_restart_and_is_known_to_every_enforcer(
    make_server: Callable[..., ServerProcess],
) -> None:
    server = make_server(appendfsync="always")
    async with connect(server.url, None) as one:
        record, _ = await Tokens(one, Hands()).create("admin")
        first = store(one, Hands())
        secret = await first.begin(first.of_token(record))
        server.kill9()
        server.start()
        async with connect(server.url, None) as other:
            session = await store(other, Hands()).find(secret)
            assert session is not None
            await store(other, Hands()).end_all(session.person)
        assert await first.find(secret) is None


@pytest.mark.redis_server
async def test_sessions_on_an_old_redis(redis_url: str) -> None:
    async with connect(redis_url, None) as client:
        await client.flushall()
        sessions = store(client, Hands())
        record, _ = await Tokens(client, Hands()).create("admin")
        assert await sessions.find(await sessions.begin(sessions.of_token(record))) is not None


@pytest.mark.slow
async def test_sessions_on_a_cluster(tmp_path: Path) -> None:
    nodes = [ServerProcess(tmp_path / f"{n}", port=free_port(), options=cluster_options()).start() for n in range(3)]
    try:
        await form_cluster(nodes)
        async with connect(f"redis+cluster://127.0.0.1:{nodes[0].port}", None) as client:
            sessions = store(client, Hands())
            record, _ = await Tokens(client, Hands()).create("admin")
            secrets = [await sessions.begin(sessions.of_token(record)) for _ in range(8)]
            found = [await sessions.find(secret) for secret in secrets]
            assert [await sessions.caller(session) for session in found if session is not None] == [record] * 8
            await sessions.end_all(EVERYBODY)
            assert [await sessions.find(secret) for secret in secrets] == [None] * 8
    finally:
        for node in nodes:
            node.kill9()
