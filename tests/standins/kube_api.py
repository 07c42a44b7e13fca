"""A stand-in for a Kubernetes API server: lists in chunks, watches with history, eviction, events, patches."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from aiohttp import web

from tests.standins.faults import Faults, serving

Body = dict[str, Any]
KINDS = {
    "pods": "Pod", "persistentvolumeclaims": "PersistentVolumeClaim", "namespaces": "Namespace",
    "deployments": "Deployment", "statefulsets": "StatefulSet", "replicasets": "ReplicaSet", "jobs": "Job",
}  # fmt: skip


def text(us: int) -> str:
    """An instant as Kubernetes writes it: whole seconds."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=us // 1_000_000)).strftime("%Y-%m-%dT%H:%M:%SZ")


def running(since_us: int) -> Body:
    return {"running": {"startedAt": text(since_us)}}


def terminated(since_us: int, until_us: int, code: int = 0) -> Body:
    return {"terminated": {"startedAt": text(since_us), "finishedAt": text(until_us), "exitCode": code}}


def container_status(state: Body, last: Body | None = None, restarts: int = 0) -> Body:
    """The status of a main container."""
    return {
        "name": "main", "image": "ubuntu", "imageID": "", "ready": "running" in state, "restartCount": restarts,
        "state": state, "lastState": last or {},
    }  # fmt: skip


def apolo_labels(org: str = "acme", project: str = "ml", user: str = "alice", preset: str | None = "cpu-small",
                 **more: str) -> dict[str, str]:  # fmt: skip
    """Labels as the platform puts them on pods."""
    labels = {"platform.apolo.us/org": org, "platform.apolo.us/project": project, "platform.apolo.us/user": user}
    if preset is not None:
        labels["platform.apolo.us/preset"] = preset
    return labels | more


def pod_body(name: str, namespace: str, created_us: int, labels: dict[str, str], **more: Any) -> Body:
    """A pending pod. `limits`: of its one container."""
    limits = more.pop("limits", None)
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "creationTimestamp": text(created_us)},
        "spec": {
            "nodeName": "node-1", "restartPolicy": "Never",
            "containers": [{"name": "main", "image": "ubuntu", "resources": {"limits": limits} if limits else {}}],
        } | more,
        "status": {"phase": "Pending", "conditions": []},
    }  # fmt: skip


@dataclass
class KubeApi:
    """Objects by (plural, namespace, name), and the events that made them."""

    objects: dict[tuple[str, str, str], Body] = field(default_factory=dict)
    history: list[tuple[int, str, str, Body]] = field(default_factory=list)
    """(version, plural, event type, object)"""
    events: list[Body] = field(default_factory=list)
    """Events (the resource) that were written."""
    version: int = 100
    compacted: int = 0
    """Watches from versions before this one are answered with 410."""
    gone_as_event: bool = True
    """As a real one does it: it takes the watch, and then says that it has forgotten the version."""
    expire_continue: int = 0
    """So many continued lists are answered with 410."""
    blocked: set[str] = field(default_factory=set)
    """Pods whose eviction a disruption budget refuses."""
    eviction: str = "policy/v1"
    """The only version of an Eviction that is known: before 1.22 it was policy/v1beta1."""
    suspends_jobs: bool = True
    """Before 1.21 `suspend` was passed over as an unknown field."""
    faults: Faults = field(default_factory=Faults)
    now_us: int = 0
    watchers: int = 0

    def __post_init__(self) -> None:
        self._news = asyncio.Condition()
        self._cut = 0
        self._uids = 0

    async def put(self, plural: str, body: Body) -> Body:
        """Create or replace an object, and tell the watchers."""
        meta = body["metadata"]
        key = plural, meta.get("namespace", ""), meta["name"]
        before = self.objects.get(key)
        self.version += 1
        if before is None:
            self._uids += 1
            meta.setdefault("uid", str(UUID(int=self._uids)))
        else:
            meta.setdefault("uid", before["metadata"]["uid"])
        meta.setdefault("creationTimestamp", text(self.now_us))
        meta["resourceVersion"] = str(self.version)
        self.objects[key] = body
        await self._tell(plural, "ADDED" if before is None else "MODIFIED", body)
        return body

    async def delete(self, plural: str, namespace: str, name: str) -> None:
        """The object is gone."""
        body = copy.deepcopy(self.objects.pop((plural, namespace, name)))
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        await self._tell(plural, "DELETED", body)

    async def tell_bookmark(self, plural: str) -> None:
        """Watchers learn the version without any object."""
        self.version += 1
        body = {"kind": KINDS[plural], "metadata": {"resourceVersion": str(self.version)}}
        await self._tell(plural, "BOOKMARK", body)

    async def cut_watches(self) -> None:
        """All watches lose their connection."""
        async with self._news:
            self._cut += 1
            self._news.notify_all()

    def compact(self) -> None:
        """The server forgets what was before now."""
        self.compacted = self.version

    async def _tell(self, plural: str, kind: str, body: Body) -> None:
        async with self._news:
            self.history.append((self.version, plural, kind, copy.deepcopy(body)))
            self._news.notify_all()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The API server on the loopback; gives its URL."""
        app = web.Application(middlewares=[self.faults.middleware])
        for prefix in ("/api/v1", "/apis/apps/v1", "/apis/batch/v1"):
            app.router.add_post(prefix + "/namespaces/{namespace}/events", self._event)
            app.router.add_get(prefix + "/{plural}", self._read)
            app.router.add_get(prefix + "/namespaces/{namespace}/{plural}/{name}", self._one)
            app.router.add_patch(prefix + "/namespaces/{namespace}/{plural}/{name}", self._patch)
            app.router.add_patch(prefix + "/namespaces/{namespace}/{plural}/{name}/scale", self._patch)
            app.router.add_post(prefix + "/namespaces/{namespace}/{plural}/{name}/eviction", self._evict)
        app.router.add_get("/api/v1/namespaces/{name}", self._namespace)
        async with serving(app) as url:
            yield url

    def _failure(self, code: int, message: str, details: Body | None = None, **headers: str) -> web.Response:
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
        return web.json_response(body | ({"details": details} if details else {}), status=code, headers=headers)

    async def _read(self, request: web.Request) -> web.StreamResponse:
        plural = request.match_info["plural"]
        if request.query.get("watch") == "1":
            return await self._watch(request, plural)
        limit = int(request.query.get("limit", "0"))
        start, version = 0, self.version
        if go_on := request.query.get("continue"):
            if self.expire_continue > 0:
                self.expire_continue -= 1
                return self._failure(410, "The provided continue parameter is too old")
            start, version = (int(part) for part in go_on.split(":"))
        selector = request.query.get("labelSelector", "")
        found = [body for key, body in sorted(self.objects.items()) if key[0] == plural and _selected(body, selector)]
        page = found[start : start + limit] if limit else found[start:]
        meta: Body = {"resourceVersion": str(version)}
        if limit and start + limit < len(found):
            meta["continue"] = f"{start + limit}:{version}"
            meta["remainingItemCount"] = len(found) - start - limit
        return web.json_response({"kind": KINDS[plural] + "List", "metadata": meta, "items": page})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        told = int(request.query.get("resourceVersion", "0"))
        selector = request.query.get("labelSelector", "")
        if told < self.compacted and not self.gone_as_event:
            return self._failure(410, "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if told < self.compacted:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
            return response
        self.watchers += 1
        cut = self._cut
        try:
            async with asyncio.timeout(float(request.query.get("timeoutSeconds", "60"))):
                while cut == self._cut:
                    news = [n for n in self.history if n[0] > told and n[1] == plural and _selected(n[3], selector)]
                    for version, _, kind, body in news:
                        await response.write(json.dumps({"type": kind, "object": body}).encode() + b"\n")
                        told = version
                    async with self._news:
                        if not any(n[0] > told and n[1] == plural for n in self.history) and cut == self._cut:
                            await self._news.wait()
            assert request.transport is not None
            request.transport.abort()
        except (TimeoutError, ConnectionError):
            pass  # it was to end now, or whoever watched is gone
        finally:
            self.watchers -= 1
        return response

    async def _one(self, request: web.Request) -> web.Response:
        body = self.objects.get(self._key(request))
        return self._failure(404, "not found") if body is None else web.json_response(body)

    async def _namespace(self, request: web.Request) -> web.Response:
        body = self.objects.get(("namespaces", "", request.match_info["name"]))
        return self._failure(404, "not found") if body is None else web.json_response(body)

    def _key(self, request: web.Request) -> tuple[str, str, str]:
        info = request.match_info
        return info["plural"], info["namespace"], info["name"]

    async def _patch(self, request: web.Request) -> web.Response:
        if request.content_type != "application/merge-patch+json":
            return self._failure(415, "unsupported patch")
        body = self.objects.get(self._key(request))
        if body is None:
            return self._failure(404, "not found")
        patch = await request.json()
        if patch.get("metadata", {}).get("uid", body["metadata"]["uid"]) != body["metadata"]["uid"]:
            cause = {"reason": "FieldValueInvalid", "message": "field is immutable", "field": "metadata.uid"}
            return self._failure(422, "metadata.uid: field is immutable", {"causes": [cause, cause]})
        if not self.suspends_jobs:
            patch.get("spec", {}).pop("suspend", None)
        merged = _merge(copy.deepcopy(body), patch)
        return web.json_response(await self.put(self._key(request)[0], merged))

    async def _event(self, request: web.Request) -> web.Response:
        event = await request.json()
        if any(event["metadata"] == one["metadata"] for one in self.events):
            return self._failure(409, "events already exists")
        self.events.append(event)
        return web.json_response(self.events[-1], status=201)

    async def _evict(self, request: web.Request) -> web.Response:
        """Starts the grace period; the pod is gone when the test deletes it."""
        body = self.objects.get(self._key(request))
        if body is None:
            return self._failure(404, "pods not found")
        eviction = await request.json()
        version = eviction.get("apiVersion", "")
        if version != self.eviction or eviction.get("kind") != "Eviction":
            return self._failure(400, f'no kind "Eviction" is registered for version "{version}" in scheme "..."')
        wanted = (eviction.get("deleteOptions") or {}).get("preconditions", {}).get("uid")
        if wanted not in (None, body["metadata"]["uid"]):
            return self._failure(409, "the UID in the precondition does not match the UID in record")
        if body["metadata"]["name"] in self.blocked:
            return self._failure(
                429, "Cannot evict pod as it would violate the pod's disruption budget.", **{"Retry-After": "0"}
            )
        grace = (eviction.get("deleteOptions") or {}).get("gracePeriodSeconds", 30)
        changed = copy.deepcopy(body)
        changed["metadata"]["deletionTimestamp"] = text(self.now_us + grace * 1_000_000)
        changed["metadata"]["deletionGracePeriodSeconds"] = grace
        await self.put("pods", changed)
        return web.json_response({"kind": "Status", "status": "Success"}, status=201)


def _selected(body: Body, selector: str) -> bool:
    """Equality, and that a label exists."""
    labels = body["metadata"].get("labels") or {}
    for term in selector.split(",") if selector else ():
        key, _, value = term.partition("=")
        if key not in labels or (value and labels[key] != value):
            return False
    return True


def _merge(body: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = body if isinstance(body, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged
