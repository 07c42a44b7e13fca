"""A stand-in for the Apolo platform: jobs, config, projects, permissions and disks, in its own shapes."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from aiohttp import web

from tests.standins.faults import Faults, serving

ACTIVE = {"pending", "suspended", "running"}
FINAL = {"succeeded", "failed", "cancelled"}


def token_of(user: str) -> str:
    """A token with the claim that names its user, unsigned."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part({'identity': user})}.sig"


def text(us: int) -> str:
    """An instant as the platform writes it."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).isoformat()


@dataclass
class StoredJob:
    """A job as the platform keeps it."""

    id: str
    owner: str
    org: str | None
    project: str
    preset: str | None
    created_us: int
    statuses: list[tuple[str, int, str | None]]
    cluster: str = "default"
    resources: dict[str, Any] | None = None
    max_run_time_minutes: int | None = None
    description: str | None = None

    @property
    def status(self) -> str:
        return self.statuses[-1][0]

    def move(self, status: str, at_us: int, reason: str | None = None) -> None:
        self.statuses.append((status, at_us, reason))

    def body(self) -> dict[str, Any]:
        """The job as served: prices are there to be ignored."""
        namespace = f"platform--{self.org}--{self.project}--0123456789abcdef01234567"
        history: dict[str, Any] = {
            "status": self.status,
            "reason": self.statuses[-1][2],
            "description": self.description,
            "created_at": text(self.created_us),
            "run_time_seconds": 0.0,
            "restarts": 0,
        }
        body: dict[str, Any] = {
            "id": self.id,
            "owner": self.owner,
            "cluster_name": self.cluster,
            "org_name": self.org,
            "project_name": self.project,
            "namespace": namespace,
            "org_project_hash": "0123456789",
            "uri": f"job://{self.cluster}/{self.org}/{self.project}/{self.id}",
            "status": self.status,
            "price_credits_per_hour": "1E+2",
            "total_price_credits": "99999.99",
            "statuses": [
                {"status": status, "transition_time": text(at), "reason": reason, "description": None}
                for status, at, reason in self.statuses
            ],
            "history": history,
            "container": {"image": "ubuntu", "env": {"A": "b"}, "volumes": [], "resources": self.resources or {}},
            "scheduler_enabled": False,
            "is_preemptible": False,
            "restart_policy": "never",
            "materialized": self.status == "running",
            "being_dropped": False,
            "logs_removed": False,
        }
        if self.resources is None:
            del body["container"]["resources"]
        if self.preset is not None:
            body["preset_name"] = self.preset
        if self.max_run_time_minutes is not None:
            body["max_run_time_minutes"] = self.max_run_time_minutes
        return body


@dataclass
class ApoloApi:
    """The platform's state, and what is wrong with it."""

    cluster: str = "default"
    user: str = "meter"
    rights: list[str] = field(default_factory=lambda: ["job://default", "disk://default"])
    jobs: dict[str, StoredJob] = field(default_factory=dict)
    presets: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    projects: list[tuple[str, str]] = field(default_factory=list)
    disks: dict[str, dict[str, Any]] = field(default_factory=dict)
    disks_hidden: bool = False
    """The disks API fails at Kubernetes, and answers with empty lists."""
    extra_lines: list[bytes] = field(default_factory=list)
    """Lines put into every list of jobs, as they are."""
    error_after: int | None = None
    """After so many jobs a list ends with the error line."""
    cut_after: int | None = None
    """After so many jobs the connection is cut."""
    conflicts: int = 0
    """So many writes lose a race."""
    faults: Faults = field(default_factory=Faults)
    now_us: int = 0
    spending: dict[tuple[str, str], Decimal] = field(default_factory=dict)
    """What orgs (user "") and org users were charged, as their balances show it."""
    postings: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Idempotency key -> org, user, amount."""
    unknown: set[tuple[str, str]] = field(default_factory=set)
    """Orgs and org users that the admin API does not have."""
    deaf: int = 0
    """So many charges are made and not answered."""

    def add_job(
        self,
        *statuses: tuple[str, int],
        owner: str = "alice",
        org: str | None = "acme",
        project: str = "ml",
        preset: str | None = "cpu-small",
        **more: Any,
    ) -> StoredJob:
        """A job with these (status, at); it was created at the first."""
        job_id = f"job-{UUID(int=len(self.jobs) + 1)}"
        moves = [(status, at, None) for status, at in statuses]
        more = {"cluster": self.cluster, "created_us": statuses[0][1]} | more
        job = StoredJob(job_id, owner, org, project, preset, statuses=moves, **more)
        self.jobs[job_id] = job
        return job

    def add_disk(self, org: str, project: str, size: int, owner: str = "alice", status: str = "Ready") -> str:
        disk_id = f"disk-{UUID(int=len(self.disks) + 1)}"
        self.disks[disk_id] = {
            "id": disk_id, "storage": size, "status": status, "owner": owner, "name": None, "org_name": org,
            "project_name": project, "created_at": text(0), "last_usage": None, "life_span": 86400,
        }  # fmt: skip
        return disk_id

    def _may(self, scheme: str, place: str) -> bool:
        """Whether the token may read `scheme://place`: a right of this or of what it is in."""
        uri = f"{scheme}://{place}"
        return any(uri == right or uri.startswith(right + "/") for right in self.rights)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """The platform on the loopback; gives the URL with /api/v1."""
        app = web.Application(middlewares=[self.faults.middleware])
        app.router.add_get("/api/v1/jobs", self._list)
        app.router.add_get("/api/v1/jobs/{id}", self._one)
        app.router.add_put("/api/v1/jobs/{id}/status", self._set_status)
        app.router.add_get("/api/v1/config", self._config)
        app.router.add_post("/apis/admin/v1/users/{user:.+}/permissions/check", self._permissions)
        app.router.add_get("/apis/admin/v1/clusters/{cluster}/projects", self._projects)
        app.router.add_post("/apis/admin/v1/orgs/{org}/spending", self._spend)
        app.router.add_post("/apis/admin/v1/orgs/{org}/users/{user}/spending", self._spend)
        app.router.add_get("/api/v1/disk", self._disks)
        app.router.add_get("/api/v1/disk/{id}", self._disk)
        async with serving(app) as url:
            self._url = url
            yield f"{url}/api/v1"

    def _refused(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") != f"Bearer {token_of(self.user)}":
            return web.json_response({"error": "unauthorized"}, status=401)
        return None

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if refused := self._refused(request):
            return refused
        query = request.query
        since = datetime.fromisoformat(query["since"]) if "since" in query else None
        found = [
            job
            for job in self.jobs.values()
            if job.status in (query.getall("status", []) or ACTIVE | FINAL)
            and job.cluster in (query.getall("cluster_name", []) or [job.cluster])
            and job.org in (query.getall("org_name", []) or [job.org])
            and (since is None or datetime.fromisoformat(text(job.created_us)) >= since)
            and self._may("job", f"{job.cluster}/{job.org}/{job.project}/{job.id}")
        ]
        found.sort(key=lambda job: job.created_us)
        if request.headers.get("Accept") != "application/x-ndjson":
            return web.json_response({"jobs": [job.body() for job in found]})
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for line in self.extra_lines:
            await response.write(line + b"\n")
        for number, job in enumerate(found):
            if number == self.cut_after:
                await response.write(json.dumps(job.body()).encode()[:40])
                assert request.transport is not None
                request.transport.close()
                return response
            if number == self.error_after:
                await response.write(b'{"error": "the database went away"}\n')
                return response
            await response.write(json.dumps(job.body()).encode() + b"\n")
        await response.write_eof()
        return response

    async def _one(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.json_response({"error": "no such job"}, status=404)
        if not self._may("job", f"{job.cluster}/{job.org}/{job.project}/{job.id}"):
            return web.json_response({"missing": [{"uri": job.body()["uri"], "action": "read"}]}, status=403)
        return web.json_response(job.body())

    async def _set_status(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        if f"job://{self.cluster}:manage" not in self.rights:
            missing = [{"uri": f"job://{self.cluster}", "action": "manage"}]
            return web.json_response({"missing": missing}, status=403)
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.json_response({"error": "no such job"}, status=404)
        if self.conflicts > 0:
            self.conflicts -= 1
            return web.json_response({"error": "Job has been changed by another request"}, status=409)
        body = await request.json()
        if job.status in FINAL:
            told = f"Invalid job status transition from {job.status!r} to {body['status']!r}"
            return web.json_response({"error": told}, status=400)
        job.move(body["status"], self.now_us, body.get("reason"))
        job.description = body.get("description")
        return web.Response(status=204)

    async def _config(self, request: web.Request) -> web.Response:
        cluster = {
            "name": self.cluster,
            "registry_url": f"{self._url}/registry",
            "disks_url": f"{self._url}/api/v1/disk",
            "orgs": sorted({org for org, _ in self.projects}),
            "timezone": "UTC",
            "resource_pool_types": [{"name": "cpu", "min_size": 1, "max_size": 4}],
            "resource_presets": self.presets,
            "storage_volumes": self.volumes,
        }
        return web.json_response({"authorized": True, "admin_url": f"{self._url}/apis/admin/v1", "clusters": [cluster]})

    async def _permissions(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        if request.match_info["user"] != self.user:
            return web.json_response({"error": "not your rights"}, status=403)
        missing = [needed for needed in await request.json() if not self._may(*needed["uri"].split("://", 1))]
        return web.json_response({"missing": missing}, status=403) if missing else web.json_response([])

    async def _projects(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        return web.json_response(
            [
                {"name": project, "org_name": org, "cluster_name": self.cluster, "is_default": False,
                 "default_role": "writer"}
                for org, project in self.projects
            ]
        )  # fmt: skip

    async def _spend(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        org, user = request.match_info["org"], request.match_info.get("user", "")
        if (org, user) in self.unknown:
            return web.json_response({"error": "not found"}, status=404)
        amount: str = (await request.json())["spending"]
        assert isinstance(amount, str), "numbers travel as strings"
        assert Decimal(amount) > 0, "spending is spent"
        asked = org, user, amount
        first = self.postings.setdefault(request.query["idempotency_key"], asked)
        assert first == asked, "a key is of one charge"
        if first is asked:
            self.spending[org, user] = self.spending.get((org, user), Decimal(0)) + Decimal(amount)
        if self.deaf > 0:
            self.deaf -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"name": org, "balance": {"spent_credits": str(self.spending[org, user])}})

    async def _disks(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        try:
            place = request.query["org_name"], request.query["project_name"]
        except KeyError:
            return web.json_response({"error": "KeyError"}, status=500)
        if self.disks_hidden:
            return web.json_response([])
        return web.json_response(
            [disk for disk in self.disks.values() if (disk["org_name"], disk["project_name"]) == place]
        )

    async def _disk(self, request: web.Request) -> web.Response:
        disk = self.disks.get(request.match_info["id"])
        return web.json_response({"error": "no such disk"}, status=404) if disk is None else web.json_response(disk)
