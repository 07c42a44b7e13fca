"""Pods, app instances and volume claims: what is billed of them, and as whose."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from config.preset_sizes import Size
from config.sources import Labels
from exporter.sources.kubernetes_namespaces import Namespaces
from exporter.sources.kubernetes_pods import Pods
from exporter.sources.kubernetes_records import PodReader
from exporter.sources.kubernetes_state import Claims
from exporter.sources.preset_sizes import PresetSizes
from ledger.model import Observation
from tests.standins.kube_api import apolo_labels, container_status, pod_body, running, terminated, text

T0 = 1_764_000_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
SIZED = PresetSizes(
    [("cpu-small", Size(1000, 10**9)), ("cpu-large", Size(8000, 10**10)), ("gpu", Size(8000, 10**10, 1))]
)
APP = {"app.kubernetes.io/instance": "llm", "app.kubernetes.io/name": "vllm"}


class Cluster:
    """Feeds objects into the state, as lists and watches do."""

    def __init__(self, sizes: PresetSizes = PresetSizes(), **reader: bool) -> None:  # noqa: B008 - it is frozen
        read = PodReader(Labels(), sizes, **reader)
        self.namespaces = Namespaces(Labels(), lambda name: self.pods.replace_in(name))
        self.pods = Pods(read, self.namespaces, ("kube-system",))
        self.claims = Claims(read, self.namespaces, ())
        self.now = T0

    def namespace(self, name: str, org: str | None = None, project: str | None = None) -> None:
        labels = {"platform.apolo.us/org": org, "platform.apolo.us/project": project}
        meta = {"name": name, "labels": {key: value for key, value in labels.items() if value}}
        self.namespaces.add(json.dumps({"metadata": meta}).encode(), self.now)

    def see(self, pod: dict[str, Any]) -> None:
        self.pods.add(json.dumps(pod).encode(), self.now)

    def delete(self, pod: dict[str, Any]) -> None:
        self.pods.remove(json.dumps(pod).encode(), self.now)

    def list(self, *pods: dict[str, Any], last_us: int | None = None) -> None:
        self.pods.begin()
        for pod in pods:
            self.see(pod)
        self.pods.finish(last_us, self.now)

    @property
    def told(self) -> dict[str, Observation]:
        """What a snapshot holds of pods."""
        return self.pods.live | {uid: ended for uid, (ended, _) in self.pods.ended.items()}

    def only(self) -> Observation:
        (observation,) = self.told.values()
        return observation


def pod(number: int = 1, *statuses: dict[str, Any], phase: str = "Running", **more: Any) -> dict[str, Any]:
    """A pod that was created a minute before T0."""
    labels = more.pop("labels", apolo_labels())
    meta = {key: more.pop(key) for key in ("deletionTimestamp", "annotations") if key in more}
    conditions = more.pop("conditions", [])
    name, namespace = more.pop("name", f"pod-{number}"), more.pop("namespace", "platform--acme--ml")
    body = pod_body(name, namespace, T0 - MINUTE, labels, **more)
    body["metadata"] |= {"uid": str(UUID(int=number)), "resourceVersion": "1"} | meta
    body["status"] = {"phase": phase, "containerStatuses": list(statuses), "conditions": conditions}
    return body


def live(number: int = 1, since_us: int = T0, **more: Any) -> dict[str, Any]:
    return pod(number, container_status(running(since_us)), **more)


def first_billed(observation: Observation) -> int | None:
    return observation.suspended[0][1] if observation.suspended else observation.started_us


def test_pulling_images_and_init_containers_are_free():
    cluster = Cluster()
    cluster.see(live(since_us=T0))
    seen = cluster.only()
    assert (seen.started_us, seen.suspended, seen.ended_us) == (T0 - MINUTE, ((T0 - MINUTE, T0),), None)


def test_a_pod_that_waits_has_not_started():
    cluster = Cluster()
    cluster.see(pod(phase="Pending", annotations={"credits.apolo.us/hold": "h-1"}))
    assert cluster.only().started_us is None
    assert cluster.pods.waiting_holds() == {"h-1"}
    cluster.see(live(annotations={"credits.apolo.us/hold": "h-1"}))
    assert cluster.only().hold_id == "h-1"
    assert cluster.pods.waiting_holds() == frozenset()


def test_a_pod_that_waits_without_naming_its_hold_is_told_by_its_uid_and_whose_it_truly_is():
    cluster = Cluster()
    cluster.see(pod(phase="Pending"))
    seen = cluster.only()
    assert cluster.pods.waiting() == {(seen.org, seen.id)}
    cluster.see(live())
    assert cluster.pods.waiting() == frozenset()
    cluster.see(pod(phase="Pending"))
    cluster.delete(pod(phase="Pending"))
    assert cluster.pods.waiting() == frozenset()


def test_labels_say_whose_a_pod_is():
    cluster = Cluster()
    cluster.see(live(labels=apolo_labels("acme", "ml", "alice--service-accounts--ci", "gpu")))
    seen = cluster.only()
    assert (seen.org, seen.project, seen.user, seen.resource) == ("acme", "ml", "alice/service-accounts/ci", "gpu")


def test_older_labels_are_understood():
    cluster = Cluster()
    old = {key.replace("apolo.us", "neuromation.io"): value for key, value in apolo_labels().items()}
    cluster.see(live(labels=old))
    assert cluster.only().org == "acme"


def test_the_first_start_is_that_of_the_earliest_main_container():
    cluster = Cluster()
    cluster.see(pod(1, container_status(running(T0 + 9 * SECOND)), container_status(running(T0 + 3 * SECOND))))
    assert first_billed(cluster.only()) == T0 + 3 * SECOND


def test_a_restart_within_a_pod_is_billed_through():
    cluster = Cluster()
    cluster.see(pod(1, container_status(running(T0 + MINUTE), terminated(T0, T0 + SECOND), 1)))
    assert first_billed(cluster.only()) == T0


def test_the_first_start_is_remembered_when_the_api_forgets_it():
    cluster = Cluster()
    cluster.see(live(since_us=T0))
    cluster.see(pod(1, container_status(running(T0 + 9 * MINUTE), terminated(T0 + 5 * MINUTE, T0 + 6 * MINUTE), 5)))
    assert first_billed(cluster.only()) == T0


def test_w21_after_a_restart_of_the_exporter_a_restarted_pod_is_billed_from_the_end_of_its_init_containers():
    ready = {"type": "Initialized", "status": "True", "lastTransitionTime": text(T0 - 2 * SECOND)}
    status = container_status(running(T0 + 9 * MINUTE), terminated(T0 + 5 * MINUTE, T0 + 6 * MINUTE), 5)
    cluster = Cluster()
    cluster.see(pod(1, status, conditions=[ready]))
    assert first_billed(cluster.only()) == T0 - 2 * SECOND
    assert cluster.only().started_us == T0 - MINUTE


def test_w03_a_finished_pod_is_billed_to_the_last_end_of_a_container():
    cluster = Cluster()
    ends = [container_status(terminated(T0, T0 + at * SECOND)) for at in (10, 30)]
    cluster.see(pod(1, *ends, phase="Succeeded"))
    assert cluster.only().ended_us == T0 + 30 * SECOND


def test_a_container_between_two_restarts_does_not_end_the_pod():
    cluster = Cluster()
    cluster.see(pod(1, container_status(terminated(T0, T0 + SECOND, 1))))
    assert cluster.only().ended_us is None


def test_w03_a_pod_that_is_deleted_is_billed_until_its_containers_ended():
    cluster = Cluster()
    cluster.see(live())
    cluster.now += MINUTE
    cluster.delete(pod(1, container_status(terminated(T0, T0 + 50 * SECOND, 143))))
    assert cluster.only().ended_us == T0 + 50 * SECOND


def test_a_pod_that_is_deleted_without_a_word_is_billed_until_then():
    cluster = Cluster()
    cluster.see(live())
    cluster.now += MINUTE
    cluster.delete(live())
    assert cluster.only().ended_us == T0 + MINUTE


def test_a_deletion_that_is_heard_of_late_counts_from_the_end_of_the_grace_period():
    cluster = Cluster()
    cluster.see(live())
    cluster.now += 60 * MINUTE
    cluster.delete(live(deletionTimestamp=text(T0 + 30 * SECOND)))
    assert cluster.only().ended_us == T0 + 30 * SECOND


def test_w13_a_pod_on_a_dead_node_is_billed_until_its_grace_period_is_over():
    cluster = Cluster()
    cluster.see(live(deletionTimestamp=text(T0 + 30 * SECOND)))
    cluster.pods.settle(T0 + 29 * SECOND, T0 + 29 * SECOND)
    assert cluster.only().ended_us is None
    cluster.now = T0 + 31 * SECOND
    cluster.pods.settle(cluster.now, cluster.now)
    assert cluster.only().ended_us == T0 + 30 * SECOND
    cluster.now += 60 * MINUTE
    cluster.see(live(deletionTimestamp=text(T0 + 30 * SECOND)))
    cluster.delete(live(deletionTimestamp=text(T0 + 30 * SECOND)))
    assert cluster.only().ended_us == T0 + 30 * SECOND


def test_w12_an_evicted_pod_without_container_statuses_is_billed_until_its_eviction():
    cluster = Cluster()
    cluster.see(live())
    cluster.now += MINUTE
    stop = {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": text(T0 + 40 * SECOND)}
    cluster.see(pod(1, phase="Failed", conditions=[stop]))
    assert (first_billed(cluster.only()), cluster.only().ended_us) == (T0, T0 + 40 * SECOND)


def test_w12_an_evicted_pod_that_says_nothing_at_all_is_billed_until_that_is_seen():
    cluster = Cluster()
    cluster.see(live())
    cluster.now += MINUTE
    cluster.see(pod(1, phase="Failed"))
    assert cluster.only().ended_us == T0 + MINUTE


def test_a_pod_that_failed_before_it_started_costs_nothing():
    cluster = Cluster()
    cluster.see(pod(1, phase="Failed"))
    assert cluster.only().started_us is None
    assert cluster.only().ended_us == T0  # so that what was set aside for it is free again
    cluster.delete(pod(1, phase="Failed"))
    assert (cluster.only().started_us, cluster.only().ended_us) == (None, T0)


def test_a_pod_that_is_deleted_while_it_waits_is_over_without_a_start():
    cluster = Cluster()
    cluster.see(pod(1, phase="Pending"))
    assert cluster.pods.waiting()
    cluster.now += MINUTE
    cluster.delete(pod(1, phase="Pending"))
    assert (cluster.only().started_us, cluster.only().ended_us) == (None, T0 + MINUTE)
    assert not cluster.pods.waiting()


def test_w02_a_pod_that_is_made_anew_under_its_name_is_another_run():
    cluster = Cluster()
    cluster.see(live(1, name="job-1"))
    cluster.now += MINUTE
    cluster.delete(live(1, name="job-1"))
    cluster.see(live(2, T0 + 2 * MINUTE, name="job-1"))
    assert [o.ended_us for o in cluster.told.values()] == [None, T0 + MINUTE]


def test_w05_pods_of_the_same_name_in_two_namespaces_are_two():
    cluster = Cluster()
    cluster.see(live(1, name="pg-0", namespace="a", labels=apolo_labels(project="a")))
    cluster.see(live(2, name="pg-0", namespace="b", labels=apolo_labels(project="b")))
    assert {o.project for o in cluster.told.values()} == {"a", "b"}


def test_w18_a_pod_that_is_neither_job_nor_app_is_charged():
    cluster = Cluster()
    cluster.see(live())
    assert cluster.only().kind == "job"


def test_pods_without_an_org_are_the_platforms_own():
    cluster = Cluster()
    cluster.see(live(labels={"app.kubernetes.io/instance": "ingress"}))
    cluster.see(live(2, namespace="kube-system"))
    assert not cluster.told
    assert not cluster.pods.unbillable()


def test_a_job_without_an_org_is_counted():
    cluster = Cluster()
    cluster.see(live(labels={"platform.apolo.us/job": "job-1", "platform.apolo.us/preset": "x"}))
    assert cluster.pods.unbillable() == {"no_org": 1}


def test_a_pod_of_an_org_without_a_preset_is_counted():
    cluster = Cluster()
    cluster.see(live(labels=apolo_labels(preset=None)))
    assert cluster.pods.unbillable() == {"no_preset": 1}
    assert not cluster.told


def test_w10_a_namespace_knows_better_than_a_pod_whose_it_is():
    cluster = Cluster()
    cluster.namespace("ns", "acme", "ml")
    cluster.see(live(namespace="ns", labels=apolo_labels("victim", "ml")))
    assert cluster.only().org == "acme"
    assert cluster.pods.unbillable() == {"org_mismatch": 1}


def test_names_that_the_namespace_has_normalised_are_taken_in_full_from_the_pod():
    cluster = Cluster()
    cluster.namespace("ns", "big-org", "my-project")
    cluster.see(live(namespace="ns", labels=apolo_labels("Big_Org", "My project")))
    assert (cluster.only().org, cluster.only().project) == ("Big_Org", "My project")
    assert not cluster.pods.unbillable()


def test_a_namespace_that_is_labelled_later_places_its_pods():
    cluster = Cluster()
    cluster.see(live(namespace="ns", labels={"platform.apolo.us/preset": "cpu-small"}))
    assert not cluster.told
    cluster.namespace("ns", "acme", "ml")
    assert cluster.only().org == "acme"


def test_w19_labels_that_are_taken_away_do_not_end_the_charges():
    cluster = Cluster()
    cluster.see(live())
    cluster.see(live(labels={}))
    assert cluster.only().org == "acme"


def test_w19_an_event_that_changes_nothing_leaves_the_same_object():
    cluster = Cluster()
    cluster.see(live())
    before = cluster.only()
    cluster.see(live(labels=apolo_labels(extra="label")))
    assert cluster.only() is before


def test_w08_requests_count_where_a_container_has_no_limits():
    cluster = Cluster(SIZED)
    body = live(labels=apolo_labels(preset=None))
    body["spec"]["containers"] = [
        {"name": "a", "resources": {"requests": {"cpu": "7"}}},
        {"name": "b"},
        {"name": "c", "resources": {"limits": {"memory": "1G"}}},
    ]
    cluster.see(body)
    assert cluster.only().resource == "cpu-large"


def test_w08_a_large_init_container_counts_and_sidecars_add_up():
    cluster = Cluster(SIZED)
    body = live(labels=apolo_labels(preset=None), limits={"cpu": "500m"})
    body["spec"]["initContainers"] = [{"name": "i", "resources": {"limits": {"cpu": "4"}}}]
    cluster.see(body)
    assert cluster.only().resource == "cpu-large"
    body = live(2, labels=apolo_labels(preset=None), limits={"cpu": "800m"})
    body["spec"]["initContainers"] = [
        {"name": "s", "restartPolicy": "Always", "resources": {"limits": {"cpu": "800m"}}}
    ]
    cluster.see(body)
    assert cluster.told[str(UUID(int=2))].resource == "cpu-large"


def test_w10_a_pod_beyond_its_labelled_preset_is_charged_by_the_one_that_fits_and_counted():
    cluster = Cluster(SIZED)
    cluster.see(live(limits={"cpu": "4"}))
    assert cluster.only().resource == "cpu-large"
    assert cluster.pods.unbillable() == {"oversized": 1}


def test_w07_a_mig_pod_is_not_charged_as_a_cpu_pod():
    cluster = Cluster(SIZED)
    cluster.see(live(labels=apolo_labels(preset=None), limits={"cpu": "1", "nvidia.com/mig-1g.5gb": "1"}))
    assert cluster.only().resource == "gpu"


def test_w06_nothing_is_written_on_a_pod_whose_preset_was_found():
    cluster = Cluster(SIZED)
    cluster.see(live(labels=apolo_labels(preset=None), limits={"cpu": "1", "nvidia.com/gpu": "1"}))
    cluster.see(live(labels=apolo_labels(preset="cpu-large"), limits={"cpu": "1"}))
    assert cluster.only().resource == "cpu-large"


@pytest.mark.parametrize("quantity", ["500k", "1E", "1Ei", "100n", "1e3"])
def test_w11_odd_quantities_are_understood(quantity: str):
    cluster = Cluster(SIZED)
    cluster.see(live(limits={"cpu": "1", "memory": quantity}))
    assert cluster.only()


@pytest.mark.parametrize(
    "spoil",
    [
        {"spec": 5},
        {"status": None},
        {"metadata": {"uid": "u-9", "name": "odd", "namespace": "x", "creationTimestamp": "never"}},
        {"metadata": {"uid": "u-9", "name": "odd", "namespace": "x", "creationTimestamp": "2025-01-01T00:00:00"}},
        {"metadata": 3},
    ],
)
def test_w11_one_malformed_pod_never_stops_the_rest(spoil: dict[str, Any]):
    cluster = Cluster()
    cluster.list(live(1), live(9) | spoil, live(2))
    assert len(cluster.told) == 2
    assert cluster.pods.unbillable() == {"malformed": 1}
    assert not cluster.pods.complete
    cluster.list(live(1), live(2))
    assert cluster.pods.complete


def test_a_pod_that_turns_malformed_stays_what_it_was():
    cluster = Cluster()
    cluster.see(live())
    cluster.see(live() | {"status": 5})
    assert cluster.only().ended_us is None
    assert cluster.pods.complete


def test_a_pod_that_a_new_list_leaves_out_ended_when_the_server_was_last_heard():
    cluster = Cluster()
    cluster.list(live(1), live(2))
    cluster.now += 10 * MINUTE
    cluster.list(live(2), last_us=T0 + 3 * MINUTE)
    assert {o.ended_us for o in cluster.told.values()} == {None, T0 + 3 * MINUTE}


def test_what_ended_is_listed_until_the_ledger_knows():
    cluster = Cluster()
    cluster.see(live())
    cluster.now += MINUTE
    cluster.delete(live())
    cluster.pods.forget_told(T0 + MINUTE)
    assert cluster.told
    cluster.pods.forget_told(T0 + 3 * MINUTE)
    assert not cluster.told
    assert not cluster.pods.tracked


JOB = {"name": "job-1", "labels": apolo_labels() | {"platform.apolo.us/job": "job-1"}}


def test_beside_an_apolo_source_pods_of_its_jobs_are_passed_over():
    cluster = Cluster(jobs=False)
    cluster.see(live(1, **JOB))
    cluster.see(live(2))
    (claimant,) = cluster.pods.claimants()
    assert claimant == (str(UUID(int=1)), "job-1", "platform--acme--ml", T0 - MINUTE)
    assert not cluster.pods.complete, "another process may have charged it"
    cluster.pods.decide(claimant.uid, True, cluster.now)
    cluster.see(live(1, since_us=T0 + MINUTE, **JOB))
    assert not cluster.pods.claimants()
    assert cluster.pods.complete
    cluster.delete(live(1, **JOB))
    assert set(cluster.told) == {str(UUID(int=2))}
    cluster.see(live(1, **JOB))
    assert cluster.pods.claimants(), "what is forgotten is asked again"


def test_a_pod_that_is_of_no_job_of_the_platform_is_charged_from_its_start_and_counted():
    cluster = Cluster(jobs=False)
    cluster.see(live(1, **JOB))
    cluster.now += MINUTE
    cluster.pods.decide(str(UUID(int=1)), False, cluster.now)
    assert first_billed(cluster.only()) == T0
    assert cluster.pods.unbillable() == {"false_job": 1}
    cluster.see(live(1, **JOB))
    assert not cluster.pods.claimants()
    cluster.now += MINUTE
    cluster.delete(live(1, **JOB))
    assert cluster.only().ended_us == cluster.now


@pytest.mark.parametrize("way", ["deleted", "left out", "over"])
def test_a_pod_that_is_gone_before_the_platform_answers_is_charged_all_the_same(way: str):
    cluster = Cluster(jobs=False)
    cluster.list(live(1, **JOB), live(2))
    cluster.now += MINUTE
    if way == "deleted":
        cluster.delete(live(1, **JOB))
    elif way == "left out":
        cluster.list(live(2), last_us=cluster.now)
    else:
        cluster.see(pod(1, container_status(terminated(T0, cluster.now)), phase="Succeeded", **JOB))
    end = cluster.now
    cluster.now += MINUTE
    cluster.pods.decide(str(UUID(int=1)), False, cluster.now)
    told = cluster.told[str(UUID(int=1))]
    assert (first_billed(told), told.ended_us) == (T0, end)
    cluster.pods.decide(str(UUID(int=1)), False, cluster.now)
    cluster.list(live(2))
    assert cluster.pods.complete


def test_a_pod_of_a_job_that_cannot_be_read_keeps_nothing_from_ending():
    cluster = Cluster(jobs=False)
    body = live(1, **JOB)
    body["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00"
    cluster.see(body)
    assert cluster.pods.complete
    assert not cluster.pods.unbillable()


def test_beside_an_apolo_source_a_pod_that_only_has_the_label_of_a_job_is_charged_and_counted():
    cluster = Cluster(jobs=False)
    cluster.see(live(1, name="mine", labels=apolo_labels() | {"platform.apolo.us/job": "job-1"}))
    assert cluster.only().id == str(UUID(int=1))
    assert cluster.pods.unbillable() == {"false_job": 1}


def test_the_deadline_of_a_pod_is_its_limit():
    cluster = Cluster()
    cluster.see(live(activeDeadlineSeconds=60))
    assert cluster.only().limit_us == MINUTE


# App instances


def app_runs(cluster: Cluster, since_us: int) -> list[tuple[int | None, int | None]]:
    return [(first_billed(run), run.ended_us) for run in cluster.pods.app_runs(since_us, None)]


def app_pod(number: int, since_us: int = T0, **more: Any) -> dict[str, Any]:
    return live(number, since_us, **({"labels": apolo_labels() | APP} | more))


def test_an_app_has_its_own_rate_once_and_its_pods_their_presets():
    cluster = Cluster()
    cluster.see(app_pod(1))
    cluster.see(app_pod(2))
    assert {(o.kind, o.resource, o.app, o.bills_app) for o in cluster.told.values()} == {
        ("app", "cpu-small", "vllm", False)
    }
    (run,) = cluster.pods.app_runs(T0, None)
    assert (run.id, run.kind, run.resource, run.app, run.bills_app) == (
        "platform--acme--ml/llm", "app", "vllm", "vllm", True,
    )  # fmt: skip
    assert (run.org, run.project, run.user) == ("acme", "ml", "alice")


def test_apps_without_a_rate_of_their_own_have_no_run_of_their_own():
    cluster = Cluster()
    cluster.see(app_pod(1))
    assert not cluster.pods.app_runs(T0, {"other"})
    assert cluster.pods.app_runs(T0, {"vllm"})


def test_w25_app_pods_without_a_preset_are_told_by_the_apps_name():
    cluster = Cluster()
    cluster.see(app_pod(1, labels=apolo_labels(preset=None) | APP))
    assert (cluster.only().resource, cluster.only().bills_app) == ("vllm", False)


def test_apps_of_the_same_name_in_two_projects_stay_apart():
    cluster = Cluster()
    for number, project in ((1, "a"), (2, "b")):
        cluster.see(app_pod(number, namespace=project, labels=apolo_labels(project=project) | APP))
    runs = cluster.pods.app_runs(T0, None)
    assert {(run.id, run.project) for run in runs} == {("a/llm", "a"), ("b/llm", "b")}


def test_two_instances_of_an_app_are_two_runs_of_one_app():
    cluster = Cluster()
    cluster.see(app_pod(1))
    cluster.see(app_pod(2, labels=apolo_labels() | APP | {"app.kubernetes.io/instance": "llm-2"}))
    assert {(run.id, run.app) for run in cluster.pods.app_runs(T0, None)} == {
        ("platform--acme--ml/llm", "vllm"), ("platform--acme--ml/llm-2", "vllm"),
    }  # fmt: skip


def test_the_next_oldest_pod_takes_over_where_the_first_was_charged_to():
    cluster = Cluster()
    cluster.see(app_pod(1))
    cluster.see(app_pod(2, T0 + MINUTE))
    assert app_runs(cluster, T0 + 2 * MINUTE) == [(T0, None)]
    cluster.now = T0 + 3 * MINUTE
    cluster.delete(app_pod(1))
    # What the first was charged for is not listed again; the meter begins the second where that ended.
    assert app_runs(cluster, T0 + 2 * MINUTE) == [(T0 + MINUTE, None)]


def test_an_app_that_is_gone_is_charged_to_the_end_of_its_last_pod():
    cluster = Cluster()
    cluster.see(app_pod(1))
    cluster.now = T0 + 3 * MINUTE
    cluster.delete(app_pod(1))
    assert app_runs(cluster, T0 + 2 * MINUTE) == [(T0, T0 + 3 * MINUTE)]
    assert app_runs(cluster, T0 + 4 * MINUTE) == []


def test_pods_that_replace_each_other_between_two_polls_are_charged_once_and_without_a_gap():
    cluster = Cluster()
    cluster.see(app_pod(1))
    cluster.now = T0 + 4 * MINUTE
    cluster.see(app_pod(2, T0 + 3 * MINUTE))
    cluster.delete(app_pod(1))
    assert app_runs(cluster, T0 + 2 * MINUTE) == [
        (T0, T0 + 3 * MINUTE), (T0 + 3 * MINUTE, None),
    ]  # fmt: skip


def test_pods_that_all_came_and_went_between_two_polls_are_charged_once():
    cluster = Cluster()
    cluster.see(app_pod(1, T0))
    cluster.see(app_pod(2, T0 + MINUTE))
    cluster.now = T0 + 3 * MINUTE
    cluster.delete(app_pod(1))
    cluster.now = T0 + 5 * MINUTE
    cluster.delete(app_pod(2, T0 + MINUTE))
    assert app_runs(cluster, T0 - MINUTE) == [(T0, T0 + 3 * MINUTE), (T0 + 3 * MINUTE, T0 + 5 * MINUTE)]


def test_w20_a_second_exporter_comes_to_the_same_run_of_an_app():
    first, second = Cluster(), Cluster()
    first.see(app_pod(1))
    first.see(app_pod(2, T0 + MINUTE))
    first.now = T0 + 2 * MINUTE
    first.delete(app_pod(1))
    second.see(app_pod(2, T0 + MINUTE))
    assert first.pods.app_runs(T0 + 3 * MINUTE, None) == second.pods.app_runs(T0 + 3 * MINUTE, None)


# Volume claims


def claim(size: str = "10Gi", **more: Any) -> bytes:
    meta = {
        "name": "data", "uid": "v-1", "namespace": "ns", "creationTimestamp": text(T0), "resourceVersion": "1",
        "labels": apolo_labels(preset=None),
    } | more.pop("metadata", {})  # fmt: skip
    status = {"phase": "Bound", "capacity": {"storage": size}}
    return json.dumps({"metadata": meta, "spec": {"storageClassName": "ssd"}, "status": status} | more).encode()


def test_w22_a_bound_claim_is_storage_of_its_class():
    cluster = Cluster()
    cluster.claims.add(claim(), T0)
    (seen,) = cluster.claims.live.values()
    assert (seen.kind, seen.resource, seen.bytes, seen.org, seen.project, seen.user) == (
        "storage", "ssd", 10 * 2**30, "acme", "ml", "alice",
    )  # fmt: skip


def test_a_claim_that_grows_is_the_same_volume():
    cluster = Cluster()
    cluster.claims.add(claim("1G"), T0)
    cluster.claims.add(claim("2G"), T0)
    assert [volume.bytes for volume in cluster.claims.live.values()] == [2 * 10**9]


def test_a_deleted_claim_ends_at_its_deletion():
    cluster = Cluster()
    cluster.claims.add(claim(), T0)
    cluster.claims.remove(claim(), T0 + MINUTE)
    assert not cluster.claims.live
    assert [ended.ended_us for ended, _ in cluster.claims.ended.values()] == [T0 + MINUTE]


def test_a_claim_that_waits_is_not_charged_and_an_odd_one_is_counted():
    cluster = Cluster()
    cluster.claims.add(claim(status={"phase": "Pending"}), T0)
    assert not cluster.claims.live
    cluster.claims.add(claim("lots"), T0)
    assert cluster.claims.unbillable() == {"malformed": 1}


def test_beside_an_apolo_source_its_disks_are_passed_over():
    cluster = Cluster(disks=False)
    labels = apolo_labels(preset=None) | {"platform.apolo.us/disk": "true"}
    cluster.claims.add(claim(metadata={"labels": labels}), T0)
    assert not cluster.claims.live
