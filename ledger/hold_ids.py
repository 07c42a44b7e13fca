"""Ids of holds: nobody can guess one, and it tells the org it belongs to, so that it can be released by itself."""

from __future__ import annotations

import hashlib
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from functools import lru_cache

from ledger.errors import InvalidRequest

HOLD_ID_MAX = 200
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_ENCODED_MAX = 120


def new_hold_id(org: str) -> str:
    """`acme.Zm9v...`; `:BASE64.Zm9v...` where the org's name has other characters, `::DIGEST.Zm9v...` for a long one.

    Schedulers carry it in comments: letters, digits and `_-.:` only.
    """
    return f"{_name(org)}.{os.urandom(16).hex()}"


def org_of_hold(hold_id: str, orgs: Iterable[str] | None = None) -> str | None:
    """The org in a hold's id, None for what is no such id. `orgs`: all names, to find a long one.

    Raises: InvalidRequest where `orgs` are needed and not given.
    """
    name, dot, rest = hold_id.partition(".")
    if not dot or not rest or len(hold_id) > HOLD_ID_MAX:
        return None
    if _PLAIN.fullmatch(name):
        return name
    if name.startswith("::"):
        if orgs is None:
            raise InvalidRequest(f"hold {hold_id!r} is that of an org with a long name: the names of all are needed")
        return next((org for org in orgs if _digest(org) == name[2:]), None)
    if not name.startswith(":"):
        return None
    encoded = name[1:]
    try:
        return urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode() or None
    except (Base64Error, ValueError):
        return None


@lru_cache(maxsize=4096)
def _name(org: str) -> str:
    if _PLAIN.fullmatch(org):
        return org
    encoded = urlsafe_b64encode(org.encode()).decode().rstrip("=")
    return f":{encoded}" if len(encoded) <= _ENCODED_MAX else f"::{_digest(org)}"


def _digest(org: str) -> str:
    return hashlib.sha256(org.encode()).hexdigest()[:32]
