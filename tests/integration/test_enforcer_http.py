"""The enforcer over HTTP: shapes, roles, errors, hostile bodies, and what it says while the ledger is away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from config.settings import AdmissionSettings, Settings
from config.slurm_rules import AccountRule
from config.sources import SlurmSource
from config.values import Address
from enforcer import metrics
from enforcer.app import DESK, build_app
from enforcer.metrics import ADMISSIONS, DURATION
from exporter import metric_names
from ledger import keys
from ledger.connect import Client, connect
from ledger.model import RatePlan, RateTable
from ledger.store import Ledger
from ledger.verify import verify
from tests.servers import ServerProcess

T0 = 1_795_000_000_000_000
CREDIT = 1_000_000
SETTINGS = Settings(
    path=Path("settings.yaml"),
    sources=(SlurmSource(name="slurm", cluster="hpc", accounts=(AccountRule("*-*", "{1}", "{2}"),)),),
)
JOB = {"cluster": "c", "org": "acme", "project": "vision", "user": "ann", "preset": "small"}


class Api:
    """A client with tokens of every role."""

    def __init__(self, http: TestClient[Any, Any], ledger: Ledger, tokens: dict[str, str]) -> None:
        self.http = http
        self.ledger = ledger
        self.tokens = tokens

    async def call(
        self, method: str, path: str, body: object = None, role: str | None = "admin", **headers: str
    ) -> tuple[int, Any]:
        """(status, decoded body); errors must be problem documents."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if role is not None:
            given["Authorization"] = f"Bearer {self.tokens[role]}"
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        async with self.http.request(method, path, data=data, headers=given) as response:
            text = await response.text()
            if response.status >= 400:
                assert response.content_type == "application/problem+json", text
                problem = json.loads(text)
                assert problem["status"] == response.status
                assert {"type", "title", "detail", "code"} <= problem.keys()
                return response.status, problem
            return response.status, json.loads(text) if text and text[0] in "{[" else text


@asynccontextmanager
async def enforcer(client: Client, settings: Settings = SETTINGS) -> AsyncIterator[Api]:
    ledger = Ledger(client, T0)
    table = RateTable({"small": 4_000_000_000, "cpu": 4_000_000_000, "gpu": 40_000_000_000})
    for cluster in ("c", "hpc"):
        await ledger.rates.publish(RatePlan(cluster, ((0, table),)))
    tokens = {}
    for role, org in (("admin", None), ("owner", "acme"), ("viewer", "acme"), ("scheduler", None), ("other", "globex")):
        _, tokens[role] = await ledger.tokens.create("owner" if role == "other" else role, org)
    async with TestClient(TestServer(build_app(ledger, settings))) as http:
        yield Api(http, ledger, tokens)


def admission(**what: Any) -> Settings:
    return replace(SETTINGS, admission=AdmissionSettings(**what))


@pytest.fixture
async def api(client: Client) -> AsyncIterator[Api]:
    async with enforcer(client) as api:
        yield api


async def give(api: Api, amount: str, org: str = "acme", key: str = "k1") -> Any:
    status, body = await api.call("POST", f"/v1/orgs/{org}/grants", {"credits": amount}, Idempotency_Key=key)
    assert status == 201, body
    return body


async def test_admission_answers_in_the_shape_of_the_contract(api: Api) -> None:
    await give(api, "3.5")
    status, body = await api.call("POST", "/v1/admission", {**JOB, "count": 3}, "scheduler")
    assert status == 200
    hold = body.pop("hold_id")
    assert body.pop("hold_expires_at").endswith("Z")
    reason = "3 credits are set aside to start; org acme then has 0.5 credits left."
    assert body == {
        "allowed": True, "code": "ok", "reason": reason, "tier": None, "available": "0.5", "required": "3",
    }  # fmt: skip
    status, body = await api.call("POST", "/v1/admission", JOB, "scheduler")
    assert (status, body["allowed"], body["code"], body["tier"]) == (200, False, "no_credits", "org")
    assert (body["available"], body["required"], body["hold_id"], body["hold_expires_at"]) == ("0.5", "1", None, None)
    assert body["reason"].startswith("Org acme has 0.5 credits left; this needs 1 credit to start.")
    released = await api.call("POST", f"/v1/admission/{hold}/release", None, "scheduler")
    assert released == (200, {"hold_id": hold, "released": True})
    assert (await api.call("POST", f"/v1/admission/{hold}/release"))[1]["released"] is False
    assert (await api.call("GET", "/v1/orgs/acme/balance"))[1]["held"] == "0"


async def test_a_quote_holds_nothing(api: Api) -> None:
    await give(api, "8")
    status, body = await api.call("POST", "/v1/quote", {**JOB, "max_runtime_seconds": 7200}, "viewer")
    assert status == 200
    assert (body["per_hour"], body["total"], body["required"], body["lasts_hours"]) == ("4", "8", "1", "2")
    assert (body["allowed"], body["first_out"]) == (True, "org")
    assert (await api.call("GET", "/v1/orgs/acme/balance"))[1]["held"] == "0"


async def test_a_grant_needs_its_key_and_answers_the_same_again(api: Api) -> None:
    status, body = await api.call("POST", "/v1/orgs/acme/grants", {"credits": "1"})
    assert (status, body["code"]) == (400, "no_idempotency_key")
    first = await give(api, "10.000001")
    assert first["credits"] == "10.000001"
    assert first == await give(api, "10.000001")
    status, body = await api.call("POST", "/v1/orgs/acme/grants", {"credits": "11"}, Idempotency_Key="k1")
    assert (status, body["code"]) == (409, "idempotency_conflict")
    assert (await api.call("GET", "/v1/orgs/acme/balance"))[1]["available"] == "10.000001"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"credits": "0"}, "more than 0"),
        ({"credits": "-1"}, "more than 0"),
        ({"credits": "NaN"}, "is not a decimal number"),
        ({"credits": "1e400"}, "is not a decimal number"),
        ({"credits": "9" * 400}, "out of range"),
        ({"credits": "0.0000001"}, "digits"),
        ({"credits": "1", "source": "loan"}, "source"),
        ({"credits": "1", "effective_at": "tomorrow"}, "effective_at"),
        ({"credits": "1", "expires_at": "2026-11-22T10:00:00"}, "time zone"),
        ({"credits": "1", "expire_at": None}, "did you mean 'expires_at'?"),
        ({}, "credits"),
        ([], "object"),
    ],
)
async def test_a_grant_that_makes_no_sense_is_refused_by_field(api: Api, body: object, word: str) -> None:
    status, problem = await api.call("POST", "/v1/orgs/acme/grants", body, Idempotency_Key="k")
    assert status == 422
    assert word in problem["detail"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"presett": "x"}, "did you mean 'preset'?"),
        ({"preset": None}, "preset"),
        ({"org": ""}, "org"),
        ({"org": None}, "org"),
        ({"user": "a\nb"}, "user"),
        ({"user": "\ud800"}, "user"),
        ({"cluster": "x" * 300}, "cluster"),
        ({"count": 0}, "count"),
        ({"count": 1.5}, "count"),
        ({"count": 10**30}, "count"),
        ({"max_runtime_seconds": 0}, "max_runtime_seconds"),
        ({"max_runtime_seconds": -1}, "max_runtime_seconds"),
        ({"kind": "storage"}, "kind"),
        ({"dry_run": "yes"}, "dry_run"),
    ],
)
async def test_an_admission_that_makes_no_sense_is_refused_by_field(
    api: Api, change: dict[str, Any], word: str
) -> None:
    status, problem = await api.call("POST", "/v1/admission", {**JOB, **change}, "scheduler")
    assert status in (400, 422)
    assert status == 422 or "\ud800" in change.values()
    assert status == 400 or word in problem["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"nan", b'{"cluster": "c"'])
async def test_what_is_no_json_is_a_400(api: Api, body: bytes) -> None:
    for path in ("/v1/admission", "/v1/quote"):
        status, problem = await api.call("POST", path, body)
        assert (status, problem["code"]) == (400, "bad_request")


@pytest.mark.parametrize("body", [b"null]", b"[" * 60_000, b'{"a":' * 10_000, b'{"org":' + b"[" * 60_000])
async def test_what_is_nothing_of_this_is_refused_however_deep(api: Api, body: bytes) -> None:
    assert (await api.call("POST", "/v1/admission", body))[0] in (400, 422)


async def test_large_bodies_are_not_read(api: Api) -> None:
    status, problem = await api.call("POST", "/v1/admission", b"x" * 70_000)
    assert (status, problem["code"]) == (413, "too_large")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b" " * 10_000

    headers = {"Authorization": f"Bearer {api.tokens['admin']}"}
    try:
        async with api.http.post("/v1/admission", data=endless(), headers=headers) as response:
            assert response.status == 413
    except aiohttp.ClientConnectionError:
        pass  # cut off while still sending


async def test_unknown_paths_and_methods_are_problems_too(api: Api) -> None:
    assert (await api.call("GET", "/v1/nothing"))[0] == 404
    status, problem = await api.call("DELETE", "/v1/admission")
    assert (status, problem["code"]) == (405, "method_not_allowed")
    assert "POST" in problem["detail"]
    assert (await api.call("GET", "/v1/orgs/nobody/balance"))[0] == 404
    assert (await api.call("GET", "/v1/orgs/nobody/journal"))[0] == 404
    assert (await api.call("POST", "/v1/admission/nonsense/release"))[0] == 404
    assert (await api.call("DELETE", "/v1/orgs/acme/budgets/vision"))[0] == 404


ROLES = ("admin", "owner", "viewer", "scheduler", "other", None)
CALLS: dict[str, tuple[str, str, object, tuple[str, ...]]] = {
    "admission": ("POST", "/v1/admission", JOB, ("admin", "scheduler")),
    "slurm": ("POST", "/v1/admission/slurm", {}, ("admin", "scheduler")),
    "quote": ("POST", "/v1/quote", JOB, ("admin", "scheduler", "owner", "viewer")),
    "release": ("POST", "/v1/admission/acme.x/release", None, ("admin", "scheduler")),
    "put org": ("PUT", "/v1/orgs/acme", {}, ("admin",)),
    "grant": ("POST", "/v1/orgs/acme/grants", {"credits": "1"}, ("admin",)),
    "balance": ("GET", "/v1/orgs/acme/balance", None, ("admin", "owner", "viewer")),
    "budgets": ("GET", "/v1/orgs/acme/budgets", None, ("admin", "owner", "viewer")),
    "put budget": ("PUT", "/v1/orgs/acme/budgets/vision/ann", {"credits": "1"}, ("admin", "owner")),
    "delete budget": ("DELETE", "/v1/orgs/acme/budgets/vision/ann", None, ("admin", "owner")),
    "journal": ("GET", "/v1/orgs/acme/journal", None, ("admin", "owner", "viewer")),
}


@pytest.mark.parametrize("name", CALLS)
async def test_each_role_may_do_what_is_its_own_and_nothing_else(api: Api, name: str) -> None:
    await give(api, "100")
    await give(api, "100", "globex", "k2")
    method, path, body, allowed = CALLS[name]
    for role in ROLES:
        status, problem = await api.call(method, path, body, role, Idempotency_Key="k3")
        if role is None:
            assert (status, problem["code"]) == (401, "unauthorized")
        elif role in allowed:
            assert status not in (401, 403), problem
        else:
            assert (status, problem["code"]) == (403, "forbidden")


async def test_orgs_are_listed_as_far_as_a_token_sees(api: Api) -> None:
    for org in ("acme", "globex", "zeta"):
        await give(api, "1", org, org)
    page = (await api.call("GET", "/v1/orgs?limit=2"))[1]
    assert [item["org"] for item in page["items"]] == ["acme", "globex"]
    rest = (await api.call("GET", f"/v1/orgs?limit=2&cursor={page['next']}"))[1]
    assert ([item["org"] for item in rest["items"]], rest["next"]) == (["zeta"], None)
    assert [item["org"] for item in (await api.call("GET", "/v1/orgs", role="other"))[1]["items"]] == ["globex"]
    assert (await api.call("GET", "/v1/orgs?limit=x"))[0] == 422


@pytest.mark.parametrize("header", ["Bearer act_x", "Bearer ", "Basic abc", "Bearer act_" + "x" * 500, "Bearer acté"])
async def test_a_token_that_is_none_is_a_401(api: Api, header: str) -> None:
    async with api.http.get("/v1/orgs", headers={"Authorization": header}) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_budgets_over_http(api: Api) -> None:
    await give(api, "100")
    asked = {"credits": "2", "period": "day", "timezone": "Asia/Kolkata"}
    status, body = await api.call("PUT", "/v1/orgs/acme/budgets/vision/ann", asked, "owner")
    assert status == 200
    assert (body["user"], body["credits"], body["remaining"], body["spent"]) == ("ann", "2", "2", "0")
    assert body["starts_at"].endswith("18:30:00Z")
    refused = (await api.call("POST", "/v1/admission", {**JOB, "count": 3}, "scheduler"))[1]
    assert (refused["code"], refused["tier"], refused["available"]) == ("budget_exhausted", "user", "2")
    status, problem = await api.call(
        "PUT", "/v1/orgs/acme/budgets/vision", {**asked, "timezone": "Europe/Berln"}, "owner"
    )
    assert (status, "'Europe/Berlin'" in problem["detail"]) == (422, True)
    assert (await api.call("PUT", "/v1/orgs/acme/budgets/vision", {"credits": "-1"}, "owner"))[0] == 422
    # A name that is misspelled neither makes an org nor removes all budgets.
    for method, path in (("PUT", "/v1/orgs/amce/budgets/vision"), ("GET", "/v1/orgs/amce/budgets")):
        status, problem = await api.call(method, path, asked if method == "PUT" else None)
        assert (status, problem["code"]) == (404, "unknown_org")
        assert problem["detail"] == "There is no org 'amce'. Check the name, or have an administrator make it."
    assert await api.ledger.accounts.orgs() == ["acme"]
    status, problem = await api.call("DELETE", "/v1/orgs/acme/budgets/vision/ann?peroid=month", role="owner")
    assert (status, problem["detail"]) == (422, "'peroid' is no parameter of this; did you mean 'period'?")
    # Nor does one at a place where it would be ignored set the budget of another period.
    status, problem = await api.call("PUT", "/v1/orgs/acme/budgets/vision?period=week", asked, "owner")
    assert (status, problem["detail"]) == (422, "'period' is no parameter of this; all is in the body")
    assert (await api.call("DELETE", "/v1/orgs/acme/budgets/vision/ann?period=month", role="owner"))[0] == 404
    assert (await api.call("DELETE", "/v1/orgs/acme/budgets/vision/ann?period=day", role="owner"))[0] == 204
    assert (await api.call("GET", "/v1/orgs/acme/budgets"))[1]["items"] == []


async def test_the_journal_is_one_list_of_what_moved_and_what_was_refused(api: Api) -> None:
    await give(api, "0.5")
    for _ in range(3):
        await api.call("POST", "/v1/admission", JOB, "scheduler")
    await give(api, "0.5", key="k2")
    items: list[Any] = []
    async with asyncio.timeout(10):
        while len(items) < 5:
            items, cursor = [], ""
            while cursor is not None:
                page = (await api.call("GET", f"/v1/orgs/acme/journal?limit=2&cursor={cursor}", role="viewer"))[1]
                items, cursor = items + page["items"], page["next"]
    assert sorted(item["type"] for item in items) == ["grant", "grant", "refusal", "refusal", "refusal"]
    refusal = next(item for item in items if item["type"] == "refusal")
    assert (refusal["code"], refusal["project"], refusal["user"], refusal["required"]) == (
        "no_credits",
        "vision",
        "ann",
        "1",
    )
    assert refusal["who"].endswith("(scheduler)")
    assert (await api.call("GET", "/v1/orgs/acme/journal?cursor=x"))[0] == 422


async def test_shadow_lets_pass_and_says_what_it_would_have_refused(client: Client) -> None:
    async with enforcer(client, admission(mode="shadow")) as api:
        await give(api, "0.5")
        body = (await api.call("POST", "/v1/admission", JOB, "scheduler"))[1]
        assert (body["allowed"], body["code"]) == (True, "no_credits")
        assert "it would be refused: Org acme has 0.5 credits left" in body["reason"]
        report: list[Any] = []
        async with asyncio.timeout(10):
            while not report:
                report = await api.ledger.refusals.shadow_report("acme", 0, 1 << 60)
        assert [(row["user"], row["code"], row["count"], row["required"]) for row in report] == [
            ("ann", "no_credits", 1, "1")
        ]
        assert (
            'credits_admissions_total{decision="shadow",reason="no_credits"} 1.0'
            in (await api.call("GET", "/metrics", role=None))[1]
        )


async def test_modes_of_a_cluster_and_of_an_org(client: Client) -> None:
    async with enforcer(client, admission(clusters={"hpc": "off"})) as api:
        await give(api, "0.5")
        assert (await api.call("POST", "/v1/admission", {**JOB, "cluster": "hpc"}))[1]["allowed"]
        assert not (await api.call("POST", "/v1/admission", JOB))[1]["allowed"]
        await api.call("PUT", "/v1/orgs/acme", {"policy": {"mode": "shadow"}})
        assert (await api.call("POST", "/v1/admission", JOB))[1]["code"] == "no_credits"
        assert (await api.call("POST", "/v1/admission", JOB))[1]["allowed"]
        await api.call("PUT", "/v1/orgs/acme", {"policy": {"mode": "off"}})
        assert (await api.call("POST", "/v1/admission", JOB))[1]["code"] == "ok"
        assert (await api.call("PUT", "/v1/orgs/acme", {"policy": {"mode": "maybe"}}))[0] == 422


async def test_metrics_have_the_names_of_the_contract_and_go_on_after_a_restart(client: Client) -> None:
    assert (metric_names.ADMISSIONS.name, metric_names.ADMISSION_DURATION.name) == (ADMISSIONS, DURATION)
    decisions = metrics.ALLOWED, metrics.DENIED, metrics.SHADOWED, metrics.EXCEPTED
    known = metric_names.ALLOWED, metric_names.DENIED, metric_names.SHADOWED, metric_names.EXCEPTED
    assert known == decisions  # dashboards and alerts ask for these
    for total in (1.0, 2.0):
        async with enforcer(client) as api:
            await give(api, "100", key=str(total))
            await api.call("POST", "/v1/admission", JOB, "scheduler")
            text = (await api.call("GET", "/metrics", role=None))[1]
            assert f'credits_admissions_total{{decision="allow",reason="ok"}} {total}' in text
            assert "credits_admission_duration_seconds_bucket" in text


async def test_any_enforcer_tells_what_all_of_them_decided(client: Client) -> None:
    here, there = (
        replace(SETTINGS, enforcer=replace(SETTINGS.enforcer, listen=Address("127.0.0.1", port))) for port in (1, 2)
    )

    async def told(api: Api, total: int) -> None:
        async with asyncio.timeout(10):
            text = f'{{decision="deny",reason="unknown_org"}} {total}.0'
            while text not in (await api.call("GET", "/metrics"))[1]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async with enforcer(client, here) as one, enforcer(client, here) as same, enforcer(client, there) as other:
        for number, api in enumerate((one, same, other, one), 1):
            assert not (await api.call("POST", "/v1/admission", JOB, "scheduler"))[1]["allowed"]
            for each in (one, same, other):
                await told(each, number)
    async with enforcer(client, here) as anew:
        assert '{decision="deny",reason="unknown_org"} 4.0' in (await anew.call("GET", "/metrics"))[1]


async def test_health(api: Api) -> None:
    assert (await api.call("GET", "/-/healthy", role=None))[0] == 200
    assert (await api.call("GET", "/-/ready", role=None))[0] == 200


def slurm(**what: Any) -> dict[str, Any]:
    job = {"scheduler": "slurm", "cluster": "hpc", "account": "acme-vision", "user": "ann", "partition": "cpu"}
    return {**job, **what}


async def test_the_slurm_hook_is_answered_by_the_rules_of_its_cluster(api: Api) -> None:
    await give(api, "30")
    body = (await api.call("POST", "/v1/admission/slurm", slurm(array="0-3", time_limit_minutes=6), "scheduler"))[1]
    assert (body["allowed"], body["required"]) == (True, "1.6")
    dearest = (await api.call("POST", "/v1/admission/slurm", slurm(partition="cpu,gpu"), "scheduler"))[1]
    assert dearest["required"] == "10"
    changed = slurm(job_id=7, partition="gpu", time_limit_minutes=6, replaces_hold=body["hold_id"])
    after = (await api.call("POST", "/v1/admission/slurm", changed, "scheduler"))[1]
    assert (after["hold_id"], after["required"]) == (body["hold_id"], "16")
    hold: Any = await api.ledger.client.hget(keys.of_org("acme").holds, body["hold_id"])
    assert json.loads(hold)["source"] == "slurm"  # which lists it while it waits
    assert (await api.call("GET", "/v1/orgs/acme/balance"))[1]["held"] == "26"
    nobody = (await api.call("POST", "/v1/admission/slurm", slurm(account="plain"), "scheduler"))[1]
    assert (nobody["allowed"], nobody["code"]) == (False, "unknown_org")
    assert "account 'plain'" in nobody["reason"]
    unpriced = (await api.call("POST", "/v1/admission/slurm", slurm(partition="gpuu"), "scheduler"))[1]
    assert (unpriced["code"], "Did you mean gpu?" in unpriced["reason"]) == ("unpriced", True)
    for wrong in (slurm(cluster="no"), slurm(array="x"), {}, slurm(user="a\x07")):
        assert (await api.call("POST", "/v1/admission/slurm", wrong, "scheduler"))[0] == 422
    assert (await verify(api.ledger))["ok"]


@pytest.mark.parametrize("account", ["acme-vision", "globex-vision"])
async def test_a_task_of_an_array_that_changes_alone_has_a_hold_of_its_own(api: Api, account: str) -> None:
    """What the array holds is for its other tasks."""
    await give(api, "30")
    await give(api, "30", "globex", "k2")
    body = (await api.call("POST", "/v1/admission/slurm", slurm(array="0-3", time_limit_minutes=6), "scheduler"))[1]
    names, org = keys.of_org("acme"), account.partition("-")[0]
    array: Any = await api.ledger.client.hget(names.holds, body["hold_id"])
    task = slurm(
        account=account, job_id=8, array_task=1, partition="gpu", time_limit_minutes=6, replaces_hold=body["hold_id"]
    )
    alone = (await api.call("POST", "/v1/admission/slurm", task, "scheduler"))[1]
    assert (alone["allowed"], alone["required"]) == (True, "4")
    assert alone["hold_id"] != body["hold_id"]
    again = (await api.call("POST", "/v1/admission/slurm", task, "scheduler"))[1]
    assert again["hold_id"] == alone["hold_id"]
    held = {name: (await api.ledger.accounts.balance(name)).held_micro for name in ("acme", "globex")}
    assert held == ({"acme": 5_600_000, "globex": 0} if org == "acme" else {"acme": 1_600_000, "globex": 4_000_000})
    # Releases are made beside the answer, one after the other: a job that moves has its former hold end.
    plain = (await api.call("POST", "/v1/admission/slurm", slurm(), "scheduler"))[1]
    moved = slurm(account="globex-vision", job_id=9, replaces_hold=plain["hold_id"])
    assert (await api.call("POST", "/v1/admission/slurm", moved, "scheduler"))[1]["allowed"]
    client: Any = api.ledger.client
    async with asyncio.timeout(15):
        while await client.hexists(names.holds, plain["hold_id"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await client.hget(names.holds, body["hold_id"]) == array
    assert (await verify(api.ledger))["ok"]


async def test_a_hook_for_one_org_touches_no_other_org(api: Api) -> None:
    await give(api, "30")
    await give(api, "30", "globex", "k2")
    theirs = await api.call("POST", "/v1/admission/slurm", slurm(account="globex-vision"), "scheduler")
    _, api.tokens["hook"] = await api.ledger.tokens.create("scheduler", "acme")
    moved = slurm(job_id=8, time_limit_minutes=6, replaces_hold=theirs[1]["hold_id"])
    assert (await api.call("POST", "/v1/admission/slurm", moved, "hook"))[1]["allowed"]
    unpriced = slurm(account="globex-vision", partition="gpuu")
    assert (await api.call("POST", "/v1/admission/slurm", unpriced, "hook"))[0] == 403
    await asyncio.sleep(0.3)  # releases are made beside the answer
    assert (await api.ledger.accounts.balance("globex")).held_micro == 1_000_000
    assert await api.ledger.refusals.read("globex", None, 10) == []


@asynccontextmanager
async def with_own_server(
    make_server: Callable[..., ServerProcess], settings: Settings
) -> AsyncIterator[tuple[Api, ServerProcess]]:
    server = make_server()
    async with connect(server.url, None) as client, enforcer(client, settings) as api:
        yield api, server


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - another task sets it
            await asyncio.sleep(0.01)


async def test_without_the_ledger_nothing_starts_unless_the_settings_say_so(
    make_server: Callable[..., ServerProcess],
) -> None:
    async with with_own_server(make_server, admission(decision_seconds=0.3)) as (api, server):
        await give(api, "100")
        assert (await api.call("POST", "/v1/admission", JOB, "scheduler"))[1]["allowed"]
        server.kill9()
        loop = asyncio.get_running_loop()
        for _ in range(3):
            start = loop.time()
            body = (await api.call("POST", "/v1/admission", JOB, "scheduler"))[1]
            assert loop.time() - start < 1.0
            assert (body["allowed"], body["code"]) == (False, "ledger_unavailable")
        assert await api.call("GET", "/-/ready", role=None) == (200, {"status": "ok", "ledger": False})
        assert (await api.call("GET", "/-/healthy", role=None))[0] == 200
        server.start()
        await until(lambda: not api.http.server.app[DESK].aftermath.is_away)  # type: ignore[attr-defined]
        assert (await api.call("POST", "/v1/admission", JOB, "scheduler"))[1]["allowed"]
        assert (await verify(api.ledger))["ok"]


async def test_what_was_let_through_is_capped_and_held_and_journaled_afterwards(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    settings = admission(on_ledger_down="allow", allow_cap_micro=2 * CREDIT, decision_seconds=0.3)
    async with with_own_server(make_server, replace(settings, data_dir=tmp_path)) as (api, server):
        await give(api, "100")
        await api.call("POST", "/v1/admission", {**JOB, "dry_run": True}, "scheduler")
        server.kill9()
        bodies = [(await api.call("POST", "/v1/admission", JOB, "scheduler"))[1] for _ in range(4)]
        assert [body["allowed"] for body in bodies] == [True, True, False, False]
        assert {body["code"] for body in bodies} == {"ledger_unavailable"}
        counted = (await api.call("GET", "/metrics", role=None))[1]
        assert f'{{decision="{metric_names.EXCEPTED}",reason="ledger_unavailable"}} 2.0' in counted
        server.start()
        entries: list[Any] = []
        async with asyncio.timeout(15):
            while len(entries) < 4:
                entries = (await api.call("GET", "/v1/orgs/acme/journal"))[1].get("items", [])[1:]
        assert [entry["type"] for entry in entries] == ["exception", "exception", "refusal", "refusal"]
        assert (await api.call("GET", "/v1/orgs/acme/balance"))[1]["held"] == "2"
        await api.call("POST", f"/v1/admission/{bodies[0]['hold_id']}/release")
        assert (await api.call("GET", "/v1/orgs/acme/balance"))[1]["held"] == "1"


async def test_a_ledger_that_hangs_costs_no_more_than_the_time_set(client: Client) -> None:
    async with enforcer(client, admission(decision_seconds=0.2)) as api:
        await give(api, "100")
        assert (await api.call("POST", "/v1/admission", JOB, "scheduler"))[1]["allowed"]
        await client.execute_command("CLIENT", "PAUSE", "1500", "ALL")
        loop = asyncio.get_running_loop()
        start = loop.time()
        calls = [api.call("POST", "/v1/admission", JOB, "scheduler") for _ in range(20)]
        answers = await asyncio.gather(*calls)
        assert loop.time() - start < 1.0
        assert {body["code"] for _, body in answers} == {"ledger_unavailable"}
        status, problem = await api.call("POST", "/v1/quote", JOB, "scheduler")
        assert (status, problem["code"]) == (503, "ledger_unavailable")
        assert problem["detail"].startswith("Credits cannot be checked right now")
        assert loop.time() - start < 1.0
        desk = api.http.server.app[DESK]  # type: ignore[attr-defined]
        await until(lambda: not desk.aftermath.is_away and not desk.aftermath._releases)
        # The holds that were made after all are given back.
        async with asyncio.timeout(10):
            while (await api.call("GET", "/v1/orgs/acme/balance"))[1]["held"] != "1":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await verify(api.ledger))["ok"]
