"""Which source is asked whether admitted work waits: one that lists it for sure, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from config.sources import ApoloSource, KubernetesSource, SlurmSource
from config.values import Secret
from enforcer.admission.listing import PodListing, only_one
from enforcer.admission.review import Work
from ledger.admission import AdmissionRequest

PODS = KubernetesSource(name="pods", cluster="c")
JOBS = ApoloSource(name="jobs", cluster="c", url="http://127.0.0.1:9", token=Secret("t"))
SLURM = SlurmSource(name="slurm", cluster="c")


def work(pod: str = "", **more: Any) -> Work:
    """A pod; `pod`: its own id, where it is one of the platform's job."""
    asked = {"cluster": "c", "org": "acme", "workload_id": "1", **more}
    return Work(AdmissionRequest(**asked), pod=pod)


@pytest.mark.parametrize(
    ("sources", "asked", "name"),
    [
        ([PODS, JOBS, SLURM], work(), "pods"),
        ([PODS, JOBS, SLURM], work("uid"), "jobs"),
        ([PODS], work(cluster="another"), ""),
        ([PODS], work(workload_id=None), ""),  # nothing to know it by
        ([PODS, replace(PODS, name="more")], work(), ""),  # which one?
        ([PODS, replace(PODS, name="more", cluster="d")], work(), "pods"),
        ([replace(PODS, selector="team=a")], work(), ""),  # may not be among them
        ([JOBS], work(), ""),
        ([replace(JOBS, orgs=("acme",))], work("uid"), "jobs"),
        ([replace(JOBS, orgs=("globex",))], work("uid"), ""),
        ([JOBS, replace(JOBS, name="more")], work("uid"), ""),
        ([], work("uid"), ""),
    ],
)
def test_a_pod_is_listed_by(sources: list[Any], asked: Work, name: str) -> None:
    assert PodListing(sources).source_of(asked) == name


def test_of_two_of_a_kind_in_one_cluster_none_is_asked() -> None:
    other = replace(SLURM, name="other", cluster="d")
    assert only_one(SlurmSource, [PODS, SLURM, other]) == {"c": SLURM, "d": other}
    assert only_one(SlurmSource, [SLURM, replace(other, cluster="c")]) == {}
