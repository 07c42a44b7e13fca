"""What calls that change or list something share: idempotency keys, who calls, order."""

from __future__ import annotations

from typing import Final, TypedDict

from aiohttp import web

from enforcer.access import token_of
from enforcer.addresses import address_of
from enforcer.problems import Problem
from ledger.accounts import KEY_MAX

GIVES_REPLAYED: Final = {"Idempotent-Replayed": "`true` where this is the answer to an earlier call with the same key."}


class Caller(TypedDict):
    """Who changes something, and from where: as the ledger's calls take it."""

    who: str
    address: str | None


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


def newest_first(request: web.Request) -> bool:
    """Whether a list is asked for in that order. Raises: Problem 422."""
    order = request.query.get("order") or "asc"
    if order not in ("asc", "desc"):
        raise Problem(422, "invalid", f"order: {order!r:.40} is none of asc, desc")
    return order == "desc"
