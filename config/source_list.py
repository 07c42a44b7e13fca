"""The list of sources in the settings: which kinds there are, and which of them cannot stand side by side."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Final

from config.fields import At, Reader, Unusable, choice, list_of, read_section
from config.problems import nearest, shown
from config.sources import ApoloSource, JsonSource, KubernetesSource, SimulatedSource, SlurmSource, SourceSettings
from config.yaml_nodes import Sequence

SOURCE_TYPES: Final[dict[str, type[SourceSettings]]] = {
    "simulated": SimulatedSource,
    "json": JsonSource,
    "slurm": SlurmSource,
    "apolo": ApoloSource,
    "kubernetes": KubernetesSource,
}


def source_type(settings: SourceSettings) -> str:
    """The `type` of a source's settings."""
    return next(word for word, cls in SOURCE_TYPES.items() if isinstance(settings, cls))


def same_work(one: SourceSettings, other: SourceSettings) -> str | None:
    """What both would charge, in words with the remedy; None where they can stand side by side.

    An apolo source beside a kubernetes source is fine: the latter leaves the platform's jobs to the former.
    """
    match one, other:
        case SlurmSource(), SlurmSource():
            if (one.slurm_conf, one.run_with) == (other.slurm_conf, other.run_with):
                return "ask the same Slurm; keep one of them, or give each its slurm_conf: or run_with:"
        case SimulatedSource(), SimulatedSource():
            if (one.cluster, one.seed, one.orgs) == (other.cluster, other.seed, other.orgs):
                return "make up the same work; give one of them another seed:"
        case ApoloSource(), ApoloSource():
            place, its = _place(one), _place(other)
            if place == its and (not one.orgs or not other.orgs or set(one.orgs) & set(other.orgs)):
                return f"meter the same orgs of the platform's cluster {place[1]!r}; keep one, or give each its orgs:"
        case KubernetesSource(), KubernetesSource() if one.url == other.url:
            if one.selector == other.selector or not one.selector or not other.selector:
                return "watch the same pods; keep one of them, or give each its selector:"
            if one.volumes and other.volumes:
                return "watch the same volumes, which no selector tells apart; set volumes: false in one of them"
            if one.storage is not None and one.storage == other.storage:
                return "read the same storage; leave it out of one of them"
    return None


def two_origins(one: SourceSettings, other: SourceSettings) -> bool:
    """Whether two clusters of the platform would take turns in what the rates of one cluster are."""
    match one, other:
        case ApoloSource(), ApoloSource():
            is_both = one.use_platform_rates and other.use_platform_rates
            return is_both and one.cluster == other.cluster and _place(one) != _place(other)
    return False


def _place(source: ApoloSource) -> tuple[str, str]:
    return source.url.rstrip("/"), source.platform_cluster or source.cluster


def _read_source(at: At) -> SourceSettings:
    entries = at.entries("a source: {type: ..., cluster: ...}")
    kinds = list(SOURCE_TYPES)
    if "type" not in entries:
        misspelt = next((word for word in entries if nearest(word, ["type"])), None)
        hint = f" (is {shown(misspelt)} meant to be it?)" if misspelt else ""
        at.refuse(f"lacks the key type{hint}: one of {', '.join(kinds)}")
        raise Unusable
    kind = choice(*kinds)(entries["type"])
    settings = read_section(at, SOURCE_TYPES[kind], ignore=("type",))
    return settings if settings.name else replace(settings, name=f"{kind}-{settings.cluster}")


def _read_sources(at: At) -> tuple[SourceSettings, ...]:
    found = list_of(Reader("source", _read_source)).read(at)
    nodes = at.node.items if isinstance(at.node, Sequence) else []
    lines: dict[str, int] = {}
    doubled = False
    for source, node in zip(found, nodes, strict=True):
        if source.name in lines:
            at.refuse(
                f"two sources are called {source.name!r}, in line {lines[source.name]} and here; "
                "give one of them another name: or cluster:",
                node.line,
            )
            doubled = True
        lines.setdefault(source.name, node.line)
    for (first, early), (second, late) in itertools.combinations(zip(found, nodes, strict=True), 2):
        told = same_work(first, second)
        if told is not None and first.name != second.name:
            at.refuse(
                f"{first.name!r} in line {early.line} and {second.name!r} here would charge the same work twice: "
                f"both {told}",
                late.line,
            )
            doubled = True
        elif two_origins(first, second):
            at.refuse(
                f"{first.name!r} in line {early.line} and {second.name!r} here would both give the rates of cluster "
                f"{first.cluster!r}; give one of them another cluster:, or use_platform_rates: false",
                late.line,
            )
            doubled = True
    if doubled:
        raise Unusable
    return found


sources: Final = Reader("list of sources", _read_sources)
