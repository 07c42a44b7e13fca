"""Names that a scheduler gives, checked before they become ledger rows and metric labels."""

from __future__ import annotations

import re
import sys
from typing import Final

NAME_MAX: Final = 253
"""Characters of the longest name: what Kubernetes allows, and more than any other scheduler does."""

# Reasons why a record cannot be charged (label `reason` of `credits_unbillable_workloads_total`).
MALFORMED: Final = "malformed"
NO_ORG: Final = "no_org"
NO_PRESET: Final = "no_preset"
BAD_NAME: Final = "bad_name"
DUPLICATE: Final = "duplicate"

# Control characters break tables and logs; a lone surrogate has no UTF-8, so no ledger could store it.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Unbillable(Exception):
    """One record cannot be charged; `reason` is one of the words above."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_name(text: str) -> bool:
    """Whether `text` can name something: 1 to 253 characters, none of them a control character."""
    return 0 < len(text) <= NAME_MAX and (text.isprintable() or _FORBIDDEN.search(text) is None)


def required_name(text: str | None, missing: str) -> str:
    """`text`, shared with all equal names in memory.

    Raises: Unbillable with reason `missing` where it is None or empty, BAD_NAME where it is not a name.
    """
    if not text:
        raise Unbillable(missing)
    if not is_name(text):
        raise Unbillable(BAD_NAME)
    return sys.intern(text)


def required_id(text: str | None) -> str:
    """`text`, as it is: an id is seldom met twice, so sharing it would only cost memory.

    Raises: Unbillable(BAD_NAME) where it is not a name.
    """
    if not text or not is_name(text):
        raise Unbillable(BAD_NAME)
    return text


def optional_name(text: str | None) -> str:
    """`text`, or "" where it is None or empty. Raises: Unbillable(BAD_NAME)."""
    return required_name(text, BAD_NAME) if text else ""
