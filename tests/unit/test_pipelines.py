"""How many of the calls that wait go with the next pipeline."""

from __future__ import annotations

import pytest

from ledger.pipelined import _share


@pytest.mark.parametrize(
    ("landed", "waiting", "expected"),
    [
        (0, 1, 1), (0, 58, 58),  # nothing was under way: nobody is waited for
        (1, 31, 16), (16, 16, 16), (16, 15, 16), (32, 4, 18),  # half of what is in play
        (1, 3, 8), (0, 1000, 256), (256, 1000, 256),
    ],
)  # fmt: skip
def test_a_pipeline_carries_half_of_what_is_in_play(landed: int, waiting: int, expected: int) -> None:
    assert _share(landed, waiting) == expected
