"""The webhook as an API server calls it: pods and jobs, dry runs, parts of admitted work, and hostile bodies.

What is asked and every answer is checked against the schema of the API (tests/payloads/kubernetes).
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from jsonschema import Draft202012Validator, ValidationError

from config.settings import AdmissionSettings, Settings
from config.sources import ApoloSource, KubernetesSource, PresetSize
from config.values import Secret
from enforcer.app import DESK, build_app
from exporter.books import Books
from exporter.rounds import Rounds
from ledger import keys
from ledger.connect import Client
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger
from ledger.verify import verify
from tests.stages_lab import Nothing
from tests.standins.faults import Fault
from tests.standins.kube_api import KubeApi

CREDIT = 1_000_000
V1 = {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1"}
SCHEMA = Draft202012Validator(
    json.loads((Path(__file__).parents[1] / "payloads/kubernetes/admission-review-v1.schema.json").read_text())
)
SETTINGS = Settings(path=Path("settings.yaml"), sources=(KubernetesSource(name="k", cluster="c"),))
LABELS = {
    "platform.apolo.us/org": "acme", "platform.apolo.us/project": "vision", "platform.apolo.us/user": "ann",
    "platform.apolo.us/preset": "small",
}  # fmt: skip


def pod(labels: dict[str, str] | None = None, uid: str = "pod-1", **spec: Any) -> dict[str, Any]:
    """A pod as a validating webhook gets it, shortened."""
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "job-1", "namespace": "platform--acme--vision--00", "uid": uid,
            "creationTimestamp": "2026-11-22T10:00:00Z", "labels": LABELS if labels is None else labels,
            "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:metadata": {}}}],
        },
        "spec": {"containers": [{"name": "main", "image": "busybox", "resources": {"limits": {"cpu": "1"}}}], **spec},
        "status": {"phase": "Pending", "qosClass": "Guaranteed"},
    }  # fmt: skip


def review(
    what: dict[str, Any] | None, operation: str = "CREATE", resource: str = "pods", **request: Any
) -> dict[str, Any]:
    group = "batch" if resource == "jobs" else ""
    kind = {"pods": "Pod", "jobs": "Job"}.get(resource, "Other")
    asked = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": group, "version": "v1", "kind": kind},
        "resource": {"group": group, "version": "v1", "resource": resource},
        "requestKind": {"group": group, "version": "v1", "kind": kind},
        "name": "job-1", "namespace": "platform--acme--vision--00", "operation": operation,
        "userInfo": {"username": "system:serviceaccount:platform:api", "uid": "1", "groups": ["system:authenticated"]},
        "object": what, "oldObject": None, "dryRun": False, "options": {"kind": "CreateOptions"}, **request,
    }  # fmt: skip
    return {"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": asked}


class Webhook:
    def __init__(self, http: TestClient[Any, Any], ledger: Ledger, token: str) -> None:
        self.http = http
        self.ledger = ledger
        self.token = token

    async def post(self, body: object, path: str = "/k8s/admission", token: str | None = None) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"} if token != "" else {}
        async with self.http.post(path, data=io.BytesIO(data), headers=headers) as response:
            answer = json.loads(await response.read())
            if response.status == 200:
                assert response.content_type == "application/json"
                SCHEMA.validate(answer)
            return response.status, answer

    async def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The `response` of the review that comes back."""
        SCHEMA.validate(body)
        status, answer = await self.post(body)
        assert status == 200, answer
        assert (answer["kind"], answer["apiVersion"]) == ("AdmissionReview", "admission.k8s.io/v1")
        response: dict[str, Any] = answer["response"]
        assert response["uid"] == body["request"]["uid"]
        if not response["allowed"]:
            assert response["status"]["code"] not in (404, 409)
            assert response["status"]["message"]
        return response

    async def held(self) -> int:
        assert (await verify(self.ledger))["ok"]
        return (await self.ledger.accounts.balance("acme")).held_micro


@asynccontextmanager
async def webhook(
    client: Client, settings: Settings = SETTINGS, credits_micro: int = 2 * CREDIT
) -> AsyncIterator[Webhook]:
    ledger = Ledger(client, 0)
    presets = {"small": 4_000_000_000, "large": 8_000_000_000}
    await ledger.rates.publish(RatePlan("c", ((0, RateTable(presets, {"vllm": 8_000_000_000})),)))
    await ledger.accounts.grant("acme", credits_micro, key="k", who="test")
    _, token = await ledger.tokens.create("scheduler")
    async with TestClient(TestServer(build_app(ledger, settings))) as http:
        yield Webhook(http, ledger, token)


@pytest.fixture
async def hook(client: Client) -> AsyncIterator[Webhook]:
    async with webhook(client) as hook:
        yield hook


async def test_pods_are_admitted_while_there_are_credits(hook: Webhook) -> None:
    for number in range(2):
        response = await hook.ask(review(pod(uid=f"pod-{number}")))
        assert (response["allowed"], response["auditAnnotations"]["code"]) == (True, "ok")
    refused = await hook.ask(review(pod(uid="pod-9")))
    assert (refused["allowed"], refused["status"]["code"], refused["status"]["reason"]) == (False, 403, "Forbidden")
    assert refused["status"]["message"].startswith("Org acme has no credits left")
    assert await hook.held() == 2 * CREDIT


async def test_the_same_pod_asked_about_again_is_held_once(hook: Webhook) -> None:
    for _ in range(3):
        assert (await hook.ask(review(pod())))["allowed"]
    assert await hook.held() == CREDIT


async def test_a_hold_says_which_source_lists_its_pod(client: Client) -> None:
    platform = ApoloSource(name="a", cluster="c", url="http://127.0.0.1:9", token=Secret("t"))
    sources = (KubernetesSource(name="k", cluster="c"), platform)
    async with webhook(client, replace(SETTINGS, sources=sources), 10 * CREDIT) as hook:
        assert (await hook.ask(review(pod(uid="of-itself"))))["allowed"]
        assert (await hook.ask(review(recreated("of-a-job"))))["allowed"]
        assert (await hook.ask(review(a_job(), resource="jobs")))["allowed"]
        holds: Any = await client.hvals(keys.of_org("acme").holds)
        named = {hold["workload"].split(keys.US)[1]: hold["source"] for hold in map(json.loads, holds)}
        assert named == {"of-itself": "k", "job-1": "a", "job-uid": ""}  # nobody lists Jobs


async def test_a_dry_run_holds_nothing(hook: Webhook) -> None:
    assert (await hook.ask(review(pod(), dryRun=True)))["allowed"]
    assert not (await hook.ask(review(pod(dict(LABELS, **{"platform.apolo.us/org": "nobody"})), dryRun=True)))[
        "allowed"
    ]
    assert await hook.held() == 0


PAYLOADS = Path(__file__).parents[1] / "payloads/kubernetes"
RATE = 4  # credits an hour of preset small
HELD = {
    "pod-of-the-platform": 1.0, "pod-of-a-job": 1.0, "pod-of-a-deployment": 1.0, "pod-by-hand-generated-name": 1.0,
    "job": 2 * RATE * 90 / 3600, "by-hand/job": 2 * RATE * 90 / 3600, "by-hand/pod-of-a-job": 1.0,
} | dict.fromkeys(
    (
        "pod-by-hand-dry-run", "pod-changed", "pod-deleted", "pod-evicted", "pod-bound", "pod-entered", "job-scaled",
        "deployment-scaled", "pod-of-the-system",
    ),
    0.0,
)  # fmt: skip


def payload(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PAYLOADS / f"{name}.json").read_text())
    return found


def test_every_payload_has_its_line() -> None:
    there = {path.relative_to(PAYLOADS).with_suffix("").as_posix() for path in PAYLOADS.rglob("*.json")}
    assert there - {"admission-review-v1.schema"} == HELD.keys()


@pytest.mark.parametrize(("name", "wanted"), HELD.items())
async def test_requests_that_an_api_server_sent(hook: Webhook, name: str, wanted: float) -> None:
    assert (await hook.ask(payload(name)))["allowed"]  # which checks both against the schema
    assert await hook.held() == round(wanted * CREDIT)


@pytest.mark.parametrize("folder", ["", "by-hand/"])
async def test_a_job_as_an_api_server_sends_it_shares_its_hold_with_its_pods(hook: Webhook, folder: str) -> None:
    assert (await hook.ask(payload(f"{folder}job")))["allowed"]
    before = await hook.held()
    assert (await hook.ask(payload(f"{folder}pod-of-a-job")))["allowed"]
    assert await hook.held() == before // 2 + CREDIT  # the pod has no deadline of its own


@pytest.mark.parametrize("operation", ["UPDATE", "DELETE", "CONNECT"])
async def test_only_what_is_created_is_held(hook: Webhook, operation: str) -> None:
    what = None if operation == "DELETE" else pod()
    assert (await hook.ask(review(what, operation)))["allowed"]
    assert await hook.held() == 0


@pytest.mark.parametrize("change", [{"namespace": "kube-system"}, {"subResource": "eviction"}, {"resource": "secrets"}])
async def test_what_is_none_of_ours_passes(hook: Webhook, change: dict[str, Any]) -> None:
    assert (await hook.ask(review(pod({}), **change)))["allowed"]
    assert await hook.held() == 0


def a_job(**spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": LABELS}, "spec": {"restartPolicy": "Never"}}
    return {"metadata": {"name": "j", "uid": "job-uid", "labels": {}}, "spec": {"template": template, **spec}}


async def test_a_jobs_pods_take_over_its_hold(hook: Webhook) -> None:
    assert (await hook.ask(review(a_job(parallelism=2, completions=5), resource="jobs")))["allowed"]
    assert await hook.held() == 2 * CREDIT
    for number in range(2):
        part = pod(uid=f"part-{number}")
        part["metadata"]["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "job-uid"}]
        assert (await hook.ask(review(part)))["allowed"]
    assert await hook.held() == 2 * CREDIT
    assert not (await hook.ask(review(a_job(parallelism=3), resource="jobs")))["allowed"]


async def test_beside_the_platform_the_hold_of_a_jobs_pod_ends_when_the_job_is_charged(client: Client) -> None:
    platform = ApoloSource(name="a", cluster="c", url="http://127.0.0.1:9", token=Secret("t"))
    sources = (KubernetesSource(name="k", cluster="c"), platform)
    async with webhook(client, replace(SETTINGS, sources=sources)) as hook:
        assert (await hook.ask(review(recreated("pod-uid"))))["allowed"]
        other = recreated("other-uid", name="not-the-job")  # it only says that it is of that job
        assert (await hook.ask(review(other)))["allowed"]
        assert await hook.held() == 2 * CREDIT
        holds: Any = await client.hkeys(keys.of_org("acme").hold_of)
        assert {name.decode() for name in holds} == {f"c{keys.US}job-1", f"c{keys.US}other-uid"}


async def test_a_pod_that_calls_itself_a_job_that_runs_pays_for_itself(client: Client) -> None:
    platform = ApoloSource(name="a", cluster="c", url="http://127.0.0.1:9", token=Secret("t"))
    sources = (KubernetesSource(name="k", cluster="c"), platform)
    async with webhook(client, replace(SETTINGS, sources=sources)) as hook:
        assert (await hook.ask(review(recreated("one"))))["allowed"]
        now = hook.ledger.clock()
        runs = Observation("job-1", "job", "acme", "vision", "ann", "small", "", now)
        await Rounds(Books(hook.ledger), Nothing(), 900_000_000).take(Snapshot("s", "c", now + 1, [runs]), None)
        assert await hook.held() == CREDIT  # its next minutes
        again = await hook.ask(review(recreated("two")))
        assert (again["allowed"], again["auditAnnotations"]) == (True, {"code": "ok"})
        assert await hook.held() == CREDIT
        elsewhere = "platform--acme--other--00"
        assert (await hook.ask(review(recreated("copy-1"), namespace=elsewhere)))["allowed"]
        assert await hook.held() == 2 * CREDIT
        assert not (await hook.ask(review(recreated("copy-2"), userInfo={"username": "ann"})))["allowed"]


IDLE: list[dict[str, Any]] = [
    {"suspend": True}, {"suspend": True, "parallelism": 3}, {"parallelism": 0}, {"parallelism": 0, "completions": 5},
    {"completions": 0},
]  # fmt: skip


@pytest.mark.parametrize("spec", IDLE)
@pytest.mark.parametrize("labels", [LABELS, {**LABELS, "platform.apolo.us/org": "nobody"}, {}])
async def test_a_job_that_starts_nothing_yet_passes_and_holds_nothing(
    hook: Webhook, spec: dict[str, Any], labels: dict[str, str]
) -> None:
    job = a_job(**spec)
    job["spec"]["template"]["metadata"]["labels"] = labels
    assert (await hook.ask(review(job, resource="jobs")))["allowed"]
    assert await hook.held() == 0


def changed(before: dict[str, Any], after: dict[str, Any], **request: Any) -> dict[str, Any]:
    return review(after, "UPDATE", "jobs", oldObject=before, **request)


@pytest.mark.parametrize("idle", IDLE)
async def test_a_job_that_is_resumed_is_asked_about_as_a_whole(hook: Webhook, idle: dict[str, Any]) -> None:
    before = a_job(**idle)
    refused = await hook.ask(changed(before, a_job(parallelism=3)))
    assert refused["status"]["message"].startswith("Org acme has 2 credits left; this needs 3 credits to start.")
    assert (await hook.ask(changed(before, a_job(parallelism=2), dryRun=True)))["allowed"]
    assert await hook.held() == 0
    for _ in range(2):
        assert (await hook.ask(changed(before, a_job(parallelism=2))))["allowed"]
    assert await hook.held() == 2 * CREDIT
    part = pod(uid="part")
    part["metadata"]["ownerReferences"] = [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "job-uid"}]
    assert (await hook.ask(review(part)))["allowed"]
    assert await hook.held() == 2 * CREDIT


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"parallelism": 1}, {"parallelism": 3}),
        ({"parallelism": 3}, {"parallelism": 3, "suspend": True}),
        ({"parallelism": 3, "suspend": True}, {"parallelism": 0, "suspend": True}),
        ({"parallelism": 3}, {"parallelism": 0}),
        ({"parallelism": 3}, {"parallelism": 3, "activeDeadlineSeconds": 5}),
    ],
)
async def test_other_changes_of_a_job_pass_and_hold_nothing(
    hook: Webhook, before: dict[str, Any], after: dict[str, Any]
) -> None:
    assert (await hook.ask(changed(a_job(**before), a_job(**after))))["allowed"]
    assert (await hook.ask(changed(a_job(**after), a_job(**after))))["allowed"]
    assert await hook.held() == 0


async def test_a_job_that_is_resumed_is_asked_about_for_what_it_has_left_to_do(hook: Webhook) -> None:
    def half_done(**spec: Any) -> dict[str, Any]:
        return {**a_job(parallelism=4, completions=5, **spec), "status": {"succeeded": 4}}

    assert (await hook.ask(changed(half_done(suspend=True), half_done(suspend=False))))["allowed"]
    assert await hook.held() == CREDIT


async def test_a_deadline_needs_less_and_an_app_its_own_rate(hook: Webhook) -> None:
    assert (await hook.ask(review(pod(activeDeadlineSeconds=90))))["allowed"]
    assert await hook.held() == CREDIT // 10
    app = {**LABELS, "app.kubernetes.io/instance": "mine", "app.kubernetes.io/name": "vllm"}
    assert (await hook.ask(review(pod(app, uid="app"))))["allowed"]
    assert await hook.held() == CREDIT // 10 + CREDIT  # the app's own rate is the instance's


def takes(cpu: str, *more: str) -> list[dict[str, Any]]:
    return [{"name": f"c{n}", "resources": {"limits": {"cpu": one}}} for n, one in enumerate((cpu, *more))]


@pytest.mark.parametrize(
    ("preset", "spec", "held"),
    [
        ("small", {"containers": takes("1")}, 1),
        ("small", {"containers": takes("1", "500m")}, 2),
        ("small", {"containers": takes("1"), "initContainers": takes("2")}, 2),
        ("small", {"containers": takes("64")}, 2),
        ("large", {"containers": takes("64")}, 2),
        ("", {"containers": takes("1")}, 1),
        ("small", {"containers": takes("much")}, 1),
        ("small", {"containers": "none"}, 1),
    ],
)
async def test_a_pod_is_held_for_by_the_preset_that_it_will_be_charged_by(
    client: Client, preset: str, spec: dict[str, Any], held: int
) -> None:
    sizes = (PresetSize(preset="small", cpu=1, memory_gb=4), PresetSize(preset="large", cpu=4, memory_gb=16))
    source = KubernetesSource(name="k", cluster="c", presets=sizes)
    labels = {**LABELS, "platform.apolo.us/preset": preset}
    async with webhook(client, replace(SETTINGS, sources=(source,))) as hook:
        assert (await hook.ask(review(pod(labels, **spec), dryRun=True)))["allowed"]
        assert (await hook.ask(review(pod(labels, **spec))))["allowed"]
        assert await hook.held() == held * CREDIT
        await hook.ledger.accounts.grant("acme", 2 * CREDIT, key="more", who="test")
        job = a_job()
        job["spec"]["template"]["metadata"]["labels"] = labels
        job["spec"]["template"]["spec"] = spec
        assert (await hook.ask(review(job, resource="jobs")))["allowed"]
        assert await hook.held() == 2 * held * CREDIT


async def test_a_pod_that_nobody_pays_for_is_refused_unless_unknown_orgs_are_let_in(client: Client) -> None:
    bare = {name: value for name, value in LABELS.items() if not name.endswith("/org")}
    async with webhook(client) as hook:
        response = await hook.ask(review(pod(bare)))
        assert "platform.apolo.us/org is missing, so nobody could be charged." in response["status"]["message"]
        no_preset = {name: value for name, value in LABELS.items() if not name.endswith("/preset")}
        said = (await hook.ask(review(pod(no_preset))))["status"]["message"]
        assert "/preset is missing, so it is not known what this costs. " in said
    await client.flushall()
    async with webhook(client, replace(SETTINGS, admission=AdmissionSettings(unknown_org="allow"))) as hook:
        assert (await hook.ask(review(pod(bare))))["allowed"]


JOB_LABELS = {**LABELS, "platform.apolo.us/job": "job-1"}


def recreated(uid: str, labels: dict[str, str] | None = None, **meta: Any) -> dict[str, Any]:
    """The pod of a platform's job, which has the job's name each time."""
    made = pod(JOB_LABELS if labels is None else labels, uid=uid)
    made["metadata"] |= meta
    return made


async def types_of(hook: Webhook, count: int) -> list[str]:
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found = await hook.ledger.refusals.read("acme", None, 100)
    return [entry["type"] for entry in found]


async def test_a_job_of_the_platform_that_was_admitted_may_start_anew(hook: Webhook) -> None:
    assert (await hook.ask(review(recreated("one"))))["allowed"]
    assert (await hook.ask(review(pod(uid="other"))))["allowed"]
    for number in range(2):  # however often
        again = await hook.ask(review(recreated(f"again-{number}")))
        assert again["allowed"]
        assert again["warnings"][0].startswith("This was admitted before, so it starts anew all the same. Org acme")
    assert await types_of(hook, 2) == ["exception", "exception"]
    text = await (await hook.http.get("/metrics")).text()
    assert 'credits_admissions_total{decision="exception",reason="no_credits"} 2.0' in text
    assert 'decision="deny"' not in text


@pytest.mark.parametrize(
    "copy",
    [
        {"userInfo": {"username": "ann"}},
        {"namespace": "platform--acme--other--00"},
        {"object": recreated("c", name="job-1-copy")},
        {"object": recreated("c", {**JOB_LABELS, "platform.apolo.us/job": "job-2"})},
        {"object": recreated("c", {**JOB_LABELS, "platform.apolo.us/preset": "large"})},
        {"object": recreated("c", ownerReferences=[{"kind": "ReplicaSet", "uid": "mine", "controller": True}])},
        {"object": a_job(parallelism=2), "resource": "jobs"},
    ],
)
async def test_what_only_looks_like_an_admitted_job_is_refused(hook: Webhook, copy: dict[str, Any]) -> None:
    assert (await hook.ask(review(recreated("one"))))["allowed"]
    assert (await hook.ask(review(pod(uid="other"))))["allowed"]
    resource = copy.pop("resource", "pods")
    assert not (await hook.ask(review(recreated("c"), resource=resource, **copy)))["allowed"]


@pytest.mark.parametrize("change", [{"mode": "shadow"}, {"on_ledger_down": "allow"}])
async def test_only_what_is_paid_for_counts_as_admitted(client: Client, tmp_path: Path, change: dict[str, Any]) -> None:
    settings = replace(SETTINGS, admission=AdmissionSettings(**change), data_dir=tmp_path)
    async with webhook(client, settings, CREDIT // 2) as hook:
        if "on_ledger_down" in change:
            hook.http.server.app[DESK].aftermath.is_away = True  # type: ignore[attr-defined]
        assert (await hook.ask(review(recreated("one"))))["allowed"]
    async with webhook(client, credits_micro=CREDIT // 2) as hook:
        assert not (await hook.ask(review(recreated("two"))))["allowed"]


async def test_shadow_warns(client: Client) -> None:
    async with webhook(client, replace(SETTINGS, admission=AdmissionSettings(mode="shadow")), 1) as hook:
        response = await hook.ask(review(pod()))
        assert (response["allowed"], "would be refused" in response["warnings"][0]) == (True, True)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"request":' * 5_000,
        b'{"a":' + b"[" * 100_000,
        json.dumps({**V1, "apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "1"}}).encode(),
        json.dumps(V1).encode(),
        json.dumps({"kind": "Pod", "apiVersion": "v1"}).encode(),
        json.dumps({**V1, "request": {"uid": 5}}).encode(),
    ],
)  # fmt: skip
async def test_garbage_is_a_400(hook: Webhook, body: bytes) -> None:
    status, problem = await hook.post(body)
    assert (status, problem["code"]) == (400, "not_a_review")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"uid": 5}, "request.uid: expected a text, not a whole number"),
        ({"uid": "1", "dryRun": "no"}, "request.dryRun: expected true or false or null, not a text"),
        (
            {"uid": "1", "object": {"spec": {"activeDeadlineSeconds": 1.5}}},
            "request.object.spec.activeDeadlineSeconds: expected a whole number or null, not a number",
        ),
    ],
)
async def test_the_field_of_a_review_that_is_wrong_is_named(hook: Webhook, request_: Any, field: str) -> None:
    _, problem = await hook.post(json.dumps({**V1, "request": request_}).encode())
    assert problem["detail"] == f"This is no AdmissionReview: {field}"


@pytest.mark.parametrize(
    "what",
    [
        None,
        {},
        pod({"platform.apolo.us/org": "a\u0000b"}),
        pod({"platform.apolo.us/org": "x" * 5000}),
        a_job(parallelism=-1),
    ],
)
async def test_objects_that_cannot_be_are_refused_in_a_review(hook: Webhook, what: Any) -> None:
    resource = "jobs" if what and "template" in what.get("spec", {}) else "pods"
    assert not (await hook.ask(review(what, resource=resource)))["allowed"]


async def test_three_megabytes_are_read_and_more_is_not(hook: Webhook) -> None:
    big = pod()
    big["metadata"]["annotations"] = {"big": "x" * (3 * 1024 * 1024 - 4096)}
    assert (await hook.ask(review(big)))["allowed"]
    status, problem = await hook.post(b" " * (4 * 1024 * 1024))
    assert (status, problem["code"]) == (400, "not_a_review")
    assert "larger than" in problem["detail"]


@asynccontextmanager
async def in_namespaces(client: Client, api: KubeApi, **admission: Any) -> AsyncIterator[Webhook]:
    """A webhook that can ask for the labels of namespaces; org rich has credits."""
    async with api.serve() as url:
        source = KubernetesSource(name="k", cluster="c", url=url)
        settings = replace(SETTINGS, sources=(source,), admission=AdmissionSettings(**admission))
        async with webhook(client, settings, CREDIT // 2) as hook:
            await hook.ledger.accounts.grant("rich", 100 * CREDIT, key="r", who="test")
            yield hook


async def named(api: KubeApi, org: str, project: str = "vision") -> None:
    labels = {"platform.apolo.us/org": org, "platform.apolo.us/project": project}
    await api.put("namespaces", {"metadata": {"name": "platform--acme--vision--00", "labels": labels}})


async def test_whoever_the_pod_says_pays_its_namespace_does(client: Client) -> None:
    api = KubeApi()
    await named(api, "acme")
    async with in_namespaces(client, api) as hook:
        claims = {**LABELS, "platform.apolo.us/org": "rich"}
        at_once = (hook.ask(review(pod(claims, uid=f"pod-{number}"))) for number in range(20))
        for refused in [*await asyncio.gather(*at_once), await hook.ask(review(pod(claims, uid="later")))]:
            assert not refused["allowed"]
            assert refused["status"]["message"].startswith("Org acme has 0.5 credits left")
        assert (await hook.ledger.accounts.balance("rich")).held_micro == 0
    assert api.faults.count("GET", "/namespaces/platform--acme--vision--00") == 1  # remembered for a minute


async def test_a_namespace_says_whose_a_pod_without_labels_is_and_names_are_those_of_the_pod(client: Client) -> None:
    api = KubeApi()
    await named(api, "rich", "big-team")
    async with in_namespaces(client, api) as hook:
        bare = {name: value for name, value in LABELS.items() if not name.endswith(("/org", "/project"))}
        assert (await hook.ask(review(pod(bare))))["allowed"]
        full = {**bare, "platform.apolo.us/org": "Rich", "platform.apolo.us/project": "Big Team"}
        refused = await hook.ask(review(pod(full, uid="two")))
        assert "no org 'Rich'" in refused["status"]["message"]  # the same name, in full


@pytest.mark.parametrize("fault", [Fault("/namespaces/", 403), Fault("/namespaces/", silent=True)])
async def test_where_namespaces_cannot_be_read_pods_are_taken_at_their_word_in_time(
    client: Client, fault: Fault
) -> None:
    api = KubeApi()
    await named(api, "acme")
    api.faults.add(fault)
    async with in_namespaces(client, api, decision_seconds=0.8) as hook:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(5):
            claims = {**LABELS, "platform.apolo.us/org": "rich"}
            assert (await hook.ask(review(pod(claims, uid=f"pod-{number}"))))["allowed"]
        assert loop.time() - start < 2
    assert api.faults.count("GET", "/namespaces/") == 1


@pytest.mark.parametrize("name", ["../../v1/secrets", "a/../../../version", "..", "A?b=c", "x" * 64, "-", ""])
async def test_what_is_no_namespace_is_not_asked_for_and_keeps_nobody_from_asking(client: Client, name: str) -> None:
    api = KubeApi()
    await named(api, "acme")
    async with in_namespaces(client, api) as hook:
        claims = {**LABELS, "platform.apolo.us/org": "rich"}
        await hook.post(review(pod(claims), namespace=name))
        assert api.faults.count("GET", "/") == 0
        refused = await hook.ask(review(pod(claims, uid="two")))
        assert refused["status"]["message"].startswith("Org acme has 0.5 credits left")


@pytest.mark.parametrize("path", ["/", "/c/t/more", "//", "/c/", "/no/such/path/at/all"])
async def test_a_path_that_is_none_is_a_400(hook: Webhook, path: str) -> None:
    for body in (b"", json.dumps(review(pod())).encode()):
        status, problem = await hook.post(body, f"/k8s/admission{path}")
        assert (status, problem["code"]) == (400, "not_a_review")


async def test_only_an_api_server_that_shows_who_it_is_is_answered(hook: Webhook) -> None:
    body = review(pod())
    assert (await hook.post(body, token=""))[0] == 401
    assert (await hook.post(body, token="act_x"))[0] == 401
    _, viewer = await hook.ledger.tokens.create("viewer", "acme")
    assert (await hook.post(body, token=viewer))[0] == 401
    status, answer = await hook.post(body, f"/k8s/admission/c/{hook.token}", token="")
    assert (status, answer["response"]["allowed"]) == (200, True)
    status, answer = await hook.post(body, f"/k8s/admission/other/{hook.token}", token="")
    assert (status, answer["response"]["status"]["code"]) == (200, 400)


async def test_an_unknown_preset_is_named_with_a_near_miss(hook: Webhook) -> None:
    response = await hook.ask(review(pod({**LABELS, "platform.apolo.us/preset": "smal"})))
    assert "Did you mean small?" in response["status"]["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"uid": 5}, {"allowed": "yes"}, {"allowed": None}, {"reason": "x"}, {"warnings": "x"}, {"warnings": ["a\nb"]},
        {"warnings": ["x" * 257]}, {"auditAnnotations": {"a/b": "c"}}, {"auditAnnotations": {"a": 1}},
        {"status": {"code": "403"}}, {"status": {"reason": "no_credits"}}, {"patch": "W10="},
    ],
)  # fmt: skip
def test_the_schema_finds_what_an_api_server_would_not_take(change: dict[str, Any]) -> None:
    SCHEMA.validate({**V1, "response": {"uid": "u", "allowed": True}})
    with pytest.raises(ValidationError):
        SCHEMA.validate({**V1, "response": {"uid": "u", "allowed": True, **change}})
