"""What the ledger refused, beside the field of a form that it is about."""

from __future__ import annotations

from collections.abc import Mapping

from ledger.errors import InvalidRequest


def beside(error: InvalidRequest, fields: Mapping[str, str]) -> tuple[str, str]:
    """(field of the form, what is wrong with it); field "" where it is about none.

    The ledger begins with the API's name of what is wrong: `credits 5: a grant is ...`, `email: an address is ...`.
    `fields`: these names -> the form's, whose label the reader sees.
    """
    text = str(error)
    name = text.partition(" ")[0].rstrip(":")
    if name not in fields:
        return "", text
    rest = text.removeprefix(name).lstrip(":").strip()
    return fields[name], rest[:1].upper() + rest[1:]
