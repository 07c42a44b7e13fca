"""The table of the platform's weaknesses names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_weakness_has_tests_that_exist() -> None:
    page = (ROOT / "docs/decisions/0010-weaknesses-of-the-platforms-billing.md").read_text(encoding="utf-8")
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    rows = re.findall(r"^\| ([WF]\d+) \|.*\|(.*)\|$", page, re.MULTILINE)
    assert [code for code, _ in rows] == [*(f"W{n}" for n in range(1, 26)), *(f"F{n}" for n in range(1, 11))]
    for code, cell in rows:
        names = re.findall(r"`(test_\w+)`", cell)
        assert names, code
        assert not set(names) - defined, code
