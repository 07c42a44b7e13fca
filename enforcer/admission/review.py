"""AdmissionReview v1: what of it counts here, and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from api.explain import explain
from config.kubernetes_rules import place
from config.preset_sizes import Container, FittingPresets, Size, pod_size
from config.sources import KubernetesSource
from ledger.admission_request import COUNT_MAX, AdmissionRequest
from ledger.names import is_name

API_VERSION: Final = "admission.k8s.io/v1"
_WARNING_MAX: Final = 240
_REASONS: Final = {400: "BadRequest", 403: "Forbidden", 500: "InternalError"}


class NotAReview(ValueError):
    """What came is not an AdmissionReview v1; the text says why."""


class _Kind(msgspec.Struct):
    group: str = ""
    kind: str = ""


class _Resource(msgspec.Struct):
    group: str = ""
    resource: str = ""


class _User(msgspec.Struct):
    username: str = ""


class _Owner(msgspec.Struct):
    kind: str = ""
    uid: str = ""
    controller: bool | None = None


class _Meta(msgspec.Struct, rename="camel"):
    uid: str | None = None
    name: str | None = None
    labels: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None


_NOTHING: Final = msgspec.Raw(b"null")


class _PodSpec(msgspec.Struct, rename="camel"):
    # Read only where presets have sizes.
    containers: msgspec.Raw = _NOTHING
    init_containers: msgspec.Raw = _NOTHING

    def size(self) -> Size | None:
        """What the pod takes, None where it is written in no way that can be."""
        try:
            return pod_size(_read_containers(self.containers), _read_containers(self.init_containers))
        except (msgspec.MsgspecError, ValueError):
            return None


class _Template(msgspec.Struct):
    metadata: _Meta | None = None
    spec: _PodSpec | None = None


class _Spec(_PodSpec, rename="camel"):
    active_deadline_seconds: int | None = None
    parallelism: int | None = None
    completions: int | None = None
    suspend: bool | None = None
    template: _Template | None = None


class _Status(msgspec.Struct):
    succeeded: int | None = None


class _Object(msgspec.Struct):
    metadata: _Meta | None = None
    spec: _Spec | None = None
    status: _Status | None = None


class ReviewRequest(msgspec.Struct, rename="camel"):
    """What the API server asks about. `object` is None for a deletion, `old_object` for a creation."""

    uid: str
    operation: str = ""
    kind: _Kind | None = None
    resource: _Resource | None = None
    sub_resource: str | None = None
    namespace: str | None = None
    name: str | None = None
    dry_run: bool | None = None
    user_info: _User | None = None
    object: _Object | None = None
    old_object: _Object | None = None

    @property
    def what(self) -> str:
        """`pods`, `jobs`, ...: the resource, empty where it is not said."""
        return self.resource.resource if self.resource is not None else ""

    @property
    def who(self) -> str:
        return self.user_info.username[:253] if self.user_info is not None else ""


class _Review(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    request: ReviewRequest | None = None


class Work(msgspec.Struct, frozen=True):
    """A pod or job that wants to start. `missing`: a label that is not there.

    `identity`: what a start of the same job anew has in common with the first, and no other pod: () where there is
    no such thing. Its user writes labels, but neither chooses who makes it nor has two pods of a name.
    `pod`: its own id, where it is asked about by that of the platform's job.
    """

    request: AdmissionRequest
    missing: str = ""
    identity: tuple[str, ...] = ()
    pod: str = ""


def parse_review(data: bytes) -> ReviewRequest:
    """Raises: NotAReview."""
    try:
        review = msgspec.json.decode(data, type=_Review)
    except msgspec.ValidationError as error:
        raise NotAReview(f"This is no AdmissionReview: {explain(str(error), _Review)}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotAReview(f"The body is not JSON: {error}") from error
    if review.kind != "AdmissionReview" or review.api_version != API_VERSION:
        raise NotAReview(f"This takes an AdmissionReview of {API_VERSION}.")
    if review.request is None or not review.request.uid:
        raise NotAReview("The AdmissionReview has no request with a uid.")
    return review.request


def passes(review: ReviewRequest, settings: KubernetesSource) -> str | None:
    """Why a request is nothing to be paid for, None where it may be. Raises: NotAReview for an impossible job."""
    if review.what not in ("pods", "jobs") or review.sub_resource:
        return "neither a pod nor a job"
    is_resumed = review.operation == "UPDATE" and review.what == "jobs" and _pods_of(review.old_object) == 0
    if review.operation != "CREATE" and not is_resumed:
        return "only what is created or resumed is checked"
    if review.namespace in settings.skip_namespaces:
        return "a namespace of the system"
    if review.what == "jobs" and _pods_of(review.object) == 0:
        return "a job that starts nothing yet"
    return None


def work_of(
    review: ReviewRequest, settings: KubernetesSource, sizes: FittingPresets, owner: tuple[str, str] = ("", ""),
    *, by_job: bool = False,
) -> Work:  # fmt: skip
    """The pod or job as the meter would see it: same labels, same id, same preset.

    `owner`: org and project by the labels of its namespace, as far as they are known. `by_job`: a pod that has the name
    of the platform's job is that job to the meter.

    Raises: NotAReview for an object that cannot be one.
    """
    if review.object is None:
        raise NotAReview(f"The request about {review.what} has no object.")
    meta, spec = review.object.metadata or _Meta(), review.object.spec or _Spec()
    labels = dict(meta.labels or {})
    is_job = review.what == "jobs"
    if is_job and spec.template is not None and spec.template.metadata is not None:
        labels |= spec.template.metadata.labels or {}
    rules = settings.labels
    org, _ = place(_labelled(labels, rules.org), owner[0])
    project, _ = place(_labelled(labels, rules.project), owner[1])
    job, instance = _labelled(labels, rules.job), _labelled(labels, rules.app)
    app = "" if job or not instance else labels.get("app.kubernetes.io/name") or instance
    preset = _labelled(labels, rules.preset)
    if sizes:
        pod = (spec.template.spec if spec.template is not None else None) if is_job else spec
        found = sizes.find(preset, pod.size() if pod is not None else None)
        preset = found[0] if found is not None else ""
    name = job if by_job and job and job == meta.name and not is_job else meta.uid
    seconds = spec.active_deadline_seconds
    owners = meta.owner_references or ()
    its_job = next((one.uid for one in owners if one.kind == "Job" and one.uid), None)
    asked = AdmissionRequest(
        cluster=settings.cluster, org=org, project=project,
        user=_labelled(labels, rules.user).replace("--", "/"), kind="app" if app else "job",
        preset=preset or None, app=app or None, workload_id=name or None,
        max_runtime_us=seconds * 1_000_000 if seconds is not None and 0 < seconds < 10**9 else None,
        count=(_pods_of(review.object) or 1) if is_job else 1, dry_run=bool(review.dry_run), owner=its_job,
        bills_app=not preset,
    )  # fmt: skip
    for text in (asked.org, asked.project, asked.user, asked.preset, asked.app, asked.workload_id, asked.owner):
        if text and not is_name(text):
            raise NotAReview(f"A label or id is not a name: {text[:60]!r}")
    missing = (
        rules.org[0] if not org and rules.org else rules.preset[0] if not preset and not app and rules.preset else ""
    )
    identity: tuple[str, ...] = ()
    if job and meta.name and not is_job:
        maker = next((one.uid for one in owners if one.controller), "")
        identity = (
            settings.cluster, review.namespace or "", review.who, maker, meta.name, job, asked.project, asked.user,
            asked.preset or "", asked.app or "",
        )  # fmt: skip
    return Work(asked, missing, identity, (meta.uid or "") if name != meta.uid else "")


def review_answer(
    uid: str,
    allowed: bool,
    message: str = "",
    code: int = 403,
    warnings: Sequence[str] = (),
    noted: Mapping[str, str] | None = None,
) -> bytes:
    """The AdmissionReview that goes back. `code`: 400, 403 or 500; `noted`: for the API server's audit log."""
    response: dict[str, Any] = {"uid": uid, "allowed": allowed}
    if not allowed:
        response["status"] = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": _REASONS[code], "code": code,
        }  # fmt: skip
    if warnings:
        response["warnings"] = [warning[:_WARNING_MAX] for warning in warnings]
    if noted:
        response["auditAnnotations"] = dict(noted)
    return msgspec.json.encode({"kind": "AdmissionReview", "apiVersion": API_VERSION, "response": response})


def _read_containers(raw: msgspec.Raw) -> list[Container]:
    return msgspec.json.decode(raw, type=list[Container] | None) or []


def _labelled(labels: Mapping[str, str], names: Sequence[str]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")


def _pods_of(job: _Object | None) -> int | None:
    """How many pods of a job run at once, 0 while it is suspended or has none left to run; None: there is no job.

    Raises: NotAReview.
    """
    if job is None:
        return None
    spec = job.spec or _Spec()
    count = 1 if spec.parallelism is None else spec.parallelism
    if spec.completions is not None:
        done = 0 if job.status is None else job.status.succeeded or 0
        count = min(count, max(0, spec.completions - done)) if spec.completions >= 0 else -1
    if not 0 <= count <= COUNT_MAX:
        raise NotAReview(f"A job of {count} pods at once cannot be checked; expected 0 to {COUNT_MAX}.")
    return 0 if spec.suspend else count
