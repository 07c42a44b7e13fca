"""The config of an Apolo cluster: what its presets cost and allow, what its volumes cost. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import TypeVar

import msgspec

from config.preset_sizes import Size
from exporter.sources.apolo_records import BROKEN, Count, Migs
from exporter.sources.base import SourceError
from exporter.sources.preset_sizes import PresetSizes
from ledger.model import RateTable
from ledger.money import AmountError, parse_rate

_Priced = TypeVar("_Priced")


class _Named(msgspec.Struct):
    name: str


class _Size(_Named):
    cpu: float = 0
    memory: Count | None = None
    memory_mb: Count | None = None
    nvidia_gpu: Migs | None = None
    amd_gpu: Migs | None = None
    intel_gpu: Migs | None = None
    nvidia_migs: dict[str, Migs] | None = None

    def size(self) -> Size:
        memory = self.memory if self.memory is not None else (self.memory_mb or 0) << 20
        gpus = [self.nvidia_gpu, self.amd_gpu, self.intel_gpu, *(self.nvidia_migs or {}).values()]
        return Size(round(self.cpu * 1000), memory, sum(g.count for g in gpus if g is not None))


class _PresetPrice(_Named):
    credits_per_hour: Decimal | None = None


class _VolumePrice(_Named):
    credits_per_hour_per_gb: Decimal | None = None


class _Orchestrator(msgspec.Struct):
    """Where the config service puts the presets, which the jobs API serves at the top."""

    resource_presets: list[msgspec.Raw] = []


class _Storage(msgspec.Struct):
    volumes: list[msgspec.Raw] = []


class ClusterConfig(_Named):
    """The part of a cluster's config that charges depend on; presets and volumes are still unread."""

    resource_presets: list[msgspec.Raw] = []
    storage_volumes: list[msgspec.Raw] = []
    disks_url: str | None = None
    orchestrator: _Orchestrator | None = None
    storage: _Storage | None = None

    @property
    def presets(self) -> list[msgspec.Raw]:
        return self.orchestrator.resource_presets if self.orchestrator else self.resource_presets

    @property
    def volumes(self) -> list[msgspec.Raw]:
        return self.storage.volumes if self.storage else self.storage_volumes


class _Config(msgspec.Struct):
    clusters: list[msgspec.Raw] = []
    admin_url: str | None = None


_config = msgspec.json.Decoder(_Config)
_cluster = msgspec.json.Decoder(ClusterConfig)
_named = msgspec.json.Decoder(_Named)
_size = msgspec.json.Decoder(_Size)
_preset_price = msgspec.json.Decoder(_PresetPrice)
_volume_price = msgspec.json.Decoder(_VolumePrice)


def read_config(data: bytes, cluster: str) -> tuple[ClusterConfig, str | None]:
    """(a cluster's part of GET /config, the admin API's URL). Raises: SourceError."""
    try:
        config = _config.decode(data)
        seen = {_named.decode(raw).name: raw for raw in config.clusters}
        if cluster in seen:
            return _cluster.decode(seen[cluster]), config.admin_url
    except BROKEN as error:
        raise SourceError(f"the platform's config cannot be read: {error}") from error
    raise SourceError(
        f"the platform's config has no cluster {cluster!r} (the token sees: {', '.join(sorted(seen)) or 'none'}); "
        "set platform_cluster, or make the token's user a member of the cluster"
    )


def rates_of(config: ClusterConfig) -> RateTable:
    """Presets' and volumes' prices as a rate table. What has no price is left out, so it is unpriced, not free.

    Raises: SourceError naming the first price that is not an exact rate.
    """
    presets = [_readable(_preset_price, raw, "preset") for raw in config.presets]
    volumes = [_readable(_volume_price, raw, "volume") for raw in config.volumes]
    return RateTable(
        presets=_rates("preset", ((p.name, p.credits_per_hour) for p in presets)),
        storage=_rates("volume", ((v.name, v.credits_per_hour_per_gb) for v in volumes)),
    )


def _readable(decoder: msgspec.json.Decoder[_Priced], raw: msgspec.Raw, what: str) -> _Priced:
    try:
        return decoder.decode(raw)
    except BROKEN as error:
        raise SourceError(f"a {what} in the platform's config cannot be read: {error}: {bytes(raw)[:200]!r}") from error


def _rates(what: str, prices: Iterable[tuple[str, Decimal | None]]) -> dict[str, int]:
    try:
        return {name: parse_rate(price, f"the price of {what} {name!r}") for name, price in prices if price is not None}
    except AmountError as error:
        raise SourceError(str(error)) from error


def sizes_of(config: ClusterConfig) -> PresetSizes:
    """What the presets allow, cheapest first; those without a price come last, odd ones are left out."""
    known: list[tuple[bool, Decimal, str, Size]] = []
    for raw in config.presets:
        try:
            preset, price = _size.decode(raw), _preset_price.decode(raw).credits_per_hour
        except BROKEN:
            continue  # jobs are charged all the same, by the preset they name
        priced = price is not None and price.is_finite()
        known.append((not priced, price if price is not None and priced else Decimal(0), preset.name, preset.size()))
    known.sort(key=lambda entry: entry[:2])
    return PresetSizes((name, size) for *_, name, size in known)
