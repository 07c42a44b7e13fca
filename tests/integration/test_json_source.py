"""The `json` source against real files, a real HTTP server and real processes."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from exporter.sources.base import Source, SourceError
from exporter.sources.json_source import JsonSource
from ledger.clock import parse_time
from ledger.errors import CreditsError

DOCUMENT = json.dumps(
    {
        "cluster": "default",
        "taken_at": "2026-11-22T10:00:00Z",
        "workloads": [
            {
                "id": "job-1",
                "kind": "job",
                "org": "acme",
                "preset": "cpu-small",
                "started_at": "2026-11-22T09:00:00Z",
            }
        ],
        "storage": [],
    }
).encode()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def source(**ways: Any) -> AsyncIterator[Source]:
    opened = JsonSource(name="json-default", cluster="default", **ways)
    try:
        yield opened
    finally:
        await opened.close()


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/snapshot?token=secret"))


async def ids_from(**ways: Any) -> list[str]:
    async with source(**ways) as opened:
        return [o.id for o in (await opened.fetch(None)).workloads]


async def refusal_of(**ways: Any) -> str:
    async with source(**ways) as opened:
        with pytest.raises(SourceError) as caught:
            await opened.fetch(None)
    assert str(caught.value).startswith("json-default: ")
    return str(caught.value)


@pytest.mark.parametrize("ways", [{}, {"path": "a", "url": "http://b"}, {"command": ()}])
def test_exactly_one_way_is_needed(ways: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        JsonSource(name="json-default", cluster="default", **ways)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
async def test_a_file_is_read_packed_or_not(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "snapshot.json"
    path.write_bytes(pack(DOCUMENT))

    assert await ids_from(path=path) == ["job-1"]


async def test_a_file_is_read_anew_at_each_fetch(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    path.write_bytes(DOCUMENT)
    async with source(path=path) as opened:
        before = await opened.fetch(None)
        path.write_bytes(DOCUMENT.replace(b"T10:00", b"T10:01"))
        after = await opened.fetch(before.taken_us)

    assert after.taken_us - before.taken_us == 60_000_000
    assert after.workloads[0] is before.workloads[0]


async def test_a_missing_file_a_directory_and_a_pipe_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    assert "No such file" in await refusal_of(path=tmp_path / "missing")
    assert "not a regular file" in await refusal_of(path=tmp_path)
    assert "not a regular file" in await refusal_of(path=tmp_path / "pipe")


async def test_a_document_larger_than_allowed_is_refused_also_when_packed(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    for data in (b" " * 2000, gzip.compress(b" " * 2000)):
        path.write_bytes(data)
        assert "larger than 1000 bytes" in await refusal_of(path=path, bytes_max=1000)


@pytest.mark.parametrize("broken", [gzip.compress(DOCUMENT)[:-9], b"\x1f\x8b\x00\x00", b"\x1f\x8b"])
async def test_broken_gzip_is_refused(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "snapshot.json.gz"
    path.write_bytes(broken)

    assert "broken gzip" in await refusal_of(path=path)


async def test_a_url_is_fetched() -> None:
    async def handler(request: web.Request) -> web.Response:
        response = web.Response(body=DOCUMENT, content_type="application/json")
        response.enable_compression(web.ContentCoding.gzip)
        return response

    async with served(handler) as url:
        assert await ids_from(url=url) == ["job-1"]


async def test_a_gzip_file_behind_a_url_is_unpacked() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(DOCUMENT), content_type="application/octet-stream")

    async with served(handler) as url:
        assert await ids_from(url=url) == ["job-1"]


async def test_redirects_are_followed_but_not_for_ever() -> None:
    async def handler(request: web.Request) -> web.Response:
        left = int(request.query.get("left", "99"))
        if left:
            raise web.HTTPFound(f"/snapshot?token=secret&left={left - 1}")
        return web.Response(body=DOCUMENT)

    async with served(handler) as url:
        assert await ids_from(url=url + "&left=3") == ["job-1"]
        refusal = await refusal_of(url=url)

    assert "TooManyRedirects" in refusal
    assert "secret" not in refusal


async def test_the_token_goes_to_the_server_of_the_url_and_not_where_it_redirects_to() -> None:
    sent: list[str | None] = []

    async def document(request: web.Request) -> web.Response:
        sent.append(request.headers.get("Authorization"))
        return web.Response(body=DOCUMENT)

    async with served(document) as other:

        async def redirect(request: web.Request) -> web.Response:
            sent.append(request.headers.get("Authorization"))
            raise web.HTTPFound(other)

        async with served(redirect) as url:
            assert await ids_from(url=url, token=lambda: "t1") == ["job-1"]

    assert sent == ["Bearer t1", None]


async def test_a_token_that_cannot_be_read_is_refused_with_the_reason() -> None:
    def missing() -> str:
        raise CreditsError("the secret in token.txt cannot be read")

    assert "token.txt cannot be read" in await refusal_of(url="http://127.0.0.1:1/", token=missing)


async def test_an_error_status_is_refused_without_showing_secrets_of_the_url() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=503, body=DOCUMENT)

    async with served(handler) as url:
        refusal = await refusal_of(url=url.replace("http://", "http://ann:pass@"))

    assert "/snapshot answers 503 Service Unavailable" in refusal
    assert "secret" not in refusal
    assert "pass" not in refusal


async def test_a_server_that_stalls_costs_no_more_than_the_timeout() -> None:
    gone = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(DOCUMENT[:20])
        await gone.wait()
        return response

    async with served(handler) as url:
        refusal = await refusal_of(url=url, timeout_seconds=0.2)
        gone.set()

    assert "no answer within 0.2 s" in refusal


async def test_a_body_that_never_ends_is_cut_off() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 10_000)
        return response

    async with served(handler) as url:
        assert "larger than 100000 bytes" in await refusal_of(url=url, bytes_max=100_000)


async def test_nobody_at_the_address_and_no_address_are_refused(unused_tcp_port: int) -> None:
    assert "cannot be fetched" in await refusal_of(url=f"http://127.0.0.1:{unused_tcp_port}/")
    assert "cannot be fetched" in await refusal_of(url="ftp://127.0.0.1/")


async def test_a_source_recovers_when_its_server_does() -> None:
    answers = [web.Response(status=500), web.Response(body=b"oops"), web.Response(body=DOCUMENT)]

    async def handler(request: web.Request) -> web.Response:
        return answers.pop(0)

    async with served(handler) as url, source(url=url) as opened:
        for _ in range(2):
            with pytest.raises(SourceError):
                await opened.fetch(None)
        assert len((await opened.fetch(None)).workloads) == 1


async def test_a_command_gives_the_document(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(DOCUMENT)

    assert await ids_from(command=("cat", str(tmp_path / "s.json"))) == ["job-1"]
    assert await ids_from(command=f"cat {tmp_path}/s.json | gzip") == ["job-1"]


async def test_a_command_is_told_up_to_when_is_charged(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(DOCUMENT)
    command = f'printf "%s\\n" "$CREDITS_SINCE" >> {tmp_path}/since; cat {tmp_path}/s.json'
    async with source(command=command) as opened:
        await opened.fetch(None)
        await opened.fetch(parse_time("2026-11-22T10:00:00Z"))

    assert (tmp_path / "since").read_text() == "\n2026-11-22T10:00:00Z\n"


async def test_a_command_that_fails_is_refused_with_its_last_words_but_not_its_arguments() -> None:
    refusal = await refusal_of(command="echo no such partition >&2; : --password=secret; exit 3")

    assert refusal == "json-default: /bin/sh: ended with exit code 3: no such partition"


async def test_a_command_that_does_not_exist_or_dies_is_refused() -> None:
    assert "no-such-program: cannot be started" in await refusal_of(command=("no-such-program",))
    assert "was ended by signal 9" in await refusal_of(command="kill -9 $$")


async def test_a_command_that_fails_after_writing_a_document_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(DOCUMENT)

    assert "exit code 1" in await refusal_of(command=f"cat {tmp_path}/s.json; exit 1")


async def test_a_command_that_writes_without_end_is_killed() -> None:
    assert "wrote more than 100000 bytes" in await refusal_of(command=("yes",), bytes_max=100_000)


def is_running(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be collected by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(5):
        while is_running(pid):  # noqa: ASYNC110 - another process, nothing to await
            await asyncio.sleep(0.01)


async def test_a_slow_command_is_killed_with_all_it_started(tmp_path: Path) -> None:
    command = f"echo thinking >&2; sleep 60 & echo $! > {tmp_path}/child; wait"
    started = time.monotonic()

    refusal = await refusal_of(command=command, timeout_seconds=0.5)

    assert refusal == "json-default: /bin/sh: not done after 0.5 s: thinking"
    assert time.monotonic() - started < 5
    await until_gone(int((tmp_path / "child").read_text()))


async def test_a_child_that_leaves_the_group_and_keeps_the_pipe_does_not_hold_up_the_fetch(
    tmp_path: Path,
) -> None:
    child = tmp_path / "child"
    script = f"import os, time; os.setsid(); open({str(child)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    command = f"{sys.executable} -c {json.dumps(script)} & wait"
    try:
        assert "not done after" in await refusal_of(command=command, timeout_seconds=1)
    finally:
        if child.exists():
            os.kill(int(child.read_text()), 9)


async def test_a_fetch_that_is_cancelled_takes_its_command_along(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    os.mkfifo(pid_file)
    async with source(command=f"echo $$ > {pid_file}; exec sleep 60", timeout_seconds=60) as opened:
        fetch = asyncio.ensure_future(opened.fetch(None))
        pid = int(await asyncio.to_thread(pid_file.read_text))
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch

    await until_gone(pid)
