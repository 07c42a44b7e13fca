"""How results are printed: tables for people, JSON for programs, CSV where there are rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import click

from ledger import csv_text

Rows = Sequence[Mapping[str, Any]]


class Progress(Protocol):
    """Told how much is done and how much there is in all."""

    def __call__(self, done: int, total: int, /) -> None: ...


def counted(number: int, what: str) -> str:
    """`1 grant`, `2 entries`. `what` is in the plural."""
    if number != 1:
        return f"{number} {what}"
    for plural, one in (("ies", "y"), ("sses", "ss"), ("s", "")):
        if what.endswith(plural):
            return f"1 {what.removesuffix(plural)}{one}"
    return f"1 {what}"


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_csv(columns: Sequence[str], rows: Rows) -> None:
    """A header and the rows; absent is empty, and no name is a formula."""
    texts = ({column: _text(row.get(column), absent="") for column in columns} for row in rows)
    for line in csv_text.lines(columns, texts):
        click.echo(line, nl=False)


def print_table(
    columns: Sequence[str], rows: Rows, right: Sequence[str] = (), last: Mapping[str, Any] | None = None
) -> None:
    """Aligned columns, numbers (`right`) to the right; `last` is a row of totals, set apart."""
    cells = [[_text(row.get(column)) for column in columns] for row in [*rows, *([last] if last else [])]]
    titles = [column.replace("_", " ").upper() for column in columns]
    widths = [max(len(line[i]) for line in [titles, *cells]) for i in range(len(columns))]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if column in right else text.ljust(width)
            for text, width, column in zip(texts, widths, columns, strict=True)
        ]
        return "  ".join(padded).rstrip()

    click.echo(line(titles))
    for number, texts in enumerate(cells):
        if last and number == len(cells) - 1:
            click.echo(line(["-" * width for width in widths]))
        click.echo(line(texts))


def print_rows(
    columns: Sequence[str],
    rows: Rows,
    *,
    as_csv: bool = False,
    right: Sequence[str] = (),
    last: Mapping[str, Any] | None = None,
    nothing: str = "nothing to show",
) -> None:
    """A table, or CSV; `nothing` is said where a table would be empty."""
    if as_csv:
        print_csv(columns, rows)
    elif rows:
        print_table(columns, rows, right, last)
    else:
        click.echo(nothing)


def _text(value: Any, absent: str = "-") -> str:
    if value is None or value == "":
        return absent
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A bar on the terminal's stderr; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
