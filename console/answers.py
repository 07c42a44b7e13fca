"""Bodies of the console's API calls: JSON in, with errors that name the field, and JSON out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from api.explain import explain
from ledger.errors import InvalidRequest
from ledger.money import AmountError, read_credits

T = TypeVar("T")
BODY_MAX: Final = 4096


async def read_bytes(request: web.Request, most: int) -> bytes:
    """The whole body. Raises: HTTPRequestEntityTooLarge, without reading on."""
    data = bytearray()
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > most:
            raise web.HTTPRequestEntityTooLarge(max_size=most, actual_size=len(data))
    return bytes(data)


async def read_json(request: web.Request, kind: type[T], most: int = BODY_MAX) -> T:
    """The body as a value of a type. Raises: HTTPBadRequest for what is not JSON; InvalidRequest naming the field."""
    body = await read_bytes(request, most)
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(explain(str(error), kind)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise web.HTTPBadRequest(text=f"The body is not JSON: {error}") from None


def credits_of(name: str, asked: msgspec.Raw) -> int:
    """Micro-credits. Raises: InvalidRequest."""
    try:
        return read_credits(bytes(asked), name)
    except AmountError as error:
        raise InvalidRequest(str(error)) from None


def answer(shape: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A value as a JSON answer."""
    body = msgspec.json.encode(shape)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)
