"""`shadow report` and `webhook make` as they are typed, with a real enforcer; refusals say where credits are sold."""

from __future__ import annotations

import json
import re
import signal
import ssl
import urllib.request
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli_lab import Lab, job

pytestmark = pytest.mark.redis
JOB = {"cluster": "default", "project": "vision", "user": "ann", "kind": "job", "preset": "gpu-large"}
LABELS = {f"platform.apolo.us/{name}": value for name, value in
          (("org", "acme"), ("project", "vision"), ("user", "ann"), ("preset", "gpu-large"))}  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """One credit given, rates in force."""
    lab = Lab(tmp_path)
    lab.ok("grant", "acme", "1", "--effective-at", "2026-11-01")
    lab.once("09:00:00", job("a", None))
    return lab


def settings(lab: Lab, **enforcer: Any) -> None:
    lab.settings(
        sources=[{"type": "json", "cluster": "default", "path": "snapshot.json"}],
        enforcer={"listen": "127.0.0.1:0", **enforcer},
        admission={"mode": "shadow", "buy_url": "https://credits.example.org/buy"},
    )


@contextmanager
def enforcer(lab: Lab) -> Iterator[str]:
    """`credits enforcer`; gives its URL, and ends it as an administrator would."""
    process = lab.start("enforcer")
    assert process.stderr is not None
    try:
        said = ""
        while (found := re.search(r"API at (https?://\S+)", said)) is None:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield found[1]
        process.send_signal(signal.SIGTERM)
    except BaseException:
        process.kill()
        raise
    finally:
        process.communicate(timeout=30)
    assert process.returncode == 0


def post(url: str, body: object, token: str = "", trust: ssl.SSLContext | None = None) -> Any:
    asked = urllib.request.Request(
        url, json.dumps(body).encode(), {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked, context=trust, timeout=20) as response:
        return json.load(response)


def test_what_shadow_mode_would_have_refused(lab: Lab) -> None:
    assert lab.ok("shadow", "report") == "nothing would have been refused\n"
    settings(lab)
    token = lab.json("token", "create", "--role", "scheduler")["token"]
    with enforcer(lab) as url:
        for user, count, org in (("ann", 1, "acme"), ("ann", 2, "acme"), ("bob", 1, "acme"), ("eve", 1, "nobody")):
            said = post(f"{url}/v1/admission", {**JOB, "org": org, "user": user, "count": count}, token)
            assert said["allowed"]
        assert post(f"{url}/v1/admission", {**JOB, "org": "acme", "preset": "cpu-small"}, token)["code"] == "ok"
    rows = lab.json("shadow", "report")
    names = ("org", "project", "user", "preset", "code", "count", "required")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("acme", "vision", "ann", "gpu-large", "no_credits", 2, "30.375"),
        ("nobody", "vision", "eve", "gpu-large", "unknown_org", 1, rows[1]["required"]),
        ("acme", "vision", "bob", "gpu-large", "no_credits", 1, "10.125"),
    ]
    assert [row["user"] for row in lab.json("shadow", "report", "--org", "acme")] == ["ann", "bob"]
    assert [row["user"] for row in lab.json("shadow", "report", "--org", "nobody")] == ["eve"]
    assert lab.json("shadow", "report", "--to", "2020-01-01") == []
    assert len(lab.json("shadow", "report", "--from", "2020-01-01")) == 3
    table = lab.ok("shadow", "report").splitlines()
    assert table[0].split() == ["ORG", "PROJECT", "USER", "PRESET", "APP", "CODE", "COUNT", "REQUIRED"]
    assert table[1].split() == ["acme", "vision", "ann", "gpu-large", "-", "no_credits", "2", "30.375"]
    [head, *lines] = csv_of(lab.ok("shadow", "report", "--csv"))
    assert (head[-2:], len(lines)) == (["first_at", "last_at"], 3)
    nobody = lab.run("shadow", "report", "--org", "acmee")
    assert (nobody.returncode, "acmee" in nobody.stderr) == (1, True)
    assert lab.run("shadow", "report", "--from", "2026-11-02", "--to", "2026-11-01").returncode == 2


def csv_of(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()]


def test_a_refusal_says_where_credits_are_bought(lab: Lab) -> None:
    settings(lab)
    assert "or buy credits at https://credits.example.org/buy." in lab.run("admit", "acme", "gpu-large").stdout
    token = lab.json("token", "create", "--role", "scheduler")["token"]
    with enforcer(lab) as url:
        said = post(f"{url}/v1/admission", {**JOB, "org": "acme"}, token)
    assert said["reason"].endswith("or buy credits at https://credits.example.org/buy.")
    lab.settings(admission={"buy_url": "credits.example.org"})
    wrong = lab.run("balance")
    assert (wrong.returncode, "admission.buy_url" in wrong.stderr) == (2, True)


def test_a_webhook_that_was_made_is_answered(lab: Lab) -> None:
    settings(lab)
    made = lab.run("webhook", "make", "--dir", "tls", "--url", "https://127.0.0.1:9471")
    assert (made.returncode, "tls/tls.crt" in made.stderr) == (0, True)
    hook, _ = yaml.safe_load(made.stdout)["webhooks"]
    assert hook["clientConfig"]["url"].startswith("https://127.0.0.1:9471/k8s/admission/default/")
    settings(lab, tls={"cert": "tls/tls.crt", "key": "tls/tls.key"})
    trust = ssl.create_default_context(cadata=b64decode(hook["clientConfig"]["caBundle"]).decode())
    pod = {"metadata": {"name": "p", "uid": "pod-1", "labels": LABELS}, "spec": {}}
    review = {
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {"uid": "u", "operation": "CREATE", "resource": {"resource": "pods"}, "object": pod},
    }  # fmt: skip
    with enforcer(lab) as url:
        where = hook["clientConfig"]["url"].replace("https://127.0.0.1:9471", url)
        response = post(where, review, trust=trust)["response"]
    assert (response["allowed"], "would be refused" in response["warnings"][0]) == (True, True)
    [row] = lab.json("shadow", "report")
    assert (row["user"], row["preset"], row["count"]) == ("ann", "gpu-large", 1)


def test_a_webhook_that_is_made_again_says_which_token_to_revoke(lab: Lab) -> None:
    settings(lab)
    lab.ok("token", "create", "--role", "scheduler", "--note", "Slurm")  # another one's
    make = ("webhook", "make", "--dir", "tls", "--url", "https://127.0.0.1:9471")
    first = lab.json(*make)
    assert first["tokens_before"] == []
    second = lab.run(*make)
    revoke = f"credits token revoke {first['token_id']}"
    assert second.stderr.endswith(f"revoke what was made for it before:\n  {revoke}\n")
    lab.ok(*revoke.split()[1:])
    third = lab.json(*make)
    assert len(third["tokens_before"]) == 1
    assert f"its id is {third['tokens_before'][0]}." in second.stderr


def test_a_webhook_behind_a_service(lab: Lab) -> None:
    service = ("webhook", "make", "--dir", "tls", "--service", "enforcer", "--namespace", "credits", "--token", "act_x")
    made = lab.json(*service)
    hook, _ = made["configuration"]["webhooks"]
    wanted = {"namespace": "credits", "name": "enforcer", "path": "/k8s/admission/default/act_x", "port": 443}
    assert (hook["clientConfig"]["service"], hook["failurePolicy"]) == (wanted, "Fail")
    pair = (lab.directory / "tls/tls.crt").read_bytes()
    again, _ = lab.json(*service, "--fail-open")["configuration"]["webhooks"]
    assert (again["clientConfig"], again["failurePolicy"]) == (hook["clientConfig"], "Ignore")
    assert (lab.directory / "tls/tls.crt").read_bytes() == pair
    other = lab.run("webhook", "make", "--dir", "tls", "--service", "enforcer", "--namespace", "other")
    assert (other.returncode, "tls.crt is not for enforcer.other.svc; move" in other.stderr) == (2, True)
    assert "token_id" not in made
    assert lab.json("token", "list") == []
    (lab.directory / "tls/tls.crt").unlink()
    left = lab.run(*service)
    assert (left.returncode, "tls.key is there already" in left.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [
        (), ("--service", "s"), ("--url", "http://h"), ("--url", "https://h/x"), ("--url", "https://u@h"),
        ("--url", "https://h:x"), ("--url", "https://h", "--service", "s", "--namespace", "n"),
        ("--url", "https://h", "--cluster", "defualt"), ("--service", "Bad Name", "--namespace", "n"),
    ],
)  # fmt: skip
def test_a_webhook_that_cannot_be(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    lab = Lab(tmp_path)
    done = lab.run("webhook", "make", "--dir", "tls", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not (tmp_path / "tls").exists()
