"""Stopping work on Apolo and Kubernetes: what is sent, what the user sees, and the races on the way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.sources import ApoloSource as ApoloSettings
from config.sources import KubernetesActions as ActionSettings
from config.sources import KubernetesSource as KubernetesSettings
from config.values import Secret
from enforcer.actions.apolo import ApoloActions
from enforcer.actions.base import ActionError, Outcome
from enforcer.actions.kubernetes import (
    EVENT_REASON,
    REASON_ANNOTATION,
    REPLICAS_ANNOTATION,
    SUSPENDED_LABEL,
    KubernetesActions,
)
from tests.standins.apolo_api import ApoloApi, token_of
from tests.standins.faults import Fault
from tests.standins.kube_api import KubeApi, apolo_labels, container_status, pod_body, running, text

T0 = 1_764_000_000_000_000
MANAGER = ["job://default", "job://default:manage"]
WHY = "acme has no credits left; ask ann@acme.example for more"


@asynccontextmanager
async def apolo(api: ApoloApi) -> AsyncIterator[ApoloActions]:
    async with api.serve() as url:
        settings = ApoloSettings(name="a", url=url, token=Secret(token_of("meter")), timeout_seconds=5.0)
        actions = ApoloActions(settings, retry_seconds=0.001)
        try:
            yield actions
        finally:
            await actions.close()


@asynccontextmanager
async def kubernetes(api: KubeApi, **settings: Any) -> AsyncIterator[KubernetesActions]:
    async with api.serve() as url:
        actions = KubernetesActions(
            KubernetesSettings(name="k", url=url, actions=ActionSettings(**settings)), clock=lambda: T0
        )
        try:
            yield actions
        finally:
            await actions.close()


async def put_pod(api: KubeApi, name: str = "pod-1", owner: tuple[str, str] | None = None) -> str:
    body = pod_body(name, "ns", T0, apolo_labels())
    body["status"] = {"phase": "Running", "containerStatuses": [container_status(running(T0))]}
    if owner is not None:
        kind, owner_name = owner
        reference = {"apiVersion": "x/v1", "kind": kind, "name": owner_name, "uid": "o-1", "controller": True}
        body["metadata"]["ownerReferences"] = [reference]
    uid = (await api.put("pods", body))["metadata"]["uid"]
    assert isinstance(uid, str)
    return uid


async def test_a_cancelled_job_says_why():
    api = ApoloApi(rights=MANAGER)
    job = api.add_job(("running", T0))
    async with apolo(api) as actions:
        assert await actions.stop(job.id, WHY) is Outcome.DONE
    assert job.statuses[-1][0::2] == ("cancelled", "QuotaExhausted")
    assert job.description == WHY


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
async def test_a_job_that_is_over_is_left_as_it_is(status: str):
    api = ApoloApi(rights=MANAGER)
    job = api.add_job(("running", T0), (status, T0 + 1))
    async with apolo(api) as actions:
        assert await actions.stop(job.id, WHY) is Outcome.OVER
    assert len(job.statuses) == 2


async def test_a_job_whose_record_is_gone_is_over():
    async with apolo(ApoloApi(rights=MANAGER)) as actions:
        assert await actions.stop("job-unknown", WHY) is Outcome.OVER


async def test_a_lost_race_is_run_again():
    api = ApoloApi(rights=MANAGER, conflicts=2)
    job = api.add_job(("running", T0))
    async with apolo(api) as actions:
        assert await actions.stop(job.id, WHY) is Outcome.DONE


async def test_races_that_are_lost_for_ever_wait_for_the_next_round():
    api = ApoloApi(rights=MANAGER, conflicts=10**6)
    job = api.add_job(("running", T0))
    async with apolo(api) as actions:
        assert await actions.stop(job.id, WHY) is Outcome.LATER


async def test_a_token_that_may_not_cancel_is_told_what_it_needs():
    api = ApoloApi()
    job = api.add_job(("running", T0))
    async with apolo(api) as actions:
        with pytest.raises(ActionError, match="apolo acl grant job://default NAME manage"):
            await actions.stop(job.id, WHY)


async def test_a_request_that_is_refused_for_another_reason_is_an_error():
    api = ApoloApi(rights=MANAGER)
    job = api.add_job(("running", T0))
    api.faults.add(Fault("/status", 400))
    async with apolo(api) as actions:
        with pytest.raises(ActionError, match="400"):
            await actions.stop(job.id, WHY)


async def test_the_platform_has_neither_signal_nor_suspension():
    async with apolo(ApoloApi()) as actions:
        assert await actions.signal("job-1", WHY) is Outcome.CANNOT
        assert await actions.suspend("job-1", WHY) is Outcome.CANNOT


async def test_an_api_that_is_away_is_an_error_that_names_it():
    settings = ApoloSettings(name="a", url="http://127.0.0.1:9/api/v1", token=Secret("t"))
    actions = ApoloActions(settings)
    with pytest.raises(ActionError, match=r"127.0.0.1:9"):
        await actions.stop("job-1", WHY)
    await actions.close()


async def test_a_warned_pod_carries_the_reason_and_an_event():
    api = KubeApi()
    uid = await put_pod(api)
    async with kubernetes(api) as actions:
        assert await actions.signal(uid, WHY) is Outcome.DONE
    pod = api.objects["pods", "ns", "pod-1"]
    assert pod["metadata"]["annotations"] == {REASON_ANNOTATION: WHY}
    (event,) = api.events
    assert (event["reason"], event["message"], event["involvedObject"]["uid"]) == (EVENT_REASON, WHY, uid)
    assert event["firstTimestamp"] == text(T0)


async def test_an_evicted_pod_gets_its_grace_period_and_the_reason():
    api = KubeApi(now_us=T0)
    uid = await put_pod(api)
    async with kubernetes(api, grace_seconds=90.0) as actions:
        assert await actions.stop(uid, WHY) is Outcome.DONE
    meta = api.objects["pods", "ns", "pod-1"]["metadata"]
    assert meta["deletionTimestamp"] == text(T0 + 90_000_000)
    assert meta["annotations"] == {REASON_ANNOTATION: WHY}


async def test_a_disruption_budget_is_respected():
    api = KubeApi(blocked={"pod-1"})
    uid = await put_pod(api)
    async with kubernetes(api) as actions:
        assert await actions.signal(uid, "soon") is Outcome.DONE
        for _ in range(3):
            assert await actions.stop(uid, WHY) is Outcome.LATER
        api.blocked.clear()
        assert await actions.stop(uid, WHY) is Outcome.DONE
    assert [event["message"] for event in api.events] == ["soon", WHY]  # each once


async def test_a_pod_that_is_gone_is_over():
    api = KubeApi()
    uid = await put_pod(api)
    async with kubernetes(api) as actions:
        assert await actions.stop("no-such-uid", WHY) is Outcome.OVER
        await api.delete("pods", "ns", "pod-1")
        assert await actions.stop(uid, WHY) is Outcome.OVER


async def test_another_pod_that_took_the_name_is_never_touched():
    api = KubeApi()
    uid = await put_pod(api)
    async with kubernetes(api) as actions:
        await actions.signal(uid, WHY)
        await api.delete("pods", "ns", "pod-1")
        await put_pod(api)
        assert await actions.stop(uid, WHY) is Outcome.OVER
    assert "annotations" not in api.objects["pods", "ns", "pod-1"]["metadata"]


async def test_a_patch_that_is_refused_for_another_reason_is_an_error():
    api = KubeApi()
    uid = await put_pod(api)
    api.faults.add(Fault("/pods/pod-1", 422))
    async with kubernetes(api) as actions:
        with pytest.raises(ActionError, match="422"):
            await actions.stop(uid, WHY)


async def test_many_pods_are_found_by_one_list():
    api = KubeApi()
    uids = [await put_pod(api, f"pod-{number}") for number in range(20)]
    async with kubernetes(api) as actions:
        for uid in [*uids, "gone-1", "gone-2"]:
            await actions.signal(uid, WHY)
    assert api.faults.count("GET", "/pods") == 1


async def put_deployment(api: KubeApi, replicas: int = 3) -> None:
    reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d-1", "controller": True}
    meta = {"name": "web-5d", "namespace": "ns", "ownerReferences": [reference]}
    await api.put("replicasets", {"metadata": meta, "spec": {"replicas": replicas}})
    await api.put("deployments", {"metadata": {"name": "web", "namespace": "ns"}, "spec": {"replicas": replicas}})


async def test_a_deployment_that_would_make_the_pod_again_is_scaled_to_zero_and_back():
    api = KubeApi()
    await put_deployment(api)
    uid = await put_pod(api, owner=("ReplicaSet", "web-5d"))
    async with kubernetes(api, scale_owners=True) as actions:
        assert await actions.stop(uid, WHY) is Outcome.DONE
        deployment = api.objects["deployments", "ns", "web"]
        assert deployment["spec"]["replicas"] == 0
        assert deployment["metadata"]["annotations"] == {REASON_ANNOTATION: WHY, REPLICAS_ANNOTATION: "3"}
        assert await actions.suspend(uid, WHY) is Outcome.DONE
        assert await actions.resume(uid) is Outcome.DONE
        assert await actions.resume(uid) is Outcome.OVER
    deployment = api.objects["deployments", "ns", "web"]
    assert deployment["spec"]["replicas"] == 3
    assert deployment["metadata"]["labels"] == {}


async def test_owners_are_left_alone_where_that_is_not_asked_for():
    api = KubeApi()
    await put_deployment(api)
    uid = await put_pod(api, owner=("ReplicaSet", "web-5d"))
    async with kubernetes(api) as actions:
        await actions.stop(uid, WHY)
    assert api.objects["deployments", "ns", "web"]["spec"]["replicas"] == 3


async def test_a_deployment_is_not_suspended_where_owners_are_left_alone():
    api = KubeApi()
    await put_deployment(api)
    uid = await put_pod(api, owner=("ReplicaSet", "web-5d"))
    async with kubernetes(api) as actions:
        assert await actions.suspend(uid, WHY) is Outcome.CANNOT


async def test_a_job_is_suspended_and_resumed():
    api = KubeApi()
    await api.put("jobs", {"metadata": {"name": "train", "namespace": "ns"}, "spec": {"suspend": False}})
    uid = await put_pod(api, owner=("Job", "train"))
    async with kubernetes(api) as actions:
        assert await actions.suspend(uid, WHY) is Outcome.DONE
        job = api.objects["jobs", "ns", "train"]
        assert (job["spec"]["suspend"], job["metadata"]["labels"]) == (True, {SUSPENDED_LABEL: uid})
        assert await actions.resume(uid) is Outcome.DONE
        assert await actions.resume(uid) is Outcome.OVER
        assert api.objects["jobs", "ns", "train"]["spec"]["suspend"] is False


async def test_what_an_old_api_server_does_not_know_is_not_taken_for_done():
    api = KubeApi(now_us=T0, eviction="policy/v1beta1", suspends_jobs=False)
    await api.put("jobs", {"metadata": {"name": "train", "namespace": "ns"}, "spec": {}})
    uid = await put_pod(api, owner=("Job", "train"))
    async with kubernetes(api) as actions:
        assert await actions.suspend(uid, WHY) is Outcome.CANNOT
        assert await actions.stop(uid, WHY) is Outcome.DONE
    assert "deletionTimestamp" in api.objects["pods", "ns", "pod-1"]["metadata"]


async def test_a_pod_without_an_owner_cannot_be_suspended():
    api = KubeApi()
    uid = await put_pod(api)
    async with kubernetes(api) as actions:
        assert await actions.suspend(uid, WHY) is Outcome.CANNOT


async def test_eviction_can_be_forbidden():
    api = KubeApi()
    uid = await put_pod(api)
    async with kubernetes(api, evict=False) as actions:
        assert await actions.stop(uid, WHY) is Outcome.CANNOT


async def test_rights_that_lack_are_an_error_with_its_remedy():
    api = KubeApi()
    uid = await put_pod(api)
    api.faults.add(Fault("/eviction", 403))
    async with kubernetes(api) as actions:
        with pytest.raises(ActionError, match=r"docs/kubernetes.md"):
            await actions.stop(uid, WHY)
