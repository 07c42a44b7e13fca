"""TLS of the enforcer: certificates from files, followed when they change; client certificates; the webhook's YAML."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import yaml

from config.settings import EnforcerSettings, Settings, Tls
from config.sources import KubernetesSource
from config.values import Address
from enforcer.admission.webhook_config import make_pair, webhook_configuration
from enforcer.app import build_app
from enforcer.server import serving
from enforcer.tls import Certificates
from ledger.connect import Client
from ledger.errors import InvalidRequest
from ledger.store import Ledger

SOURCE = KubernetesSource(name="k", cluster="c")
SETTINGS = Settings(path=Path("settings.yaml"), sources=(SOURCE,))
REVIEW = {
    "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
    "request": {"uid": "1", "operation": "DELETE", "resource": {"resource": "pods"}},
}  # fmt: skip


def listening(tls: Tls | None) -> EnforcerSettings:
    return EnforcerSettings(listen=Address("127.0.0.1", 0), tls=tls)


async def test_an_api_server_asks_over_tls_as_the_yaml_says(client: Client, tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, ["127.0.0.1", "localhost"])
    assert key.stat().st_mode & 0o777 == 0o600
    ledger = Ledger(client, 0)
    _, token = await ledger.tokens.create("scheduler")
    async with serving(build_app(ledger, SETTINGS), listening(Tls(cert=cert, key=key))) as url:
        document = yaml.safe_load(webhook_configuration(SOURCE, cert.read_bytes(), token=token, url=url))
        assert document["kind"] == "ValidatingWebhookConfiguration"
        webhook, of_resumed = document["webhooks"]
        ca = b64decode(webhook["clientConfig"]["caBundle"]).decode()
        trust = ssl.create_default_context(cadata=ca)
        async with aiohttp.ClientSession() as session:
            answer = await session.post(webhook["clientConfig"]["url"], data=json.dumps(REVIEW), ssl=trust)
            assert (answer.status, (await answer.json())["response"]["allowed"]) == (200, True)
    assert [one["failurePolicy"] for one in (webhook, of_resumed)] == ["Fail", "Ignore"]
    assert {one["timeoutSeconds"] for one in (webhook, of_resumed)} == {5}
    assert [(rule["operations"], rule["resources"]) for rule in of_resumed["rules"]] == [(["UPDATE"], ["jobs"])]
    slow = yaml.safe_load(webhook_configuration(SOURCE, b"x", token=None, url="https://x", decision_seconds=6.5))
    assert {one["timeoutSeconds"] for one in slow["webhooks"]} == {9}
    assert webhook["namespaceSelector"]["matchExpressions"][1]["key"] == "platform.apolo.us/org"
    as_service = yaml.safe_load(webhook_configuration(SOURCE, b"x", token=None, service=("credits", "enforcer")))
    assert as_service["webhooks"][0]["clientConfig"]["service"]["path"] == "/k8s/admission/c"


async def test_a_renewed_certificate_is_used_without_a_restart(tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path / "old", ["127.0.0.1"])
    other_cert, other_key = make_pair(tmp_path / "new", ["127.0.0.1"])
    certificates = Certificates(Tls(cert=cert, key=key))

    async def served() -> bytes:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=certificates.context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            trusting = ssl._create_unverified_context()
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            found: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
            writer.close()
            return found

    old = ssl.PEM_cert_to_DER_cert(cert.read_text())
    new = ssl.PEM_cert_to_DER_cert(other_cert.read_text())
    assert await served() == old
    assert not certificates.look()
    shutil.copy(other_cert, cert)
    assert not certificates.look()  # the key does not fit yet: what was good stays
    assert await served() == old
    shutil.copy(other_key, key)
    assert certificates.look()
    assert await served() == new


async def test_with_a_client_ca_nobody_is_let_in_without_a_certificate(client: Client, tmp_path: Path) -> None:
    cert, key = make_pair(tmp_path, ["127.0.0.1"])
    tls = Tls(cert=cert, key=key, client_ca=cert)
    settings = replace(SETTINGS, enforcer=listening(tls))
    trust = ssl.create_default_context(cafile=str(cert))
    app = build_app(Ledger(client, 0), settings)
    async with serving(app, settings.enforcer) as url, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.post(f"{url}/k8s/admission", data=json.dumps(REVIEW), ssl=trust)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"missing\.crt"):
        Certificates(Tls(cert=tmp_path / "missing.crt", key=tmp_path / "missing.key"))
    make_pair(tmp_path, ["localhost"])
    with pytest.raises(InvalidRequest, match="is there already"):
        make_pair(tmp_path, ["localhost"])


async def test_an_address_in_use_is_named(client: Client) -> None:
    async with serving(build_app(Ledger(client, 0), SETTINGS), listening(None)) as url:
        taken = EnforcerSettings(listen=Address("127.0.0.1", int(url.rsplit(":", 1)[1])))
        with pytest.raises(InvalidRequest, match=r"enforcer\.listen 127"):
            async with serving(build_app(Ledger(client, 0), SETTINGS), taken):
                pass
