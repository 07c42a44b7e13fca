"""What the exporter keeps of one org in memory: its rows, totals, marks and the runs that go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from ledger.budgets import Budget
from ledger.runs import Run, RunKey


class Row(NamedTuple):
    """What spending is added up by, inside an org."""

    cluster: str
    project: str
    user: str
    kind: str
    resource: str
    app: str


class Amounts:
    """Sums of one row: micro-credits spent, microseconds billed, and what corrections gave back of both."""

    __slots__ = ("micro", "refunded_micro", "refunded_us", "us")

    def __init__(self, micro: int = 0, us: int = 0, refunded_micro: int = 0, refunded_us: int = 0) -> None:
        self.micro = micro
        self.us = us
        self.refunded_micro = refunded_micro
        self.refunded_us = refunded_us


class Live(NamedTuple):
    """What runs now in one row: cost numerator a microsecond, how many, how many bytes (storage)."""

    per_us: int
    workloads: int
    stored: int


@dataclass(slots=True)
class OrgState:
    """One org as of its commit `token`."""

    name: str
    token: str = ""
    budget_rev: str = "0"
    marks: dict[str, int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    row_numbers: dict[Row, int] = field(default_factory=dict)
    totals: dict[int, Amounts] = field(default_factory=dict)
    runs: dict[str, dict[RunKey, Run]] = field(default_factory=dict)
    latest: dict[str, dict[tuple[str, str], Run]] = field(default_factory=dict)
    running: dict[str, dict[str, int]] = field(default_factory=dict)
    live: dict[str, dict[int, Live]] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    grant_edges: tuple[int, ...] = ()
    """Instants (us), ascending, at which grants that expire begin and end: they pay for what is used in between."""
    is_scoped: bool = False
    """Whether it ever had a restricted grant: then charges and what is set aside are told apart by class of work."""
    forgotten_us: int = 0
    """Before this a run without a record is not charged: it may have been, and been forgotten."""

    def row_number(self, row: Row) -> int:
        """The number of a row, the next free one for a new row."""
        number = self.row_numbers.get(row)
        if number is None:
            number = self.row_numbers[row] = len(self.rows)
            self.rows.append(row)
        return number


def decode_amounts(fields: dict[bytes, bytes]) -> dict[int, Amounts]:
    """Rows' sums from a hash of `row`, `rowt`, `rowr`, `rowu` fields (see keys.OrgKeys.spent)."""
    names = {b"t": "us", b"r": "refunded_micro", b"u": "refunded_us"}
    sums: dict[int, Amounts] = {}
    for key, value in fields.items():
        name = names.get(key[-1:])
        row = int(key[:-1] if name else key)
        amounts = sums.get(row)
        if amounts is None:
            amounts = sums[row] = Amounts()
        setattr(amounts, name or "micro", int(value))
    return sums


def decode_rows(fields: dict[bytes, bytes]) -> list[Row]:
    """Rows in the order of their numbers.

    Raises: ValueError when a number is missing.
    """
    texts = sorted((int(number), text) for number, text in fields.items())
    rows = [Row(*msgspec.json.decode(text, type=list[str])) for _, text in texts]
    if [number for number, _ in texts] != list(range(len(rows))):
        raise ValueError("row numbers are not 0, 1, 2, ...")
    return rows
