"""Forms that move credits: each one that is shown has a key of its own, so that sending it twice moves them once."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Final

from ledger.errors import InvalidRequest

_PREFIX: Final = "console:"
_KEY: Final = re.compile(r"console:[A-Za-z0-9_-]{1,56}")
NOT_WHOLE: Final = "This form is not whole; send it again from here."


def new_key() -> str:
    """For one form, each time that it is shown empty."""
    return _PREFIX + secrets.token_urlsafe(18)


def is_key(text: str) -> bool:
    """Whether a form may have got this key from here."""
    return _KEY.fullmatch(text) is not None


def place(error: InvalidRequest, names: Mapping[str, str]) -> tuple[str, str]:
    """(field, text) of what the ledger refused; field "" where it is about none of `names`.

    The ledger begins with the name of what is wrong: `credits 5: a grant is ...`, `expires_at is not after ...`.
    """
    text = str(error)
    field = text.partition(" ")[0].rstrip(":")
    if field not in names:
        return "", text
    rest = text.removeprefix(field).lstrip(":").strip()
    return field, rest[:1].upper() + rest[1:]
