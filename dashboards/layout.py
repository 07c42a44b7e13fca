"""Places panels on Grafana's 24-column grid, left to right and row below row, so that none overlap."""

from __future__ import annotations

from typing import Any

COLUMNS = 24

PanelJson = dict[str, Any]


class Grid:
    """Collects panels in reading order."""

    def __init__(self) -> None:
        self.panels: list[PanelJson] = []
        self._y = 0

    def line(self, height: int, *panels: PanelJson | tuple[PanelJson, int]) -> Grid:
        """One line of panels of equal height; widths share the grid equally where none are given.

        Raises: ValueError if the widths do not add up to the grid's.
        """
        sized = [p if isinstance(p, tuple) else (p, COLUMNS // len(panels)) for p in panels]
        if sum(width for _, width in sized) != COLUMNS:
            raise ValueError(f"widths {[width for _, width in sized]} do not add up to {COLUMNS}")
        x = 0
        for panel, width in sized:
            self._place(panel, x, width, height)
            x += width
        self._y += height
        return self

    def _place(self, panel: PanelJson, x: int, width: int, height: int) -> None:
        number = len(self.panels) + 1
        where = {"x": x, "y": self._y, "w": width, "h": height}
        self.panels.append({**panel, "id": number, "gridPos": where})
