"""A real Kubernetes control plane for tests: etcd, API server and controllers, on free ports of the loopback.

There are no nodes: where a pod is and what becomes of its containers is told by the test, in the words of a kubelet.
`KubernetesLab(base).start()`, then `kubectl`, `call`, `run_pod`; `stop()` ends everything. The programs are those
that deploy/test-kubernetes.sh has built.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from enforcer.admission.webhook_config import make_pair
from tests.kubernetes_programs import programs
from tests.servers import TiedProcess
from tests.slurm_lab import free_ports, wait_until
from tests.standins.kube_api import running, terminated

Body = dict[str, Any]
ADMIN = "admin-of-the-lab"
NODE = "node-1"
CONTROLLERS = (
    "deployment", "replicaset", "statefulset", "job", "disruption", "garbagecollector", "namespace", "resourcequota",
    "serviceaccount", "serviceaccount-token", "root-ca-cert-publisher", "persistentvolume-binder",
)  # fmt: skip
"""Not those that look after nodes, of which there are none."""
_AUDIT = {
    "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}  # fmt: skip
_DOCUMENT = Path(__file__).parents[1] / "docs" / "kubernetes.md"
_BLOCK = re.compile(r"```yaml\n(apiVersion: .*?)```", re.DOTALL)


def documented_rights() -> list[Body]:
    """The roles and accounts of docs/kubernetes.md, for the exporter and for the enforcer."""
    found = [one for block in _BLOCK.findall(_DOCUMENT.read_text()) for one in yaml.safe_load_all(block)]
    of_exporter = [one for one in found if one["kind"] in ("ServiceAccount", "ClusterRoleBinding")]
    again = json.loads(json.dumps(of_exporter).replace("credits-exporter", "credits-enforcer"))  # "and the same for"
    return [*found, *again]


class Refused(Exception):
    """The API server said no; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status} {message}")
        self.status = status


class KubernetesLab:
    """One cluster. Its administrator shows the token `ADMIN`; accounts have rights by RBAC."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._etcd, peer, self._port, controllers = free_ports(4)
        self._peer, self._controllers = peer, controllers
        self.url = f"https://127.0.0.1:{self._port}"
        self.ca = base / "tls" / "tls.crt"
        self._processes: dict[str, TiedProcess] = {}

    def start(self) -> KubernetesLab:
        """Everything up, with the rights that the documentation says."""
        self.base.mkdir(parents=True, exist_ok=True)
        make_pair(self.base / "tls", ["127.0.0.1", "kubernetes.default.svc"])
        subprocess.run(
            ["openssl", "genrsa", "-out", str(self.base / "accounts.key"), "2048"], check=True, capture_output=True
        )
        (self.base / "tokens.csv").write_text(f'{ADMIN},kubernetes-admin,admin,"system:masters"\n')
        (self.base / "audit.yaml").write_text(yaml.safe_dump(_AUDIT))
        self._trust = ssl.create_default_context(cafile=str(self.ca))
        (self.base / "kubeconfig").write_text(yaml.safe_dump(self._kubeconfig(ADMIN)))
        self._start_etcd()
        self.start_api()
        self._start_controllers()
        self.apply({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "credits"}}, *documented_rights())
        return self

    def stop(self) -> None:
        for process in reversed(self._processes.values()):
            process.end(signal.SIGKILL)

    def start_api(self) -> None:
        """The API server, until it is ready."""
        keys = str(self.base / "accounts.key")
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd}", "--bind-address=127.0.0.1",
            f"--secure-port={self._port}", f"--tls-cert-file={self.ca}",
            f"--tls-private-key-file={self.base / 'tls' / 'tls.key'}", f"--token-auth-file={self.base / 'tokens.csv'}",
            "--authorization-mode=RBAC", "--anonymous-auth=false", "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={keys}",
            f"--service-account-signing-key-file={keys}", "--feature-gates=BoundServiceAccountTokenVolume=true",
            # It forgets old versions when the test says so.
            "--etcd-compaction-interval=0", "--allow-privileged=true", "--profiling=false",
            f"--audit-policy-file={self.base / 'audit.yaml'}", f"--audit-log-path={self.base / 'audit.log'}",
        )  # fmt: skip
        wait_until("the API server is ready", self._is_ready, 60)

    def end_api(self) -> None:
        """As if its machine had failed."""
        self._processes.pop("kube-apiserver").end(signal.SIGKILL)

    def compact(self) -> None:
        """etcd forgets all versions but the present ones."""
        key = base64.b64encode(b"compact").decode()
        found = self._ask_etcd("kv/range", {"key": key})
        self._ask_etcd("kv/compaction", {"revision": found["header"]["revision"], "physical": True})

    def version(self) -> str:
        return str(self.call("GET", "version")["gitVersion"])

    def call(
        self, method: str, path: str, body: object = None, kind: str = "application/json", token: str = ADMIN
    ) -> Any:
        """The answer to one request. Raises: Refused."""
        request = urllib.request.Request(f"{self.url}/{path}", method=method)
        request.add_header("Authorization", f"Bearer {token}")
        request.add_header("Content-Type", kind)
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=30, context=self._trust) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from None

    def audited(self, verb: str, resource: str) -> list[Body]:
        """The API server's own log of requests about a resource, oldest first."""
        lines = (self.base / "audit.log").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [one for one in found if (one["verb"], one.get("objectRef", {}).get("resource")) == (verb, resource)]

    def token_of(self, account: str, namespace: str = "credits") -> str:
        """A token of a service account."""
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        made = self.call("POST", f"api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", asked)
        return str(made["status"]["token"])

    def tried(
        self, *arguments: str, given: str | None = None, token: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A call of kubectl and how it ended. `token`: whose, if not the administrator's."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.base), "KUBECONFIG": str(self.base / "kubeconfig")}
        return subprocess.run(
            [str(programs() / "kubectl"), *(["--token", token] if token else []), *arguments],
            env=environment, input=given, text=True, capture_output=True, timeout=60,
        )  # fmt: skip

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What kubectl says, where it has to succeed."""
        done = self.tried(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def apply(self, *objects: Body) -> str:
        return self.kubectl("apply", "-f", "-", given=yaml.safe_dump_all(objects))

    def get(self, plural: str, namespace: str, name: str = "", *more: str) -> Any:
        """One object, or all of a namespace."""
        found = json.loads(self.kubectl("get", plural, *([name] if name else []), "-n", namespace, "-o", "json", *more))
        return found if name else found["items"]

    def events(self, namespace: str, reason: str) -> list[str]:
        """What events of one reason say."""
        return [event["message"] for event in self.get("events", namespace) if event["reason"] == reason]

    def add_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        """A namespace in which pods can be made, which takes its default account."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}})
        wait_until(
            f"{name} has its account",
            lambda: self.tried("get", "serviceaccount", "default", "-n", name).returncode == 0,
        )

    def bind(self, namespace: str, name: str) -> None:
        """What the scheduler does."""
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        self.call("POST", f"api/v1/namespaces/{namespace}/pods/{name}/binding", binding)

    def run_pod(self, namespace: str, name: str, since_us: int) -> None:
        """It is placed, and its containers start."""
        self.bind(namespace, name)
        self.tell(namespace, name, "Running", running(since_us))

    def tell(self, namespace: str, name: str, phase: str, state: Body, restarts: int = 0, **more: Body) -> None:
        """What a kubelet reports of a pod, all of whose containers are alike. `last`: their state before."""
        pod = self.call("GET", f"api/v1/namespaces/{namespace}/pods/{name}")
        statuses = [
            {
                "name": container["name"], "image": container["image"], "imageID": "", "ready": "running" in state,
                "restartCount": restarts, "state": state, "lastState": more.get("last", {}),
            }
            for container in pod["spec"]["containers"]
        ]  # fmt: skip
        ready = {"type": "Ready", "status": "True" if "running" in state else "False"}
        status = {"phase": phase, "conditions": [ready], "containerStatuses": statuses}
        self.call(
            "PATCH", f"api/v1/namespaces/{namespace}/pods/{name}/status", {"status": status},
            "application/merge-patch+json",
        )  # fmt: skip

    def end_pod(self, namespace: str, name: str, since_us: int, until_us: int, phase: str = "Succeeded") -> None:
        """Its containers end."""
        self.tell(namespace, name, phase, terminated(since_us, until_us, 0 if phase == "Succeeded" else 1))

    def remove_pod(self, namespace: str, name: str) -> None:
        """What a kubelet does in the end with a pod that is to be deleted."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        self.call("DELETE", f"api/v1/namespaces/{namespace}/pods/{name}", options)

    def _start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self._etcd}", f"http://127.0.0.1:{self._peer}"
        self._run(
            "etcd", f"--data-dir={self.base / 'etcd'}", f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}", "--unsafe-no-fsync",
            "--log-level=error",
        )  # fmt: skip
        wait_until("etcd answers", self._etcd_answers, 30)

    def _start_controllers(self) -> None:
        self._run(
            "kube-controller-manager", f"--kubeconfig={self.base / 'kubeconfig'}",
            f"--controllers={','.join(CONTROLLERS)}", "--leader-elect=false", "--bind-address=127.0.0.1", "--port=0",
            f"--secure-port={self._controllers}", f"--cert-dir={self.base / 'controllers'}",
            f"--service-account-private-key-file={self.base / 'accounts.key'}", f"--root-ca-file={self.ca}",
            "--use-service-account-credentials=true", "--pvclaimbinder-sync-period=1s",
            "--feature-gates=BoundServiceAccountTokenVolume=true", "--profiling=false",
        )  # fmt: skip

    def _run(self, program: str, *arguments: str) -> None:
        self._processes[program] = TiedProcess(
            str(programs() / program), *arguments, cwd=self.base, log=self.base / f"{program}.log"
        )

    def _is_ready(self) -> bool:
        assert self._processes["kube-apiserver"].alive(), (self.base / "kube-apiserver.log").read_text()[-3000:]
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {ADMIN}"})
        try:
            urllib.request.urlopen(request, timeout=5, context=self._trust).close()
        except OSError:
            return False
        return True

    def _etcd_answers(self) -> bool:
        assert self._processes["etcd"].alive(), (self.base / "etcd.log").read_text()[-3000:]
        try:
            self._ask_etcd("maintenance/status", {})
        except OSError:
            return False
        return True

    def _ask_etcd(self, path: str, body: object) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self._etcd}/v3/{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def _kubeconfig(self, token: str) -> Body:
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": self.url, "certificate-authority": str(self.ca)}}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}],
        }  # fmt: skip


def names_of(objects: list[Body]) -> list[str]:
    return [one["metadata"]["name"] for one in objects]
