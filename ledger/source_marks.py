"""What the ledger knows of the sources: up to when each was charged, and what of it could not be charged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ledger import keys
from ledger.connect import Client, again
from ledger.lua import text


@dataclass(frozen=True, slots=True)
class SourceMark:
    """`taken_us`: instant of its last snapshot that was charged, None before the first. `unbillable`: reason -> how
    many records could not be charged since the ledger began."""

    name: str
    taken_us: int | None
    unbillable: Mapping[str, int]


async def source_marks(client: Client) -> list[SourceMark]:
    """All sources that were ever charged or counted, by name. Raises: LedgerUnavailable."""
    asked: Any = client
    taken = await again(lambda: asked.hgetall(keys.SOURCES))
    counted = await again(lambda: asked.hgetall(keys.UNBILLABLE))
    marks = {text(name): int(us) for name, us in taken.items()}
    unbillable: dict[str, dict[str, int]] = {}
    for field, count in counted.items():
        name, _, reason = text(field).partition(keys.US)
        if reason:
            unbillable.setdefault(name, {})[reason] = int(count)
    return [SourceMark(name, marks.get(name), unbillable.get(name, {})) for name in sorted({*marks, *unbillable})]
