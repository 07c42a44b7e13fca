"""What the command line prints."""

from __future__ import annotations

import pytest

from cli.output import counted


@pytest.mark.parametrize(
    ("number", "what", "said"),
    [
        (1, "holds", "1 hold"),
        (1, "journal entries", "1 journal entry"),
        (1, "storage classes", "1 storage class"),
        (0, "grants", "0 grants"),
        (2, "storage classes", "2 storage classes"),
    ],
)
def test_one_is_singular(number: int, what: str, said: str) -> None:
    assert counted(number, what) == said
