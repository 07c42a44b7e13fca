"""Names and paths as an attacker would write them: never a fault of ours, never another org's data."""

from __future__ import annotations

import json
import socket
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from enforcer.failures import Failures
from ledger.names import NAME_MAX, is_name
from tests.api_lab import HIDDEN, LiveApi, live_api

quickly = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TRICKS = (
    "..", ".", "%2e%2e", "%2E%2e%2f", "..%2f", "%2f", "/", "//", "\\", "%5c", "%00", "%0a", "%0d%0a", "%7f", "%c2%85",
    "%u0067", "%ff", "%c3%28", "%ed%a0%80", "%", "%2", "%zz", ";", ";x=1", "?", "#", "+", "%20", "*", "~",
    "globex", "acme", "Globex", "GLOBEX", "globex%00", "globex%20", "%67lobex", "%2567lobex", "g%6Cobex",
    "acme%2f..%2fglobex", "acme/../globex", "\u202eglobex",
    "gl\u0301obex", "ｇｌｏｂｅｘ", "gl\u200dobex", "\u0433lobex", "globex.",
    "{globex}", "credits:globex", "*globex*", "globex\x1f", "acme\x1fglobex", "acme,globex", "acme|globex",
)  # fmt: skip
PLACES = (
    "/v1/orgs/{}", "/v1/orgs/{}/balance", "/v1/orgs/{}/journal", "/v1/orgs/{}/budgets", "/v1/orgs/{}/purchases",
    "/v1/orgs/{}/statement?month=2026-11", "/v1/orgs/{}/budgets/{}", "/v1/orgs/{}/budgets/{}/{}",
    "/v1/orgs/acme/purchases/{}", "/v1/usage?org={}", "/v1/usage?project={}", "/v1/usage?group_by=project&cursor={}",
    "/v1/orgs?cursor={}", "/v1/orgs/acme/journal?cursor={}", "/console/orgs/{}", "/console/payments/{}/{}",
    "/{}/v1/orgs/globex/balance", "/k8s/admission/{}", "/v1/tokens/{}", "{}",
)  # fmt: skip
ODD = (
    "..", ".", "a/b", "a//b", "../acme", "%2e%2e", "%00", "a%2Fb", "a b", " a", "a ", "é", "e\u0301", "\u202eacme",
    "ａｃｍｅ", "ﬁ", "fi", "\u00df", "ss", "İ", "i", "a?b", "a#b", "a&b=c", "a+b", "a;b", "\\", "'", '"', "<b>", "{a}",
    "credits:org", "a\u2028b", "😀", "\ufeffa", "x" * NAME_MAX, "é" * NAME_MAX, "%FF",
)  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40) | st.sampled_from(ODD)
SCHEMES = (b"Bearer ", b"bearer ", b"BEARER ", b"Basic ", b" ", b"", b"Bearer act_")
FIELDS = st.sampled_from(("org", "cluster", "project", "user", "preset", "credits", "policy", "request", "x"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=12,
)
TAKING = (
    ("POST", b"/v1/admission"), ("POST", b"/v1/quote"), ("POST", b"/v1/admission/slurm"), ("PUT", b"/v1/orgs/zeta"),
    ("POST", b"/v1/orgs/zeta/grants"), ("PUT", b"/v1/orgs/zeta/budgets/p"), ("POST", b"/k8s/admission/default"),
    ("POST", b"/v1/payments/stripe"), ("PUT", b"/v1/orgs/zeta/auto-top-up"), ("POST", b"/v1/orgs/zeta/purchases"),
)  # fmt: skip


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: str
    body: bytes


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    with pytest.MonkeyPatch.context() as patch, live_api(tmp_path_factory.mktemp("api")) as api:
        patch.setattr(Failures, "check", lambda *_: 0)
        yield api


def send(api: LiveApi, method: str, target: bytes, headers: dict[str, bytes], body: bytes = b"") -> Answer:
    """A request as it is written here: no client tidies it up."""
    where = urlsplit(api.url)
    lines = [method.encode() + b" " + target + b" HTTP/1.1", b"Host: credits", b"Connection: close"]
    lines += [name.encode() + b": " + value for name, value in headers.items()]
    lines += [b"Content-Length: " + str(len(body)).encode()]
    with socket.create_connection((where.hostname or "", where.port or 0), timeout=20) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", body]))
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    head, _, content = received.partition(b"\r\n\r\n")
    return Answer(int(head.split(b" ", 2)[1]), head.decode("latin-1"), content)


def as_caller(api: LiveApi, caller: str) -> dict[str, bytes]:
    return {
        "Authorization": f"Bearer {api.tokens[caller]}".encode(),
        "Cookie": f"credits={api.cookies.get(caller, '')}".encode(),
    }


def targets() -> st.SearchStrategy[bytes]:
    """Request targets: a place with something in it that was meant to be a name."""
    part = st.one_of(
        st.sampled_from(TRICKS),
        st.lists(st.sampled_from(TRICKS), min_size=1, max_size=4).map("".join),
        st.text(max_size=20).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="")),
        st.binary(max_size=12).map(lambda data: quote(data, safe="")),
        st.integers(250, 20_000).map(lambda length: "g" * length),
    )
    return st.builds(
        lambda place, parts: place.format(*parts).encode("utf-8", "surrogatepass"),
        st.sampled_from(PLACES),
        st.tuples(part, part, part),
    ).filter(lambda target: not set(target) & set(b" \r\n\0") and len(target) > 0)


@pytest.mark.parametrize("caller", ["owner", "scheduler of acme", "admin"])
@quickly
@given(data=st.data())
def test_no_path_breaks_anything_or_leads_to_another_org(api: LiveApi, caller: str, data: st.DataObject) -> None:
    target = data.draw(targets())
    method = data.draw(st.sampled_from(("GET", "GET", "GET", "DELETE", "PUT", "POST", "HEAD", "BREW")))
    answer = send(api, method, target, as_caller(api, caller), b"{}" if method in ("PUT", "POST") else b"")
    assert 200 <= answer.status < 500 or answer.status == 501, (method, target, answer)
    if caller == "admin" or answer.status in (401, 403):
        return
    for secret in HIDDEN:
        assert secret.encode() not in answer.body, (method, target, answer)


@quickly
@given(name=NAMES)
@example(name="é")
@example(name="e\u0301")
def test_a_name_is_itself_and_no_other(api: LiveApi, name: str) -> None:
    assume(is_name(name) and name not in ("acme", "globex"))
    headers = as_caller(api, "admin")
    path = f"/v1/orgs/{quote(name, safe='')}".encode()
    made = send(api, "PUT", path, headers, b"{}")
    assert made.status in (200, 201), made
    assert json.loads(made.body)["org"] == name
    project = quote(name, safe="").encode()
    budget = send(api, "PUT", path + b"/budgets/" + project, headers, b'{"credits": "1"}')
    assert (budget.status, json.loads(budget.body)["project"]) == (200, name), budget
    shown = send(api, "GET", path + b"/balance", headers)
    assert (shown.status, json.loads(shown.body)["org"]) == (200, name)
    (listed,) = json.loads(send(api, "GET", path + b"/budgets", headers).body)["items"]
    assert listed["project"] == name
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        other = unicodedata.normalize(form, name)
        if other != name and is_name(other):
            found = send(api, "GET", f"/v1/orgs/{quote(other, safe='')}/budgets".encode(), headers)
            items = json.loads(found.body).get("items", [])
            assert all(item["project"] != name for item in items), (name, other)
    refused = send(api, "GET", path + b"/balance", as_caller(api, "owner"))
    assert refused.status == 403


@quickly
@given(name=st.one_of(st.text(min_size=1, max_size=300), st.binary(min_size=1, max_size=300)))
@example(name="a\0b")
@example(name="a\nb")
@example(name="a\x85b")
@example(name=b"\xff")
@example(name=b"\xed\xa0\x80")
@example(name="x" * 254)
def test_what_is_no_name_makes_nothing(api: LiveApi, name: str | bytes) -> None:
    data = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = None
    assume(text is None or not is_name(text))
    raw = "".join(f"%{byte:02X}" for byte in data).encode()
    made = send(api, "PUT", b"/v1/orgs/" + raw, as_caller(api, "admin"), b"{}")
    assert made.status in (400, 404, 422), (name, made)


@quickly
@given(header=st.tuples(st.sampled_from(SCHEMES), st.binary(max_size=2000)).map(b"".join))
def test_a_made_up_token_is_nobody(api: LiveApi, header: bytes) -> None:
    assume(not set(header) & set(b"\r\n"))
    answer = send(api, "GET", b"/v1/orgs/globex/balance", {"Authorization": header})
    assert answer.status in (400, 401), answer


def test_what_is_no_http_is_a_400_without_a_traceback_in_the_log(
    api: LiveApi, caplog: pytest.LogCaptureFixture
) -> None:
    for target, headers in (
        (b"/v1/orgs/\xc3\xa9", {}), (b"/" + b"x" * 20_000, {}), (b"/", {"X": b"\0"}), (b"/", {"X" * 20_000: b"y"}),
        (b"/ /", {}), (b"", {}), (b"/", {"Content-Length": b"x"}), (b"/", {"Transfer-Encoding": b"chunked"}),
    ):  # fmt: skip
        assert send(api, "GET", target, headers).status == 400, (target[:20], list(headers)[:1])
    assert [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


@quickly
@given(body=VALUES)
def test_no_body_breaks_anything(api: LiveApi, body: Any) -> None:
    data = json.dumps(body).encode()
    for method, path in TAKING:
        answer = send(api, method, path, {**as_caller(api, "admin"), "Idempotency-Key": b"k"}, data)
        assert answer.status < 500, (method, path, answer)
