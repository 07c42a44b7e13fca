"""docs/http-api.md: its table is of the calls there are, and its examples print what it says."""

from __future__ import annotations

from pathlib import Path

from cli.access_table import every_route
from cli.calls_table import render
from enforcer.openapi import describe
from tests.api_lab import live_api
from tests.http_examples import BLOCK, commands, run, settled

PAGE = Path(__file__).parents[2] / "docs/http-api.md"


def test_the_table_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page, describe(every_route())) == page, "run: python -m cli.calls_table docs/http-api.md"


def test_the_examples_print_what_the_page_shows(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert sum(len(commands(block)) for block in BLOCK.findall(page)) >= 15
    with live_api(tmp_path) as api:
        assert settled(run(page, api)) == settled(page), "run: python -m tests.http_examples docs/http-api.md"
