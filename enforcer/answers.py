"""The answer to an admission: a JSON document that is written together with its head, in one piece."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import SERVER_SOFTWARE, HttpVersion, HttpVersion10, HttpVersion11
from multidict import CIMultiDict

_HEADERS: Final = CIMultiDict({"Content-Type": "application/json"})


class Answer(web.StreamResponse):
    """What `web.Response` with status 200 sends for this body, byte for byte, at a fraction of what that costs:
    of its head only the length, and once a second the date, are ever different.

    Not for HEAD, and nothing can be added to it: no header, no cookie, no compression.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__(headers=_HEADERS)
        self.body = body
        self._asked: web.BaseRequest | None = None

    @property
    def keep_alive(self) -> bool | None:
        """As the client asked. The server closes the connection after the answer otherwise."""
        return None if self._asked is None else self._asked.keep_alive

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        self._asked = request
        return request.writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Raises: ConnectionError where the client is gone, which the server expects."""
        asked, body = self._asked, self.body
        assert asked is not None, "an answer is prepared for a request first"
        before, after = _head(int(time.time()), asked.version, asked.keep_alive)
        transport = asked.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        transport.write(b"%b%d%b%b" % (before, len(body), after, body))
        if transport.get_write_buffer_size():  # a client that takes its answers slower than it asks is waited for
            await asked.writer.drain()


@lru_cache(maxsize=16)
def _head(second: int, version: HttpVersion, keep_alive: bool) -> tuple[bytes, bytes]:
    """What is before and after the length, at a second since 1970."""
    before = f"HTTP/{version.major}.{version.minor} 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    after = f"\r\nDate: {formatdate(second, usegmt=True)}\r\nServer: {SERVER_SOFTWARE}\r\n"
    if keep_alive and version == HttpVersion10:
        after += "Connection: keep-alive\r\n"
    elif not keep_alive and version == HttpVersion11:
        after += "Connection: close\r\n"
    return before.encode(), f"{after}\r\n".encode()
