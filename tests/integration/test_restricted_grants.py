"""Grants for some work only, purposes and credit lines, as they are given, told and refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ledger import keys
from ledger.accounts import GrantRecord
from ledger.connect import Client
from ledger.embedded import open_embedded
from ledger.errors import IdempotencyConflict, InvalidRequest
from ledger.scopes import SCOPES_MAX, Scope
from ledger.store import Ledger
from ledger.verify import verify
from tests.cli_lab import Lab
from tests.integration.test_enforcer_http import JOB, Api, api  # noqa: F401 (a fixture)

CREDIT = 1_000_000
T0 = 1_795_000_000_000_000
pytestmark = pytest.mark.redis


async def test_a_grant_says_what_it_is_for_and_what_it_pays_for(api: Api) -> None:  # noqa: F811
    body = {"credits": "10", "reason": "r", "purpose": "course AI 101", "only": {"presets": ["gpu", "a", "gpu"]}}
    status, made = await api.call("POST", "/v1/orgs/acme/grants", body, Idempotency_Key="k")
    assert (status, made["purpose"]) == (201, "course AI 101")
    assert made["only"] == {"presets": ["a", "gpu"], "clusters": []}
    assert await api.call("POST", "/v1/orgs/acme/grants", body, Idempotency_Key="k") == (201, made)
    for other in ({**body, "purpose": ""}, {**body, "only": None}, {**body, "only": {"presets": ["gpu"]}}):
        assert (await api.call("POST", "/v1/orgs/acme/grants", other, Idempotency_Key="k"))[0] == 409
    entry = (await api.call("GET", "/v1/orgs/acme/journal"))[1]["items"][-1]
    assert (entry["purpose"], entry["only"]) == ("course AI 101", {"presets": ["a", "gpu"], "clusters": []})
    _, balance = await api.call("GET", "/v1/orgs/acme/balance")
    assert balance["available"] == "10"
    assert "credit_line" not in balance
    assert balance["restricted"] == [{"presets": ["a", "gpu"], "clusters": [], "left": "10"}]
    _, said = await api.call("POST", "/v1/admission", JOB, "scheduler")
    assert (said["code"], said["available"]) == ("no_credits", "0")
    assert "10 credits for presets a, gpu" in said["reason"]
    _, said = await api.call("POST", "/v1/admission", {**JOB, "preset": "gpu"}, "scheduler")
    assert (said["code"], said["available"], said["required"]) == ("ok", "0", "10")


@pytest.mark.parametrize(
    ("only", "words"),
    [
        ({}, "name a preset or a cluster"),
        ({"presets": []}, "name a preset or a cluster"),
        ({"presets": ["a\x1fb"]}, "preset"),
        ({"clusters": ["x" * 254]}, "cluster"),
        ({"clusters": [""]}, "cluster"),
        ({"presets": [f"p{n}" for n in range(51)]}, "at most 50"),
        ({"presets": "gpu"}, "only.presets"),
        ({"preset": ["gpu"]}, "preset"),
        ("gpu", "only"),
    ],
)
async def test_a_restriction_that_makes_no_sense_is_refused(api: Api, only: Any, words: str) -> None:  # noqa: F811
    body = {"credits": "10", "only": only}
    status, problem = await api.call("POST", "/v1/orgs/acme/grants", body, Idempotency_Key="k")
    assert status == 422
    assert words in problem["detail"]
    assert (await api.call("GET", "/v1/orgs/acme/balance"))[0] == 404


async def test_a_credit_line_is_set_and_taken_away_again(api: Api) -> None:  # noqa: F811
    status, org = await api.call("PUT", "/v1/orgs/acme", {"credit_line": "2.5"})
    assert (status, org["credit_line"], org["stage"]) == (201, "2.5", "ok")
    _, said = await api.call("POST", "/v1/admission", {**JOB, "count": 2}, "scheduler")
    assert (said["code"], said["available"]) == ("ok", "-2")
    status, said = await api.call("POST", "/v1/admission", JOB, "scheduler")
    assert (said["code"], said["available"]) == ("no_credits", "-2")
    assert said["reason"].startswith("Org acme has 0.5 credits of its credit line of 2.5 left; this needs 1 credit")
    for wrong in ("-1", "10000000000", "x"):
        assert (await api.call("PUT", "/v1/orgs/acme", {"credit_line": wrong}))[0] == 422
    assert (await api.call("PUT", "/v1/orgs/acme", {"contact": "x"}))[1]["credit_line"] == "2.5"
    assert (await api.call("PUT", "/v1/orgs/acme", {"credit_line": 0}))[1]["credit_line"] == "0"
    assert (await api.call("GET", "/v1/orgs/acme/journal"))[1]["items"][0]["credit_line"] == "2.5"
    assert (await api.call("GET", "/v1/orgs/acme/balance"))[1]["stage"] == "block"


async def test_a_grant_without_either_is_written_and_repeated_as_ever(client: Client) -> None:
    ledger = Ledger(client, T0, lambda: T0)
    await ledger.accounts.grant("acme", CREDIT, key="k", who="t", reason="r")
    packed = await client.hget(keys.of_org("acme").grants, "k")
    fields: dict[str, Any] = msgspec.json.decode(packed)
    body = ["acme", CREDIT, "provision", "r", None, None]
    assert fields.pop("digest") == hashlib.sha256(msgspec.json.encode(body)).hexdigest()
    assert fields.keys() == set(GrantRecord.__struct_fields__) - {"digest", "purpose", "presets", "clusters"}
    assert (await client.hget(keys.of_org("acme").purse, "k")) == f"{T0}||{CREDIT}".encode()
    entry = (await ledger.accounts.journal("acme"))[0][0]
    assert not {"purpose", "only"} & entry.keys()
    with pytest.raises(IdempotencyConflict):
        await ledger.accounts.grant("acme", CREDIT, key="k", who="t", reason="r", purpose="p")


async def test_there_are_so_many_different_restrictions_at_a_time(client: Client) -> None:
    now = [T0]
    ledger = Ledger(client, T0, lambda: now[0])

    async def give(preset: str, key: str, expires_us: int | None = None) -> None:
        await ledger.accounts.grant("acme", 1, key=key, who="t", presets=[preset], expires_us=expires_us)

    for number in range(SCOPES_MAX):
        await give(f"p{number}", str(number), T0 + 10 if number == 0 else None)
    with pytest.raises(InvalidRequest, match="6 different ways"):
        await give("more", "more")
    assert (await ledger.accounts.balance("acme")).granted_micro == SCOPES_MAX
    await give("p1", "again")  # not a different one
    now[0] = T0 + 10
    await give("more", "more")  # one is over
    with pytest.raises(InvalidRequest, match="6 different ways"):
        await give("p0", "late")
    assert set((await ledger.accounts.balance("acme")).restricted) == {
        *(Scope((f"p{n}",)) for n in range(1, SCOPES_MAX)), Scope(("more",)),
    }  # fmt: skip
    assert (await verify(ledger))["ok"]


async def test_what_is_taken_back_is_taken_from_the_grant_itself_or_from_unrestricted_ones(client: Client) -> None:
    ledger = Ledger(client, T0, lambda: T0)
    await ledger.accounts.grant("acme", 10 * CREDIT, key="gpu", who="t", presets=["gpu"])
    await ledger.accounts.grant("acme", 5 * CREDIT, key="any", who="t")

    async def take(micro: int, corrects: str, key: str) -> tuple[int, int, int]:
        await ledger.corrections.correct("acme", -micro, corrects=corrects, key=key, reason="r", who="t")
        balance = await ledger.accounts.balance("acme")
        return sum(balance.restricted.values()) // CREDIT, balance.owed_micro // CREDIT, balance.left_micro // CREDIT

    entry = (await ledger.accounts.journal("acme"))[0][0]["id"]
    assert await take(4 * CREDIT, "gpu", "1") == (6, 0, 11)
    assert await take(2 * CREDIT, "any", "2") == (6, 0, 9)
    journal = (await ledger.accounts.journal("acme"))[0]
    assert entry == journal[0]["id"]
    assert await take(1 * CREDIT, journal[-1]["id"], "3") == (6, 0, 8)
    assert await take(3 * CREDIT, "any", "4") == (6, 1, 5)
    # What is owed so is paid by the next grant that is for any work.
    await ledger.accounts.grant("acme", 3 * CREDIT, key="more gpu", who="t", presets=["gpu"])
    assert (await ledger.accounts.balance("acme")).owed_micro == CREDIT
    await ledger.accounts.grant("acme", 3 * CREDIT, key="more", who="t")
    balance = await ledger.accounts.balance("acme")
    assert (balance.owed_micro, balance.left_micro, sum(balance.restricted.values())) == (0, 11 * CREDIT, 9 * CREDIT)
    assert (await verify(ledger))["ok"]


@pytest.mark.slow
class TestCommandLine:
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Iterator[Lab]:
        lab = Lab(tmp_path)
        with open_embedded(tmp_path / "var"):
            yield lab

    def test_restricted_grants_and_credit_lines(self, lab: Lab) -> None:
        options = ("--purpose", "course", "--preset", "gpu-large", "--preset", "odd", "--cluster", "default")
        said = lab.ok("grant", "acme", "5", *options, "--idempotency-key", "k")
        assert "pays only for presets gpu-large, odd in cluster default\n" in said
        made = lab.json("grant", "acme", "5", *options, "--idempotency-key", "k")
        only = {"presets": ["gpu-large", "odd"], "clusters": ["default"]}
        assert (made["replayed"], made["purpose"], made["only"]) == (True, "course", only)
        lab.ok("org", "set", "acme", "--credit-line", "7")
        balance = lab.json("balance", "acme")
        assert (balance["available"], balance["credit_line"]) == ("5", "7")
        assert balance["restricted"] == [{**only, "left": "5"}]
        assert lab.run("org", "set", "acme", "--credit-line", "-1").returncode != 0
