"""Which source lists the work that is admitted, from when it waits on: by that its hold is known to be needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from config.sources import ApoloSource, KubernetesSource, SlurmSource, SourceSettings
from enforcer.admission.review import Work

_Sources = Sequence[SourceSettings]
_Kind = TypeVar("_Kind", SlurmSource, ApoloSource, KubernetesSource)


def only_one(kind: type[_Kind], sources: _Sources) -> dict[str, _Kind]:
    """By cluster. Of two of a kind nobody knows here which one will list a job."""
    several = Counter(one.cluster for one in sources if isinstance(one, kind))
    return {one.cluster: one for one in sources if isinstance(one, kind) and several[one.cluster] == 1}


class PodListing:
    """Names the source that lists a pod: the platform's, where it is one of its jobs."""

    def __init__(self, sources: _Sources) -> None:
        self._pods = only_one(KubernetesSource, sources)
        self._jobs = only_one(ApoloSource, sources)

    def source_of(self, work: Work) -> str:
        """`work`: a pod; "" where it may be listed by none."""
        asked = work.request
        if not asked.workload_id:
            return ""
        if work.pod:
            platform = self._jobs.get(asked.cluster)
            return platform.name if platform and (not platform.orgs or asked.org in platform.orgs) else ""
        source = self._pods.get(asked.cluster)
        return source.name if source and not source.selector else ""
