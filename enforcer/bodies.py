"""Request bodies: JSON to typed values, with errors that name the field."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import StreamReader, web

from api.explain import explain
from enforcer.problems import Problem
from ledger.clock import parse_time
from ledger.money import AmountError, read_credits
from ledger.names import NAME_MAX, is_name

T = TypeVar("T", bound=msgspec.Struct)
BODY_MAX: Final = 64 * 1024


async def read_json(request: web.Request, kind: type[T], body_max: int = BODY_MAX) -> T:
    """The body as a value of a struct type (one that forbids unknown fields).

    Raises: Problem 400 for what is not JSON, 413, and 422 naming the field that is wrong.
    """
    data = _at_hand(request.content, body_max)
    return decode(await read_bytes(request, body_max) if data is None else data, kind)


async def read_bytes(request: web.Request, body_max: int = BODY_MAX) -> bytes:
    """The whole body, once. Raises: Problem 413, without reading on."""
    at_hand = _at_hand(request.content, body_max)
    if at_hand is not None:
        return at_hand
    length = request.content_length
    if length is not None:
        if length > body_max:
            raise too_large(body_max)
        return await request.read()
    data = bytearray()  # of no announced length: chunked
    async for chunk in request.content.iter_any():
        data += chunk
        if len(data) > body_max:
            raise too_large(body_max)
    return bytes(data)


def _at_hand(content: StreamReader, body_max: int) -> bytes | None:
    """A body that came with its head, as small ones do: nothing is to be waited for."""
    return content.read_nowait() if content.is_eof() and content.total_bytes <= body_max else None


def too_large(body_max: int) -> Problem:
    """For a body that is larger than what is read."""
    return Problem(413, "too_large", f"The body is larger than {body_max} bytes.", {"Connection": "close"})


def decode(data: bytes, kind: type[T]) -> T:
    """JSON as a struct. Raises: Problem 400 or 422."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise Problem(422, "invalid", explain(str(error), kind)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "bad_request", f"The body is not JSON: {error}") from None


@lru_cache(maxsize=4096)  # the same few names come again and again
def name(field: str, value: str | None) -> str:
    """A name, "" where there is none. Raises: Problem 422."""
    if value is None or value == "":
        return ""
    return required_name(field, value)


@lru_cache(maxsize=4096)
def required_name(field: str, value: str | None) -> str:
    """A name. Raises: Problem 422."""
    if value is None or not is_name(value):
        expected = f"a name of 1 to {NAME_MAX} characters without control characters"
        raise Problem(422, "invalid", f"{field}: {value!r:.80} is not {expected}")
    return value


def amount(field: str, asked: msgspec.Raw) -> int:
    """Micro-credits. Raises: Problem 422."""
    try:
        return read_credits(bytes(asked), field)
    except AmountError as error:
        raise Problem(422, "invalid", str(error)) from None


def time(field: str, value: str | None) -> int | None:
    """An instant. Raises: Problem 422."""
    if value is None:
        return None
    try:
        us = parse_time(value)
    except (ValueError, OverflowError) as error:
        raise Problem(422, "invalid", f"{field}: {error}") from None
    if us < 0:
        raise Problem(422, "invalid", f"{field}: {value!r:.40} is before 1970")
    return us


def paging(request: web.Request, most: int = 1000) -> tuple[int, str | None]:
    """(limit, cursor) of a list. Raises: Problem 422."""
    text = request.query.get("limit") or "100"
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= most:
        raise Problem(422, "invalid", f"limit: {text!r:.40} is not a number from 1 to {most}")
    return int(text), request.query.get("cursor") or None


def answer(shape: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A value as a JSON answer."""
    return web.Response(
        body=msgspec.json.encode(shape), status=status, content_type="application/json", headers=headers
    )
