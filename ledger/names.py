"""What a name may be: orgs, projects, users, presets and ids end up in keys, labels and pages."""

from __future__ import annotations

from ledger.errors import InvalidRequest

NAME_MAX = 253
GLOB = str.maketrans({letter: f"\\{letter}" for letter in "\\*?[]"})
"""What `translate` is given for a name in a pattern of the server."""


def is_name(text: object) -> bool:
    """1 to 253 characters, none of them a control character or a lone surrogate."""
    if not isinstance(text, str) or not 0 < len(text) <= NAME_MAX:
        return False
    return text.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) <= 0xDFFF for c in text)


def check_name(what: str, text: object) -> str:
    """The name itself.

    Raises: InvalidRequest saying what is wrong with it.
    """
    if not is_name(text):
        shown = repr(text)[:80]
        raise InvalidRequest(
            f"{what} {shown}: expected a name of 1 to {NAME_MAX} characters without control characters"
        )
    assert isinstance(text, str)
    return text
