"""Which preset a workload is charged by: as `config.preset_sizes`, and what cannot be charged."""

from __future__ import annotations

from typing import Final

from config.preset_sizes import FittingPresets, Size
from exporter.sources import names
from exporter.sources.names import Unbillable, is_name

OVERSIZED: Final = "oversized"
"""Counted, though charged: takes more than the preset it names, so it is charged by one that fits."""


class PresetSizes(FittingPresets):
    """The sizes of a cluster's presets, cheapest first. Where none are given, labels are trusted."""

    def choose(self, labelled: str | None, takes: Size | None) -> tuple[str, bool]:
        """(preset, oversized), as `find`. Raises: Unbillable with NO_PRESET, or BAD_NAME."""
        if labelled and not is_name(labelled):
            raise Unbillable(names.BAD_NAME)
        found = self.find(labelled, takes)
        if found is None:
            raise Unbillable(names.NO_PRESET)
        return found
