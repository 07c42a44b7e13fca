"""What a Kubernetes cluster needs to ask the enforcer: a certificate, and the ValidatingWebhookConfiguration."""

from __future__ import annotations

import ipaddress
import subprocess
from base64 import b64encode
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any, Final

import yaml

from config.sources import KubernetesSource
from ledger.errors import InvalidRequest

_DAYS: Final = 3650
_SECONDS: Final = 30.0
_NAME: Final = "admission.credits.apolo.us"
_TIMEOUT_MIN: Final = 5
_TIMEOUT_MAX: Final = 30
"""The most that an API server waits, in seconds."""
_ON_THE_WAY: Final = 2
"""Seconds beside the decision itself."""


def make_pair(directory: Path, hosts: Sequence[str]) -> tuple[Path, Path]:
    """(certificate, key): a self-signed pair for these names and addresses; existing files are not replaced.

    Raises: InvalidRequest when it cannot be made.
    """
    cert, key = directory / "tls.crt", directory / "tls.key"
    for path in (cert, key):
        if path.exists():
            raise InvalidRequest(f"{path} is there already; move it away or choose another directory")
    directory.mkdir(parents=True, exist_ok=True)
    key.touch(mode=0o600)
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256", "-days", str(_DAYS),
        "-subj", f"/CN={hosts[0][:64]}", "-addext", f"subjectAltName={','.join(_alternative(host) for host in hosts)}",
        "-addext", "extendedKeyUsage=serverAuth", "-keyout", str(key), "-out", str(cert),
    ]  # fmt: skip
    done = _openssl(command)
    if done.returncode != 0:
        raise InvalidRequest(f"openssl cannot make the pair: {done.stderr.strip()[-300:]}")
    return cert, key


def check_pair(cert: Path, host: str) -> None:
    """Raises: InvalidRequest where a certificate is not for this name or address: no API server would take it."""
    check = "-checkip" if _alternative(host).startswith("IP:") else "-checkhost"
    done = _openssl(["openssl", "x509", "-in", str(cert), "-noout", check, host])
    if done.returncode != 0:
        raise InvalidRequest(f"{cert} is no certificate: {done.stderr.strip()[-300:]}")
    if "does match" not in done.stdout:
        raise InvalidRequest(f"{cert} is not for {host}; move it and its key away or choose another directory")


def _openssl(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidRequest(f"openssl makes and checks the pair, and cannot be run: {error}") from error


def webhook_configuration(
    source: KubernetesSource, ca_pem: bytes, *, token: str | None, url: str | None = None,
    service: tuple[str, str] | None = None, fail_open: bool = False, decision_seconds: float = 1.0,
) -> str:  # fmt: skip
    """The YAML to apply. It is reached at `url` (https://host:port), or as the `service` (namespace, name).

    `token`: a scheduler's, which goes into the path; None where the listener asks for client certificates.
    `fail_open`: pods start also while the enforcer itself is away. `decision_seconds`: how long an answer may take.
    """
    path = f"/k8s/admission/{source.cluster}" + (f"/{token}" if token is not None else "")
    where: dict[str, Any] = {"caBundle": b64encode(ca_pem).decode()}
    if service is not None:
        where["service"] = {"namespace": service[0], "name": service[1], "path": path, "port": 443}
    elif url is not None:
        where["url"] = url.rstrip("/") + path
    else:
        raise InvalidRequest("a webhook needs a url or a service")
    skipped = {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": list(source.skip_namespaces)}
    selector: list[dict[str, Any]] = [skipped]
    if source.labels.org:
        selector.append({"key": source.labels.org[0], "operator": "Exists"})
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
    jobs = {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"]}

    def webhook(name: str, policy: str, *rules: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "NoneOnDryRun",
            "timeoutSeconds": min(_TIMEOUT_MAX, max(_TIMEOUT_MIN, ceil(decision_seconds) + _ON_THE_WAY)),
            "failurePolicy": policy,
            "matchPolicy": "Equivalent",
            "namespaceSelector": {"matchExpressions": selector},
            "rules": [{**rule, "scope": "Namespaced"} for rule in rules],
            "clientConfig": where,
        }

    webhooks = [
        webhook(_NAME, "Ignore" if fail_open else "Fail", pods, jobs),
        # Jobs that are resumed. Others that are changed must not wait for an enforcer that is away, and their pods
        # are asked about in any case.
        webhook(f"resumed.{_NAME}", "Ignore", {**jobs, "operations": ["UPDATE"]}),
    ]
    document = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "apolo-credits"},
        "webhooks": webhooks,
    }
    return yaml.dump(document, Dumper=_Plain, sort_keys=False)


class _Plain(yaml.SafeDumper):
    """Writes out what is there twice, for those who read it before they apply it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _alternative(host: str) -> str:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return f"DNS:{host}"
    return f"IP:{host}"
