"""What calls that change or list something share: idempotency keys, conditions on what is edited, order."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypedDict

import msgspec
from aiohttp import web

from api.types import said
from enforcer.access import token_of
from enforcer.addresses import address_of
from enforcer.problems import Problem
from ledger.accounts import KEY_MAX

GIVES_REPLAYED: Final = {"Idempotent-Replayed": "`true` where this is the answer to an earlier call with the same key."}
GIVES_ETAG: Final = {"ETag": "Of what is set; for If-Match."}
_ETAG: Final = re.compile(r'\s*(?:\*|"([!#-~]{1,64})")\s*')


class Caller(TypedDict):
    """Who changes something, and from where: as the ledger's calls take it."""

    who: str
    address: str | None


class IfMatch(msgspec.Struct):
    """Header of what two people may edit at the same time."""

    tag: Annotated[
        str, said(description="Only if it still has this ETag (`*`: only if it is there). None: the last one wins.")
    ] | None = msgspec.field(name="If-Match", default=None)


def caller(request: web.Request) -> Caller:
    """The caller of a guarded handler."""
    return Caller(who=token_of(request).who, address=address_of(request))


def idempotency_key(request: web.Request) -> str:
    """Raises: Problem 400 where there is none, or one that cannot be."""
    key = request.headers.get("Idempotency-Key", "")
    if not 0 < len(key) <= KEY_MAX or not key.isprintable():
        raise Problem(400, "no_idempotency_key", f"An Idempotency-Key header of 1 to {KEY_MAX} characters is needed.")
    return key


def replayed(is_replayed: bool) -> dict[str, str]:
    """The header that says so."""
    return {"Idempotent-Replayed": "true" if is_replayed else "false"}


def if_match(request: web.Request) -> str | None:
    """What If-Match asks for: a tag, `*`, or None where nothing is asked.

    Raises: Problem 422 for what is no single strong ETag, 412 for a weak one, which never matches.
    """
    values = request.headers.getall("If-Match", [])
    if not values:
        return None
    if any(value.lstrip().startswith("W/") for value in values):
        raise Problem(412, "changed", "A weak ETag never matches; send the one that was answered, as it is.")
    found = _ETAG.fullmatch(values[0]) if len(values) == 1 else None
    if found is None:
        raise Problem(422, "invalid", 'If-Match: expected one ETag as it was answered, such as "5e1f", or *')
    return found[1] or "*"


def etag(tag: str) -> dict[str, str]:
    """The header of an answer."""
    return {"ETag": f'"{tag}"'}


def newest_first(request: web.Request) -> bool:
    """Whether a list is asked for in that order. Raises: Problem 422."""
    order = request.query.get("order") or "asc"
    if order not in ("asc", "desc"):
        raise Problem(422, "invalid", f"order: {order!r:.40} is none of asc, desc")
    return order == "desc"
