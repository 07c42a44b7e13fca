"""A real Kubernetes whose work is paid for in credits: the webhook, exporter and enforcer as processes.

Beside it an API server's requests can be recorded: a second webhook that is asked about everything and allows it.
"""

from __future__ import annotations

import json
import ssl
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from config.sources import KubernetesSource
from enforcer.admission.webhook_config import make_pair, webhook_configuration
from tests.cli_lab import Lab
from tests.kubernetes_lab import Body, KubernetesLab
from tests.slurm_lab import free_ports
from tests.slurm_site import Service

CLUSTER = "kube"
RATES = {"small": "36", "large": "360.000001001"}
"""Credits an hour: `small` is a hundredth a second."""
SERVICE_ACCOUNT = "credits-site"
"""Exporter and enforcer share their settings here, so they show one token, with the rights of both."""


def labels(org: str, project: str = "vision", user: str = "ann", preset: str = "small", **more: str) -> dict[str, str]:
    """Labels of a pod."""
    prefix = "platform.apolo.us/"
    return {f"{prefix}org": org, f"{prefix}project": project, f"{prefix}user": user, f"{prefix}preset": preset, **more}


@dataclass
class Site:
    """A cluster whose pods and volumes are paid for in credits."""

    kube: KubernetesLab
    desk: Lab
    """Where an administrator types `credits`."""
    exporter: Service
    enforcer: Service
    admin: str
    """A token."""

    def org(self, name: str, granted: str) -> str:
        """A namespace whose org has so many credits; its name is the org's."""
        self.kube.add_namespace(name, {"platform.apolo.us/org": name})
        self.desk.ok("grant", name, granted)
        return name

    def ask(self, path: str) -> Any:
        """The enforcer's answer to an administrator."""
        request = urllib.request.Request(f"{self.enforcer.url}/v1/{path}")
        request.add_header("Authorization", f"Bearer {self.admin}")
        with urllib.request.urlopen(request, timeout=20, context=self.enforcer.trust) as answer:
            return json.load(answer)

    def set_policy(self, org: str, **policy: str) -> None:
        request = urllib.request.Request(f"{self.enforcer.url}/v1/orgs/{org}", method="PUT")
        request.add_header("Authorization", f"Bearer {self.admin}")
        body = json.dumps({"policy": policy}).encode()
        urllib.request.urlopen(request, body, timeout=20, context=self.enforcer.trust).close()

    def balance(self, org: str) -> dict[str, str]:
        """Of an org, after a look at whether it adds up."""
        found: dict[str, Any] = self.ask(f"orgs/{org}/balance")
        granted, expired, spent, held = (Decimal(found[name]) for name in ("granted", "expired", "spent", "held"))
        assert Decimal(found["available"]) == granted - expired - spent - held, found
        return found

    def held(self, org: str) -> Decimal:
        return Decimal(self.balance(org)["held"])

    def charges(self, org: str) -> dict[tuple[str, str], tuple[str, str, str]]:
        """(resource, id) -> start, end and credits of what was charged, without what was given back."""
        rows = self.ask(f"usage?org={org}&group_by=resource,workload")["rows"]
        given_back = [row for row in rows if row["id"] is None]  # charged as running before its end was told
        assert all(row["credits"] == row["refunded"] for row in given_back), given_back
        return {
            (row["resource"], row["id"]): (row["started_at"], row["ended_at"], row["credits"])
            for row in rows
            if row["id"] is not None
        }


@contextmanager
def paid_site(base: Path, kube: KubernetesLab, source: Mapping[str, Any] | None = None, **more: Any) -> Iterator[Site]:
    """Everything up beside a started lab. `source`: more settings of it; `more`: other settings."""
    with ExitStack() as stack:
        desk = Lab(base)
        exporter_port, enforcer_port = free_ports(2)
        account: Body = {"apiVersion": "v1", "kind": "ServiceAccount"}
        account["metadata"] = {"name": SERVICE_ACCOUNT, "namespace": "credits"}
        kube.apply(account, *(_binding(role) for role in ("credits-exporter", "credits-enforcer")))
        (base / "token").touch(0o600)
        (base / "token").write_text(kube.token_of(SERVICE_ACCOUNT))
        tls = {"cert": str(base / "tls" / "tls.crt"), "key": str(base / "tls" / "tls.key")}
        desk.settings(
            sources=[
                {
                    "type": "kubernetes", "cluster": CLUSTER, "url": kube.url, "ca_file": str(kube.ca),
                    "token_file": str(base / "token"), **(source or {}),
                }
            ],
            exporter={"listen": f"127.0.0.1:{exporter_port}"},
            enforcer={"listen": f"127.0.0.1:{enforcer_port}", "tls": tls},
            **{"metering": {"interval_seconds": 1, "epoch": "2026-11-01T00:00:00Z"}, **more},
        )  # fmt: skip
        desk.rates(
            {
                "clusters": {
                    CLUSTER: {
                        "presets": {name: {"credits_per_hour": rate} for name, rate in RATES.items()},
                        "storage": {"default": {"credits_per_gb_hour": "36"}},
                    }
                }
            }
        )
        url = f"https://127.0.0.1:{enforcer_port}"
        configuration = desk.ok("webhook", "make", "--dir", str(base / "tls"), "--url", url)
        admin = desk.json("token", "create", "--role", "admin")["token"]
        exporter = Service(desk, "exporter", exporter_port)
        enforcer = Service(desk, "enforcer", enforcer_port, base / "tls" / "tls.crt")
        for service in (exporter, enforcer):
            stack.callback(service.end)
            service.start()
        kube.kubectl("apply", "-f", "-", given=configuration)
        stack.callback(kube.kubectl, "delete", "validatingwebhookconfiguration", "apolo-credits")
        yield Site(kube, desk, exporter, enforcer, admin)


def _binding(role: str) -> Body:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": f"{SERVICE_ACCOUNT}-{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": "credits"}],
    }  # fmt: skip


@contextmanager
def recorded(base: Path, kube: KubernetesLab, *namespaces: str) -> Iterator[list[Body]]:
    """The reviews that the API server sends about pods, jobs and their parts in some namespaces, as they come."""
    found: list[Body] = []

    class Recorder(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found.append(review)
            answer = {**review, "response": {"uid": review["request"]["uid"], "allowed": True}}
            del answer["request"]
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    cert, key = make_pair(base, ["127.0.0.1"])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    configuration = yaml.safe_load(
        webhook_configuration(
            KubernetesSource(name="recorder", cluster="recorder"), cert.read_bytes(), token=None,
            url=f"https://127.0.0.1:{server.server_address[1]}",
        )
    )  # fmt: skip
    configuration["metadata"]["name"] = "recorder"
    webhook = configuration["webhooks"][0]
    configuration["webhooks"] = [webhook]
    webhook["name"] = "recorder.credits.apolo.us"
    webhook["namespaceSelector"] = {"matchLabels": {"recorded": "yes"}}
    for rule in webhook["rules"]:
        rule["operations"] = ["CREATE", "UPDATE", "DELETE", "CONNECT"]
        rule["resources"] = [name + part for name in rule["resources"] for part in ("", "/*")]
    webhook["rules"].append(
        {
            "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/scale"], "operations": ["UPDATE"],
            "scope": "Namespaced",
        }
    )  # fmt: skip
    kube.apply(configuration)
    kube.kubectl("label", "namespace", *namespaces, "recorded=yes")
    try:
        yield found
    finally:
        kube.kubectl("delete", "validatingwebhookconfiguration", "recorder")
        server.shutdown()
        thread.join()
        server.server_close()
