"""Records what a real API server asks of a webhook: `python -m tests.kubernetes_reviews` writes them anew.

Each is one AdmissionReview as it was sent, parsed and indented, all keys in their order. Nothing is replaced: names and
ids are those of a cluster that was made for it and is gone, without nodes, in which `kubectl`, service accounts and the
controllers were at work.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.kubernetes_lab import NODE, Body, KubernetesLab
from tests.kubernetes_programs import missing_programs
from tests.kubernetes_site import labels, recorded
from tests.slurm_lab import wait_until

PAYLOADS = Path(__file__).parent / "payloads" / "kubernetes"
NAMESPACE = "platform--acme--vision--0123456789abcdef01234567"
JOB = "job-0b5b7a52-0f7e-4a10-8d0e-000000000001"
"""A job of the platform, and its pod."""


def container(cpu: str = "4", memory: str = "16Gi") -> Body:
    size = {"cpu": cpu, "memory": memory}
    return {
        "name": "main", "image": "registry.example/train:1", "command": ["python", "train.py"],
        "resources": {"limits": size, "requests": size},
    }  # fmt: skip


def pod(name: str, **more: Any) -> Body:
    meta = {"namespace": NAMESPACE, "labels": labels("acme"), **more.pop("metadata", {})}
    meta |= {"name": name} if name else {}
    spec = {"restartPolicy": "Never", "containers": [container()], **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def template(name: str, **more: Any) -> Body:
    return {"metadata": {"labels": labels("acme", made_by=name)}, "spec": {"containers": [container()], **more}}


def record(kube: KubernetesLab, base: Path) -> dict[str, Body]:
    """File name -> review. The lab is to be a new one."""
    kube.add_namespace(NAMESPACE, {"platform.apolo.us/org": "acme", "platform.apolo.us/project": "vision"})
    kube.add_namespace("platform", {})
    kube.kubectl("create", "serviceaccount", "platform-api", "-n", "platform")
    rights = ("--clusterrole=system:aggregate-to-edit", "--serviceaccount=platform:platform-api")
    kube.kubectl("create", "clusterrolebinding", "platform", *rights)
    found: dict[str, Body] = {}
    with recorded(base / "recorder", kube, NAMESPACE, "kube-system") as reviews:

        def keep(name: str, told: Callable[[Body], bool]) -> None:
            """The first review that is as told."""
            wait_until(name, lambda: any(told(one["request"]) for one in reviews), 30)
            found[name] = next(one for one in reviews if told(one["request"]))
            reviews.clear()

        def of(operation: str, resource: str, part: str = "", by: str = "") -> Callable[[Body], bool]:
            def told(request: Body) -> bool:
                its = request["operation"], request["resource"]["resource"], request.get("subResource", "")
                return its == (operation, resource, part) and by in request["userInfo"]["username"]

            return told

        def create(body: Body, *options: str) -> None:
            kube.kubectl("create", *options, "-f", "-", given=json.dumps(body))

        job_label = {**labels("acme"), "platform.apolo.us/job": JOB}
        kube.call(
            "POST", f"api/v1/namespaces/{NAMESPACE}/pods", pod(JOB, metadata={"labels": job_label}),
            token=kube.token_of("platform-api", "platform"),
        )  # fmt: skip
        keep("pod-of-the-platform", of("CREATE", "pods", by="platform-api"))

        spec: Body = {"parallelism": 2, "completions": 8, "activeDeadlineSeconds": 90}
        spec["template"] = template("sweep", restartPolicy="Never")
        meta = {"name": "sweep", "namespace": NAMESPACE}
        create({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})
        wait_until("the job's pod", lambda: any(map(of("CREATE", "pods"), [one["request"] for one in reviews])), 30)
        found["job"] = next(one for one in reviews if of("CREATE", "jobs")(one["request"]))
        keep("pod-of-a-job", of("CREATE", "pods", by="job-controller"))
        wait_until("the job runs", lambda: "active" in kube.get("jobs", NAMESPACE, "sweep")["status"], 30)
        kube.kubectl("patch", "job", "sweep", "-n", NAMESPACE, "-p", '{"spec": {"parallelism": 3}}')
        keep("job-scaled", of("UPDATE", "jobs", by="kubernetes-admin"))

        spec = {"replicas": 1, "selector": {"matchLabels": {"made_by": "web"}}, "template": template("web")}
        meta = {"name": "web", "namespace": NAMESPACE}
        create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
        keep("pod-of-a-deployment", of("CREATE", "pods", by="replicaset-controller"))
        kube.kubectl("scale", "deployment", "web", "-n", NAMESPACE, "--replicas=2")
        keep("deployment-scaled", of("UPDATE", "deployments", "scale"))

        create(pod("by-hand"), "--dry-run=server")
        keep("pod-by-hand-dry-run", of("CREATE", "pods", by="kubernetes-admin"))
        create(pod("", metadata={"generateName": "by-hand-"}))
        keep("pod-by-hand-generated-name", of("CREATE", "pods", by="kubernetes-admin"))
        create(pod("by-hand"))
        reviews.clear()
        kube.bind(NAMESPACE, "by-hand")
        keep("pod-bound", of("CREATE", "pods", "binding"))
        kube.kubectl("label", "pod", "by-hand", "-n", NAMESPACE, "checked=yes")
        keep("pod-changed", of("UPDATE", "pods"))
        kube.tried("exec", "by-hand", "-n", NAMESPACE, "--", "true")  # there is no node to do it
        keep("pod-entered", of("CONNECT", "pods", "exec"))
        eviction: Body = {"apiVersion": "policy/v1beta1", "kind": "Eviction"}
        eviction["metadata"] = {"name": "by-hand", "namespace": NAMESPACE}
        kube.call("POST", f"api/v1/namespaces/{NAMESPACE}/pods/by-hand/eviction", eviction)
        keep("pod-evicted", of("CREATE", "pods", "eviction"))
        kube.kubectl("delete", "pod", JOB, "-n", NAMESPACE, "--wait=false")
        keep("pod-deleted", of("DELETE", "pods"))
        create(pod("of-the-system", metadata={"namespace": "kube-system", "labels": {}}))
        keep("pod-of-the-system", lambda request: request["namespace"] == "kube-system")
    return found


def shape(value: Any) -> set[str]:
    """Which keys there are, all the way down; lists count by what is in them. What differs in each cluster does not."""
    if isinstance(value, list):
        return {f"[]{inner}" for one in value for inner in shape(one)} or {"[]"}
    if not isinstance(value, dict):
        return {f": {type(value).__name__}"}
    return {
        f".{key}{inner}"
        for key, one in value.items()
        if key not in ("fieldsV1", "managedFields", "extra")
        for inner in shape(one)
    }


def main() -> None:
    """Writes the files."""
    if reason := missing_programs():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="kubernetes-") as folder:
        kube = KubernetesLab(Path(folder) / "kube")
        try:
            found = record(kube.start(), Path(folder))
        finally:
            kube.stop()
    for name, review in found.items():
        text = json.dumps(review, indent=1) + "\n"
        assert socket.gethostname() not in text.replace(NODE, "")
        (PAYLOADS / f"{name}.json").write_text(text)
        print(name)


if __name__ == "__main__":
    main()
