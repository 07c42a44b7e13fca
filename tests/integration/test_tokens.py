"""Tokens: shown once, kept as a hash, valid until they expire or are revoked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from ledger import keys, lua
from ledger.connect import Client, connect
from ledger.errors import InvalidRequest, LedgerUnavailable
from ledger.sessions import SessionStore
from ledger.tokens import Tokens
from tests.servers import ServerProcess, newest_log

T0 = 1_795_000_000_000_000


class Now:
    us = T0

    def __call__(self) -> int:
        return self.us


async def test_only_the_hash_of_a_token_is_kept(any_client: Client) -> None:
    tokens = Tokens(any_client)
    record, token = await tokens.create("owner", "acme", note="laptop")
    assert token.startswith("act_")
    assert len(token) == 4 + 43
    raw: Any = any_client
    stored = await raw.hgetall(keys.TOKENS)
    assert token.encode() not in b"".join(stored.values())
    assert record.digest == hashlib.sha256(token.encode()).hexdigest()
    assert await Tokens(any_client).authenticate(token) == record


async def test_what_is_made_or_revoked_waits_for_the_disk(
    make_server: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, unsynced = make_server(), make_server(appendfsync="no")
    async with connect(synced.url, None) as client:
        record, _ = await Tokens(client).create("admin", note="a-token-on-disk")
        assert b"a-token-on-disk" in newest_log(synced.directory).read_bytes()
        await Tokens(client).revoke(record.id)
        assert b"HDEL" in newest_log(synced.directory).read_bytes().upper()
    monkeypatch.setattr(lua, "_WAIT_MS", 50)
    async with connect(unsynced.url, None) as client:
        tokens, sessions = Tokens(client), SessionStore(client, 3600, 600)
        await client.config_set("appendfsync", "always")
        record, _ = await tokens.create("admin")
        await client.config_set("appendfsync", "no")
        for work in (
            lambda: tokens.create("viewer", "acme"), lambda: tokens.revoke(record.id),
            lambda: sessions.end("s"), lambda: sessions.end_all("p"), lambda: sessions.end_all("p"),
        ):  # fmt: skip
            with pytest.raises(LedgerUnavailable, match="did not confirm the write to its disk"):
                await work()
        assert await tokens.get(record.id) is None  # written, but nobody may rely on it yet
        await client.config_set("appendfsync", "always")
        assert [one.role for one, _ in await tokens.list()] == ["viewer"] * len(await tokens.list())


@pytest.mark.parametrize("text", ["", "act_", "act_x", "x", "act_" + "y" * 43, "act_é", "act_" + "x" * 10_000])
async def test_what_is_no_token_is_nobody(client: Client, text: str) -> None:
    tokens = Tokens(client)
    await tokens.create("admin")
    assert await tokens.authenticate(text) is None
    assert tokens.known(text) is None


async def test_a_revoked_token_is_nobody(client: Client) -> None:
    tokens = Tokens(client)
    record, token = await tokens.create("scheduler")
    assert await tokens.authenticate(token) == tokens.known(token) == record
    assert await tokens.revoke(record.id)
    assert await tokens.authenticate(token) is None
    assert not await tokens.revoke(record.id)
    assert await tokens.list() == []


async def test_a_token_expires(client: Client) -> None:
    now = Now()
    tokens = Tokens(client, now)
    record, token = await tokens.create("viewer", "acme", expires_us=T0 + 1_000_000)
    assert await tokens.authenticate(token) == record
    now.us = T0 + 1_000_000
    assert await tokens.authenticate(token) is None
    assert tokens.known(token) is None


async def test_the_last_use_is_known_to_the_minute(client: Client) -> None:
    now = Now()
    tokens = Tokens(client, now)
    _, token = await tokens.create("admin")
    assert [used for _, used in await tokens.list()] == [None]
    for after, expected in ((0, T0), (59_999_999, T0), (60_000_000, T0 + 60_000_000)):
        now.us = T0 + after
        await tokens.authenticate(token)
        await tokens.settle()
        assert [used for _, used in await tokens.list()] == [expected]


@pytest.mark.parametrize(
    ("role", "org"), [("root", None), ("owner", None), ("viewer", None), ("admin", "acme"), ("owner", "a\n")]
)
async def test_a_role_needs_what_it_needs(client: Client, role: str, org: str | None) -> None:
    with pytest.raises(InvalidRequest):
        await Tokens(client).create(role, org)


async def test_a_token_that_is_past_at_once_is_refused(client: Client) -> None:
    with pytest.raises(InvalidRequest):
        await Tokens(client, Now()).create("admin", expires_us=T0)
