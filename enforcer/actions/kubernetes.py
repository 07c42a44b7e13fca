"""Tells pods why, suspends what owns them, evicts them: with the reason on the pod and in an event."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from config.sources import KubernetesSource as KubernetesSettings
from config.values import Secret
from enforcer.actions.base import ActionError, Outcome
from enforcer.actions.rest import Rest
from ledger.clock import Clock, format_time, now_us

REASON_ANNOTATION: Final = "credits.apolo.us/reason"
"""The sentence for the user; a pod can read it through the downward API."""
REPLICAS_ANNOTATION: Final = "credits.apolo.us/replicas"
"""How many replicas an owner had before it was scaled to zero."""
SUSPENDED_LABEL: Final = "credits.apolo.us/suspended"
"""On an owner that was put at rest: the UID of the pod because of which."""
EVENT_REASON: Final = "CreditsExhausted"
_MERGE: Final = {"Content-Type": "application/merge-patch+json"}
# The API server leaves out everything but metadata then; one that cannot ignores it.
_METADATA: Final = {
    "Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json;q=0.9"
}
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PAGE: Final = 500
_NAME_MAX: Final = 230
"""Of an object's 253 characters, so that a digest fits behind it."""
_LIST_US: Final = 5_000_000
"""Charges are older than this, so a pod that they are about is in a list which is not."""
_APPS: Final = "apis/apps/v1"
_EVICTIONS: Final = ("policy/v1", "policy/v1beta1")
"""The second is that of Kubernetes before 1.22."""
_SCALABLE: Final = {"Deployment": "deployments", "StatefulSet": "statefulsets"}


class _Owner(msgspec.Struct):
    kind: str
    name: str
    controller: bool = False


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    uid: str
    namespace: str = ""
    owner_references: list[_Owner] = []


class _Object(msgspec.Struct):
    metadata: _Metadata


class _ListMetadata(msgspec.Struct, rename={"go_on": "continue"}):
    go_on: str = ""


class _List(msgspec.Struct):
    metadata: _ListMetadata
    items: list[_Object] = []


def rest_of(settings: KubernetesSettings, environ: Mapping[str, str] = os.environ) -> Rest:
    """The API server of a source: as the settings say, else that of the cluster this runs in."""
    url, token, ca_file = settings.url, settings.token, settings.ca_file
    if url is None:
        host = environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
        url = f"https://{host}:{environ.get('KUBERNETES_SERVICE_PORT', '443')}"
        ca_file = ca_file or _ACCOUNT / "ca.crt"
        if token is None and settings.client_cert is None:
            token = Secret(file=_ACCOUNT / "token")
    return Rest(
        url, token, ca_file=ca_file, client_cert=settings.client_cert, client_key=settings.client_key,
        timeout_seconds=settings.timeout_seconds,
    )  # fmt: skip


class KubernetesActions:
    """Workload ids are the UIDs of pods, of which one list finds as many as are asked for until it is old."""

    def __init__(
        self, settings: KubernetesSettings, clock: Clock = now_us, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._settings = settings.actions
        self._selector = settings.selector
        self._clock = clock
        self._pods: dict[str, _Metadata] = {}
        self._listed_us = -_LIST_US - 1
        self._rest = rest_of(settings, environ)

    async def signal(self, workload_id: str, reason: str) -> Outcome:
        """Annotate the pod and write an event. Raises: ActionError."""
        pod = await self._find(workload_id)
        return Outcome.OVER if pod is None else await self._tell(pod, reason)

    async def suspend(self, workload_id: str, reason: str) -> Outcome:
        """Suspend the pod's Job, or scale its owner to zero (`scale_owners`); `resume` undoes it.

        Raises: ActionError.
        """
        pod = await self._find(workload_id)
        if pod is None:
            return Outcome.OVER
        if await self._tell(pod, reason) is Outcome.OVER:
            return Outcome.OVER
        return await self._rest_owner(pod, reason)

    async def stop(self, workload_id: str, reason: str) -> Outcome:
        """Evict the pod, once what would make it again is at rest. A disruption budget says LATER.

        Raises: ActionError.
        """
        pod = await self._find(workload_id)
        if pod is None:
            return Outcome.OVER
        if not self._settings.evict:
            return Outcome.CANNOT
        if await self._tell(pod, reason) is Outcome.OVER:
            return Outcome.OVER
        await self._rest_owner(pod, reason)
        status, text = await self._evict(pod)
        if status in (404, 409):
            del self._pods[workload_id]
            return Outcome.OVER
        if status == 429:
            return Outcome.LATER
        _check(status, f"pod {pod.namespace}/{pod.name} cannot be evicted", text)
        return Outcome.DONE

    async def resume(self, workload_id: str) -> Outcome:
        """Let the Job or owner that was put at rest because of this pod go on; OVER where none was.

        Raises: ActionError.
        """
        resumed = False
        for path in ("apis/batch/v1/jobs", f"{_APPS}/deployments", f"{_APPS}/statefulsets"):
            selector = {"labelSelector": f"{SUSPENDED_LABEL}={workload_id}"}
            status, found, text = await self._rest.call("GET", path, params=selector)
            _check(status, f"what is suspended cannot be listed ({path})", text)
            for item in found.get("items", ()) if isinstance(found, dict) else ():
                meta = item["metadata"]
                replicas = (meta.get("annotations") or {}).get(REPLICAS_ANNOTATION, "1")
                spec = {"suspend": False} if path.endswith("/jobs") else {"replicas": _number(replicas)}
                marks = {"labels": {SUSPENDED_LABEL: None}, "annotations": {REPLICAS_ANNOTATION: None}}
                group, _, plural = path.rpartition("/")
                place = f"{group}/namespaces/{meta['namespace']}/{plural}/{meta['name']}"
                resumed |= await self._patch(place, {"metadata": marks, "spec": spec}) is not None
        return Outcome.DONE if resumed else Outcome.OVER

    async def close(self) -> None:
        """Close the connections."""
        await self._rest.close()

    async def _find(self, uid: str) -> _Metadata | None:
        """The pod of a UID, by a new list where it is not known."""
        if "/" in uid:
            return None  # an app's run: what it consists of are pods, which are workloads, too
        now = self._clock()
        if uid not in self._pods and now - self._listed_us > _LIST_US:
            self._pods = await self._list()
            self._listed_us = now
        return self._pods.get(uid)

    async def _list(self) -> dict[str, _Metadata]:
        found: dict[str, _Metadata] = {}
        params = {"limit": str(_PAGE)} | ({"labelSelector": self._selector} if self._selector else {})
        while True:
            status, page, text = await self._rest.call("GET", "api/v1/pods", params=params, headers=_METADATA)
            _check(status, "pods cannot be listed", text)
            try:
                read = msgspec.convert(page, _List)
            except msgspec.ValidationError as error:
                raise ActionError(f"the list of pods cannot be read: {error}") from error
            found.update((pod.metadata.uid, pod.metadata) for pod in read.items)
            if not read.metadata.go_on:
                return found
            params["continue"] = read.metadata.go_on

    async def _tell(self, pod: _Metadata, reason: str) -> Outcome:
        if not self._settings.annotate:
            return Outcome.DONE
        mark = {"metadata": {"uid": pod.uid, "annotations": {REASON_ANNOTATION: reason}}}
        if await self._patch(_place(pod), mark) is None:
            del self._pods[pod.uid]
            return Outcome.OVER
        now = self._clock()
        # Named by what it says: told again, as in each round in which an eviction is refused, it is there already.
        digest = hashlib.sha256(f"{pod.uid} {reason}".encode()).hexdigest()[:16]
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{pod.name[:_NAME_MAX].rstrip('.-')}.{digest}", "namespace": pod.namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.name, "namespace": pod.namespace, "uid": pod.uid,
            },
            "type": "Warning",
            "reason": EVENT_REASON,
            "message": reason,
            "source": {"component": "apolo-credits"},
            "firstTimestamp": format_time(now // 1_000_000 * 1_000_000),
            "lastTimestamp": format_time(now // 1_000_000 * 1_000_000),
            "count": 1,
        }  # fmt: skip
        status, _, text = await self._rest.call("POST", f"api/v1/namespaces/{pod.namespace}/events", event)
        if status != 409:
            _check(status, f"the event on pod {pod.namespace}/{pod.name} cannot be written", text)
        return Outcome.DONE

    async def _evict(self, pod: _Metadata) -> tuple[int, str]:
        eviction = {
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {
                "gracePeriodSeconds": round(self._settings.grace_seconds),
                # The name may be another pod's by now.
                "preconditions": {"uid": pod.uid},
            },
        }
        for version in _EVICTIONS:
            body = {"apiVersion": version, **eviction}
            status, said, text = await self._rest.call("POST", f"{_place(pod)}/eviction", body)
            message = said.get("message") if isinstance(said, dict) else None
            if status != 400 or 'no kind "Eviction" is registered' not in str(message):
                break
        return status, text

    async def _rest_owner(self, pod: _Metadata, reason: str) -> Outcome:
        """Suspend the Job, or scale the Deployment or StatefulSet that makes the pod, where that is allowed."""
        owner = _controller(pod)
        if owner is not None and owner.kind == "ReplicaSet":
            owner = await self._owner_of(pod.namespace, owner.name)
        if owner is None:
            return Outcome.CANNOT
        marks: dict[str, Any] = {"labels": {SUSPENDED_LABEL: pod.uid}, "annotations": {REASON_ANNOTATION: reason}}
        if owner.kind == "Job":
            place = f"apis/batch/v1/namespaces/{pod.namespace}/jobs/{owner.name}"
            job = await self._patch(place, {"metadata": marks, "spec": {"suspend": True}})
            if job is None:
                return Outcome.OVER
            # Kubernetes before 1.21 takes no notice of what it does not know, and says that all is well.
            return Outcome.DONE if job.get("spec", {}).get("suspend") else Outcome.CANNOT
        if owner.kind not in _SCALABLE or not self._settings.scale_owners:
            return Outcome.CANNOT
        place = f"{_APPS}/namespaces/{pod.namespace}/{_SCALABLE[owner.kind]}/{owner.name}"
        status, body, text = await self._rest.call("GET", place)
        if status == 404:
            return Outcome.OVER
        _check(status, f"{owner.kind} {pod.namespace}/{owner.name} cannot be read", text)
        replicas = body.get("spec", {}).get("replicas", 1) if isinstance(body, dict) else 1
        if replicas == 0:
            return Outcome.DONE
        marks["annotations"][REPLICAS_ANNOTATION] = str(replicas)
        await self._patch(place, {"metadata": marks, "spec": {"replicas": 0}})
        return Outcome.DONE

    async def _owner_of(self, namespace: str, replica_set: str) -> _Owner | None:
        status, body, text = await self._rest.call("GET", f"{_APPS}/namespaces/{namespace}/replicasets/{replica_set}")
        if status == 404:
            return None
        _check(status, f"ReplicaSet {namespace}/{replica_set} cannot be read", text)
        try:
            return _controller(msgspec.convert(body, _Object).metadata)
        except msgspec.ValidationError as error:
            raise ActionError(f"ReplicaSet {namespace}/{replica_set} cannot be read: {error}") from error

    async def _patch(self, place: str, patch: object) -> dict[str, Any] | None:
        """The object as it is now, None where it is gone, or is not the one of the patch's uid any more."""
        status, body, text = await self._rest.call("PATCH", place, patch, headers=_MERGE)
        if status in (404, 409) or (status == 422 and _is_another(body)):
            return None
        _check(status, f"{place} cannot be changed", text)
        return body if isinstance(body, dict) else {}


def _place(pod: _Metadata) -> str:
    return f"api/v1/namespaces/{pod.namespace}/pods/{pod.name}"


def _is_another(refusal: Any) -> bool:
    """Whether a patch was refused because the object has another uid: that is how a patch of one finds out."""
    details = refusal.get("details") if isinstance(refusal, dict) else None
    causes = details.get("causes") if isinstance(details, dict) else None
    return any(isinstance(cause, dict) and cause.get("field") == "metadata.uid" for cause in causes or ())


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 1


def _controller(meta: _Metadata) -> _Owner | None:
    return next((owner for owner in meta.owner_references if owner.controller), None)


def _check(status: int, what: str, text: str) -> None:
    if status in (401, 403):
        raise ActionError(f"{what}: {status} {text}; the account needs the rights that docs/kubernetes.md lists")
    if status >= 300:
        raise ActionError(f"{what}: {status} {text}")
