"""Which preset a workload is charged by, when what it takes is known and so is what presets allow.

Admission asks for the preset that the source will charge.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from config.quantity import parse_quantity
from config.sources import PresetSize

_GPUS: Final = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu")
_GPU_PREFIXES: Final = ("nvidia.com/mig-", "gpu.intel.com/", "google.com/tpu")


@dataclass(frozen=True, slots=True)
class Size:
    """CPU in millicores, memory in bytes, accelerators of any make (a MIG slice counts as one)."""

    cpu_milli: int = 0
    memory: int = 0
    gpus: int = 0

    def fits(self, room: Size) -> bool:
        """Whether this much can run in `room`; what has no GPU does not fit where GPUs are paid for."""
        return (
            self.cpu_milli <= room.cpu_milli
            and self.memory <= room.memory
            and self.gpus <= room.gpus
            and (self.gpus > 0 or room.gpus == 0)
        )

    def within(self, room: Size) -> bool:
        """Whether this takes no more than `room` in any respect."""
        return self.cpu_milli <= room.cpu_milli and self.memory <= room.memory and self.gpus <= room.gpus

    def __add__(self, other: Size) -> Size:
        return Size(self.cpu_milli + other.cpu_milli, self.memory + other.memory, self.gpus + other.gpus)

    def __or__(self, other: Size) -> Size:
        """The larger of both in each respect."""
        return Size(max(self.cpu_milli, other.cpu_milli), max(self.memory, other.memory), max(self.gpus, other.gpus))


def size_of(resources: Mapping[str, str]) -> Size:
    """What a container's limits (or requests) come to. Raises: ValueError for an impossible quantity."""
    gpus = 0
    for resource, quantity in resources.items():
        if resource in _GPUS or resource.startswith(_GPU_PREFIXES):
            gpus += parse_quantity(quantity)
    return Size(
        parse_quantity(resources.get("cpu", "0")),
        -(-parse_quantity(resources.get("memory", "0")) // 1000),
        -(-gpus // 1000),
    )


class Requirements(msgspec.Struct, gc=False):
    """What a container may take, and what is set aside for it."""

    limits: dict[str, str] | None = None
    requests: dict[str, str] | None = None


class Container(msgspec.Struct, gc=False, rename="camel"):
    """The part of a container that its size depends on."""

    resources: Requirements | None = None
    restart_policy: str | None = None

    def size(self) -> Size:
        """Limits, and requests of what has no limit. Raises: ValueError."""
        if self.resources is None:
            return Size()
        return size_of({**(self.resources.requests or {}), **(self.resources.limits or {})})


def pod_size(containers: Iterable[Container], init_containers: Iterable[Container]) -> Size:
    """What the scheduler sets aside: all main containers and sidecars at once, or the largest init container.

    Raises: ValueError for an impossible quantity.
    """
    running = Size()
    starting = Size()
    for container in init_containers:
        if container.restart_policy == "Always":
            running += container.size()
        else:
            starting |= running + container.size()
    for container in containers:
        running += container.size()
    return running | starting


def rooms(presets: Iterable[PresetSize]) -> list[tuple[str, Size]]:
    """What presets allow, as the settings say it."""
    return [
        (one.preset, Size(round(one.cpu * 1000), round(one.memory_gb * 1_000_000_000), one.gpus)) for one in presets
    ]


class FittingPresets:
    """The sizes of a cluster's presets, cheapest first. Where none are given, labels are trusted."""

    def __init__(self, sizes: Iterable[tuple[str, Size]] = ()) -> None:
        self._sizes = dict(sizes)
        self._order = list(self._sizes)

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def find(self, labelled: str | None, takes: Size | None) -> tuple[str, bool] | None:
        """(preset, oversized): the labelled preset if what the workload takes is within it, else the next dearer
        that fits, else the last one: nobody pays less by asking for more than any preset has.

        A labelled preset of no known size is trusted, as is a label where `takes` is not known. None: no preset.
        """
        if labelled:
            room = self._sizes.get(labelled)
            if room is None or takes is None or takes.within(room):
                return labelled, False
        if takes is None or not self._order:
            return None
        # From the labelled preset on only: who takes too much of a dear preset must not land on a cheap one.
        dearer = self._order[self._order.index(labelled) :] if labelled in self._sizes else self._order
        for fits in (takes.fits, takes.within):
            for preset in dearer:
                if fits(self._sizes[preset]):
                    return preset, bool(labelled)
        return self._order[-1], True
