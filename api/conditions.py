"""Conditions on what two people may edit at the same time: `ETag` in answers, `If-Match` in requests."""

from __future__ import annotations

import re
from typing import Annotated, Final

from aiohttp import web
from msgspec import Struct, field

from api.types import said

GIVES_ETAG: Final = {"ETag": "Of what is set; for If-Match."}
_ETAG: Final = re.compile(r'\s*(?:\*|"([!#-~]{1,64})")\s*')
_SAYS: Final = "Only if it still has this ETag (`*`: only if it is there). None: the last one wins."


class IfMatch(Struct):
    """Header of what two people may edit at the same time."""

    tag: Annotated[str, said(description=_SAYS)] | None = field(name="If-Match", default=None)


def if_match(request: web.Request) -> str | None:
    """What If-Match asks for: a tag, `*`, or None where nothing is asked.

    Raises: web.HTTPUnprocessableEntity for what is no single strong ETag; HTTPPreconditionFailed for a weak one, which
        never matches.
    """
    values = request.headers.getall("If-Match", [])
    if not values:
        return None
    if any(value.lstrip().startswith("W/") for value in values):
        raise web.HTTPPreconditionFailed(text="A weak ETag never matches; send the one that was answered, as it is.")
    found = _ETAG.fullmatch(values[0]) if len(values) == 1 else None
    if found is None:
        raise web.HTTPUnprocessableEntity(text='If-Match: expected one ETag as it was answered, such as "5e1f", or *')
    return found[1] or "*"


def etag(tag: str) -> dict[str, str]:
    """The header of an answer."""
    return {"ETag": f'"{tag}"'}
