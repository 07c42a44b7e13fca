"""Settings of sources -> sources. What a source needs is imported only where one is configured."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from config import sources as settings
from exporter.sources.base import Source
from ledger.clock import Clock, now_us

PricedApps = Callable[[str], Container[str]]
"""cluster -> the apps that have a rate of their own."""


def make_sources(
    configured: Iterable[settings.SourceSettings], priced_apps: PricedApps, clock: Clock = now_us
) -> list[Source]:
    """The configured sources, in their order; nothing is asked of a scheduler yet."""
    beside = list(configured)
    return [make_source(one, priced_apps, clock, beside) for one in beside]


def make_source(
    one: settings.SourceSettings,
    priced_apps: PricedApps,
    clock: Clock = now_us,
    beside: Iterable[settings.SourceSettings] = (),
) -> Source:
    """One source; `beside` are all that are configured, since two may see the same work of one cluster."""
    match one:
        case settings.JsonSource():
            from exporter.sources.json_source import JsonSource

            return JsonSource(
                name=one.name,
                cluster=one.cluster,
                path=one.path,
                url=one.url,
                command=one.command,
                token=None if one.token is None else one.token.read,
                timeout_seconds=one.timeout_seconds,
            )
        case settings.SimulatedSource():
            from exporter.sources.simulated import SimulatedSource

            return SimulatedSource(
                name=one.name,
                cluster=one.cluster,
                seed=one.seed,
                orgs=one.orgs,
                jobs_per_hour=one.jobs_per_hour,
                clock=clock,
            )
        case settings.SlurmSource():
            from exporter.sources.slurm import SlurmSource

            return SlurmSource(one, clock)
        case settings.ApoloSource():
            from exporter.sources.apolo import ApoloSource

            return ApoloSource(one, clock)
        case settings.KubernetesSource():
            from exporter.sources.kubernetes import KubernetesSource

            platforms = [s for s in beside if isinstance(s, settings.ApoloSource) and s.cluster == one.cluster]
            # Where there are several, one that meters disks: then all disks are theirs.
            platform = max(platforms, key=lambda s: s.disks, default=None)
            cluster = one.cluster
            return KubernetesSource(one, clock, beside=platform, priced_apps=lambda: priced_apps(cluster))
