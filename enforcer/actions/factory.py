"""The actions on the workloads of each configured source."""

from __future__ import annotations

from collections.abc import Iterable

from config.sources import ApoloSource, KubernetesSource, SlurmSource, SourceSettings
from enforcer.actions.apolo import ApoloActions
from enforcer.actions.base import Actions
from enforcer.actions.kubernetes import KubernetesActions
from enforcer.actions.slurm import SlurmActions


def actions_of(sources: Iterable[SourceSettings]) -> dict[str, Actions]:
    """By name of the source; sources whose scheduler we cannot act on are left out."""
    made: dict[str, Actions] = {}
    for source in sources:
        match source:
            case SlurmSource():
                made[source.name] = SlurmActions(source)
            case ApoloSource():
                made[source.name] = ApoloActions(source)
            case KubernetesSource():
                made[source.name] = KubernetesActions(source)
    return made
