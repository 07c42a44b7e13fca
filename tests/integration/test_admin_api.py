"""The admin API over HTTP: corrections, transfers, grants, tokens, conditions, the journal, and who changed it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from config.settings import EnforcerSettings, RedisSettings, Settings
from config.values import Address
from enforcer.app import enforcing
from ledger import keys
from ledger.clock import format_time, now_us
from ledger.connect import Client
from ledger.store import Ledger
from ledger.verify import verify
from tests.transfer_worker import STEPS

HOUR = 3_600_000_000
LOOPBACK = Address("127.0.0.1", 0)
ROLES = ("admin", "owner", "viewer", "scheduler", "other", None)


class Api:
    """A served enforcer and tokens of every role."""

    def __init__(self, url: str, ledger: Ledger, http: aiohttp.ClientSession) -> None:
        self.url = url
        self.ledger = ledger
        self.http = http
        self.tokens: dict[str, str] = {}
        self.headers: Any = {}

    async def call(
        self, method: str, path: str, body: object = None, role: str | None = "admin", **headers: str
    ) -> tuple[int, Any]:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if role is not None:
            given["Authorization"] = f"Bearer {self.tokens[role]}"
        async with self.http.request(method, self.url + path, json=body, headers=given) as response:
            self.headers = response.headers
            if response.status == 204:
                return 204, None
            if response.status >= 400:
                assert response.content_type == "application/problem+json", await response.text()
            return response.status, await response.json(content_type=None)

    async def ok(self, method: str, path: str, body: object = None, role: str | None = "admin", **headers: str) -> Any:
        status, answered = await self.call(method, path, body, role, **headers)
        assert status < 300, answered
        return answered

    async def give(self, org: str, amount: str, key: str = "k", **more: Any) -> None:
        await self.ok("POST", f"/v1/orgs/{org}/grants", {"credits": amount, **more}, Idempotency_Key=key)

    async def have(self, org: str = "acme") -> str:
        return str((await self.ok("GET", f"/v1/orgs/{org}/balance"))["available"])

    async def journal(self, query: str = "", org: str = "acme") -> list[Any]:
        return list((await self.ok("GET", f"/v1/orgs/{org}/journal{query}"))["items"])


@pytest.fixture
async def api(client: Client, valkey_url: str, tmp_path: Path) -> AsyncIterator[Api]:
    proxies = (ip_network("127.0.0.0/8"),)
    settings = Settings(
        path=tmp_path / "settings.yaml", redis=RedisSettings(url=valkey_url), data_dir=tmp_path,
        enforcer=EnforcerSettings(listen=LOOPBACK, trusted_proxies=proxies),
    )  # fmt: skip
    ledger = Ledger(client, 0)
    async with enforcing(settings) as url, aiohttp.ClientSession() as http:
        api = Api(url, ledger, http)
        for role in ROLES[:-1]:
            org = {"owner": "acme", "viewer": "acme", "other": "globex"}.get(str(role))
            _, api.tokens[str(role)] = await ledger.tokens.create("owner" if role == "other" else str(role), org)
        yield api


CORRECTION = {"credits": "-4", "corrects": "k", "reason": "typo"}
TRANSFER = {"from": "acme", "to": "globex", "credits": "4"}


async def test_a_correction_over_http(api: Api) -> None:
    await api.give("acme", "10")
    path = "/v1/orgs/acme/corrections"
    made = await api.ok("POST", path, CORRECTION, Idempotency_Key="c")
    assert api.headers["Idempotent-Replayed"] == "false"
    at = made.pop("at")
    assert made == {
        "org": "acme", "idempotency_key": "c", "credits": "-4", "corrects": "k", "what": "grant", "reason": "typo",
        "grant": None, "overdraft": "0",
    }  # fmt: skip
    assert await api.ok("POST", path, CORRECTION, Idempotency_Key="c") == {**made, "at": at}
    assert api.headers["Idempotent-Replayed"] == "true"
    assert await api.have() == "6"
    status, problem = await api.call("POST", path, {**CORRECTION, "credits": "-3"}, Idempotency_Key="c")
    assert (status, problem["code"]) == (409, "idempotency_conflict")
    assert (await api.call("POST", path, CORRECTION))[1]["code"] == "no_idempotency_key"
    status, problem = await api.call("POST", path, {**CORRECTION, "corrects": "nope"}, Idempotency_Key="d")
    assert (status, "'nope'" in problem["detail"]) == (422, True)
    status, problem = await api.call("POST", path, {**CORRECTION, "credits": "-7"}, Idempotency_Key="d")
    assert (status, "comes to 6 credits" in problem["detail"]) == (422, True)
    assert (await api.call("POST", "/v1/orgs/nobody/corrections", CORRECTION, Idempotency_Key="d"))[0] == 404
    assert (await verify(api.ledger))["ok"]


@pytest.mark.parametrize("text", ["1_000", "１２", "1e3", " 5", "+5", ".5", "1.0000000"])
async def test_amounts_are_no_looser_than_they_are_described(api: Api, text: str) -> None:
    calls = [
        ("POST", "/v1/orgs/acme/grants", {"credits": text}),
        ("POST", "/v1/orgs/acme/corrections", {"credits": text, "corrects": "k", "reason": "r"}),
        ("POST", "/v1/transfers", {"from": "acme", "to": "globex", "credits": text}),
        ("PUT", "/v1/orgs/acme/budgets/vision", {"credits": text}),
        ("PUT", "/v1/orgs/acme", {"credit_line": text}),
    ]
    await api.give("acme", "100")
    before = await api.ok("GET", "/v1/orgs/acme/balance")
    for method, path, body in calls:
        status, answered = await api.call(method, path, body, Idempotency_Key="loose")
        assert (status, answered["code"]) == (422, "invalid"), (path, answered)
        field = "credit_line" if "credit_line" in body else "credits"
        assert answered["detail"].startswith(f"{field} {text!r} "), answered
    assert before == await api.ok("GET", "/v1/orgs/acme/balance")


async def test_a_credit_line_that_is_null_stays_as_it_is(api: Api) -> None:
    await api.ok("PUT", "/v1/orgs/acme", {"credit_line": 7.5})
    assert (await api.ok("PUT", "/v1/orgs/acme", {"credit_line": None, "contact": "x"}))["credit_line"] == "7.5"
    assert (await api.ok("PUT", "/v1/orgs/acme", {"contact": "y"}))["credit_line"] == "7.5"
    assert (await api.ok("PUT", "/v1/orgs/acme", {"credit_line": 0}))["credit_line"] == "0"


@pytest.mark.parametrize(
    ("policy", "said"),
    [({"mode": "maybe"}, "policy.mode: 'maybe' is none of enforce, shadow, off"), ({"mode": ["off"]}, "policy.mode: "),
     ({"then": "halt"}, "policy.then: 'halt' is none of block, suspend, stop"),
     ({"grace_minutes": "10"}, "policy.grace_minutes: '10' is not a number from 0 to 999999"),
     ({"warn_hours_left": True}, "policy.warn_hours_left: "), ({"grace_minutes": -1}, "policy.grace_minutes: "),
     ({"thne": "stop"}, "policy: 'thne' is none of mode, then, warn_hours_left, grace_minutes; a name of your own")],
)  # fmt: skip
async def test_a_policy_that_would_do_nothing_is_refused(api: Api, policy: Any, said: str) -> None:
    kept = {"mode": None, "then": "stop", "grace_minutes": 1.5, "x-desk": [1]}
    assert (await api.ok("PUT", "/v1/orgs/acme", {"policy": kept}))["policy"] == kept
    status, problem = await api.call("PUT", "/v1/orgs/acme", {"policy": policy})
    assert (status, problem["detail"][: len(said)]) == (422, said)
    assert (await api.ok("GET", "/v1/orgs/acme"))["policy"] == kept


async def test_a_transfer_over_http(api: Api) -> None:
    expires = format_time(now_us() + HOUR)
    await api.give("acme", "10", expires_at=expires)
    await api.give("globex", "1")
    made = await api.ok("POST", "/v1/transfers", TRANSFER, Idempotency_Key="t")
    assert (made["from"], made["to"], made["credits"], made["state"]) == ("acme", "globex", "4", "done")
    assert made["parts"] == [{"credits": "4", "expires_at": expires}]
    assert await api.ok("POST", "/v1/transfers", TRANSFER, Idempotency_Key="t") == made
    assert api.headers["Idempotent-Replayed"] == "true"
    assert (await api.have(), await api.have("globex")) == ("6", "5")
    for body, key, expected in (
        ({**TRANSFER, "credits": "3"}, "t", (409, "idempotency_conflict")),
        ({**TRANSFER, "from": "globex", "to": "acme"}, "t", (409, "idempotency_conflict")),
        ({**TRANSFER, "credits": "7"}, "u", (409, "insufficient")),
        ({**TRANSFER, "to": "nobody"}, "v", (404, "unknown_org")),
        ({**TRANSFER, "to": "acme"}, "v", (422, "invalid")),
        ({**TRANSFER, "credits": "0"}, "v", (422, "invalid")),
        (TRANSFER, "", (400, "no_idempotency_key")),
    ):
        status, problem = await api.call("POST", "/v1/transfers", body, Idempotency_Key=key)
        assert (status, problem["code"]) == expected
        assert expected[1] != "insufficient" or "insufficient" in problem["detail"]
    assert (await verify(api.ledger))["ok"]


async def test_an_enforcer_finishes_at_its_start_what_another_left(
    client: Client, valkey_url: str, tmp_path: Path
) -> None:
    ledger = Ledger(client, 0)
    for org in ("acme", "globex"):
        await ledger.accounts.grant(org, 10_000_000, key="k", who="test")

    class Dies(Exception):
        pass

    class Dying:
        async def durably(self, *_: object) -> None:
            raise Dies

    assert "give" in STEPS
    ledger.transfers._give = Dying()  # type: ignore[assignment]
    with pytest.raises(Dies):
        await ledger.transfers.transfer("acme", "globex", 4_000_000, key="t", who="test")
    settings = Settings(
        path=tmp_path / "settings.yaml", redis=RedisSettings(url=valkey_url), data_dir=tmp_path,
        enforcer=EnforcerSettings(listen=LOOPBACK),
    )  # fmt: skip
    async with enforcing(settings), asyncio.timeout(15):
        while (await ledger.accounts.balance("globex")).left_micro != 14_000_000:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await ledger.accounts.balance("acme")).left_micro == 6_000_000
    assert (await verify(ledger))["ok"]


async def test_grants_are_listed_with_what_is_left_of_them(api: Api) -> None:
    later = format_time(now_us() + HOUR)
    await api.give("acme", "10", "a")
    await api.give("acme", "5", "b", effective_at=later)
    await api.give("acme", "2", "c", effective_at="2026-01-01T00:00:00Z", expires_at="2026-02-01T00:00:00Z")
    await api.give("acme", "3", "d")
    correction = {**CORRECTION, "corrects": "d", "credits": "-3"}
    await api.ok("POST", "/v1/orgs/acme/corrections", correction, Idempotency_Key="x")
    found: list[Any] = []
    cursor = ""
    while cursor is not None:
        page = await api.ok("GET", f"/v1/orgs/acme/grants?limit=3&cursor={cursor}", role="viewer")
        found, cursor = found + page["items"], page["next"]
    assert [(one["idempotency_key"], one["remaining"], one["state"], one["corrected"]) for one in found] == [
        ("a", "10", "in_force", "0"), ("b", "5", "not_yet", "0"), ("c", "2", "expired", "0"),
        ("d", "0", "used_up", "-3"),
    ]  # fmt: skip
    newest = await api.ok("GET", "/v1/orgs/acme/grants?order=desc&limit=1")
    assert ([one["idempotency_key"] for one in newest["items"]], newest["next"]) == (["d"], "d")
    assert (await api.call("GET", "/v1/orgs/acme/grants?order=down"))[0] == 422
    assert (await api.call("GET", "/v1/orgs/acme/grants?cursor=zzz"))[0] == 422
    assert (await api.call("GET", "/v1/orgs/nobody/grants"))[0] == 404


async def test_the_answer_to_a_grant_says_that_it_made_the_org(api: Api) -> None:
    grant = {"credits": "1"}
    made = await api.ok("POST", "/v1/orgs/amce/grants", grant, Idempotency_Key="one")
    assert made["new_org"] is True
    assert await api.ok("POST", "/v1/orgs/amce/grants", grant, Idempotency_Key="one") == made
    assert "new_org" not in await api.ok("POST", "/v1/orgs/amce/grants", grant, Idempotency_Key="two")
    await api.ok("PUT", "/v1/orgs/set-up", {})
    assert "new_org" not in await api.ok("POST", "/v1/orgs/set-up/grants", grant, Idempotency_Key="one")


async def test_admins_make_any_token_and_see_them_all(api: Api) -> None:
    expires = format_time(now_us() + HOUR)
    for body in ({"role": "admin"}, {"role": "scheduler", "org": "acme"}, {"role": "viewer", "org": "x", "note": "n"}):
        made = await api.ok("POST", "/v1/tokens", {**body, "expires_at": expires})
        assert made.keys() == {"id", "role", "org", "token", "expires_at"}
        assert api.headers["Cache-Control"] == "no-store"
        assert await api.ledger.tokens.authenticate(made["token"]) is not None
    everything = await api.ok("GET", "/v1/tokens?limit=3")
    rest = await api.ok("GET", f"/v1/tokens?cursor={everything['next']}")
    assert len(everything["items"] + rest["items"]) == 8
    assert made["token"] not in str(rest)
    assert rest["items"][-1]["note"] == "n"
    for body in (
        {"role": "root"}, {"role": "owner"}, {"role": "admin", "org": "acme"}, {"role": "viewer", "org": ""},
        {"role": "admin", "expires_at": "2020-01-01T00:00:00Z"}, {"role": "admin", "note": "x" * 201}, {},
    ):  # fmt: skip
        assert (await api.call("POST", "/v1/tokens", body))[0] == 422


async def test_owners_make_tokens_of_their_own_org_that_do_no_more_than_theirs(api: Api) -> None:
    made = await api.ok("POST", "/v1/tokens", {"role": "viewer"}, "owner")
    assert (made["role"], made["org"]) == ("viewer", "acme")
    for body in ({"role": "admin"}, {"role": "scheduler"}, {"role": "viewer", "org": "globex"}):
        assert (await api.call("POST", "/v1/tokens", body, "owner"))[0] == 403
    ends = now_us() + HOUR
    _, api.tokens["short"] = await api.ledger.tokens.create("owner", "acme", expires_us=ends)
    made = await api.ok("POST", "/v1/tokens", {"role": "owner", "org": "acme"}, "short")
    assert made["expires_at"] == format_time(ends)
    beyond = {"role": "viewer", "expires_at": format_time(ends + 1)}
    assert (await api.call("POST", "/v1/tokens", beyond, "short"))[0] == 422
    listed = (await api.ok("GET", "/v1/tokens", role="owner"))["items"]
    assert {one["org"] for one in listed} == {"acme"}
    assert len(listed) == 5


async def test_tokens_are_revoked_by_those_whose_they_are(api: Api) -> None:
    ids = {name: (await api.ledger.tokens.authenticate(token)).id for name, token in api.tokens.items()}  # type: ignore[union-attr]
    hook, _ = await api.ledger.tokens.create("scheduler", "acme")
    assert (await api.call("DELETE", f"/v1/tokens/{ids['other']}", role="owner"))[0] == 404
    assert (await api.call("DELETE", f"/v1/tokens/{ids['admin']}", role="owner"))[0] == 404
    assert (await api.call("DELETE", f"/v1/tokens/{hook.id}", role="owner"))[0] == 403
    assert (await api.call("DELETE", f"/v1/tokens/{ids['viewer']}", role="owner"))[0] == 204
    assert (await api.call("GET", "/v1/orgs", role="viewer"))[0] == 401
    assert (await api.call("DELETE", f"/v1/tokens/{ids['viewer']}"))[0] == 404
    status, problem = await api.call("DELETE", f"/v1/tokens/{ids['admin']}")
    assert (status, problem["code"]) == (409, "last_admin")
    expired, _ = await Ledger(api.ledger.client, 0, lambda: now_us() - HOUR).tokens.create(
        "admin", expires_us=now_us() - 1000
    )
    assert (await api.call("DELETE", f"/v1/tokens/{ids['admin']}"))[0] == 409, f"{expired.id} is no admin any more"
    await api.ledger.tokens.create("admin")
    assert (await api.call("DELETE", f"/v1/tokens/{ids['admin']}"))[0] == 204


async def test_two_who_edit_an_org_do_not_overwrite_each_other(api: Api) -> None:
    await api.give("acme", "10")
    settings = await api.ok("GET", "/v1/orgs/acme", role="viewer")
    assert settings == {"org": "acme", "unlimited": False, "credit_line": "0", "contact": None, "policy": {}}
    first = api.headers["ETag"]
    await api.ok("PUT", "/v1/orgs/acme", {"contact": "a"}, If_Match=first)
    second = api.headers["ETag"]
    assert second != first
    status, problem = await api.call("PUT", "/v1/orgs/acme", {"contact": "b"}, If_Match=first)
    assert (status, problem["code"]) == (412, "changed")
    await api.give("acme", "10", "k2")  # a grant is no edit
    await api.ok("PUT", "/v1/orgs/acme", {"contact": "b"}, If_Match=second)
    await api.ok("PUT", "/v1/orgs/acme", {"contact": "c"})  # the last one wins
    await api.ok("PUT", "/v1/orgs/acme", {"unlimited": True, "credit_line": 0}, If_Match="*")
    found = await api.ok("GET", "/v1/orgs/acme")
    assert (found["contact"], found["unlimited"], found["credit_line"]) == ("c", True, "0")
    for wrong, expected in (('W/"x"', 412), ('"a", "b"', 422), ("x", 422), ('""', 422), ('"é"', 422)):
        assert (await api.call("PUT", "/v1/orgs/acme", {"contact": "d"}, If_Match=wrong))[0] == expected
    assert (await api.call("PUT", "/v1/orgs/nobody", {}, If_Match="*"))[0] == 404
    assert await api.ledger.accounts.orgs() == ["acme"]


async def test_two_who_edit_budgets_do_not_overwrite_each_other(api: Api) -> None:
    await api.give("acme", "10")
    path = "/v1/orgs/acme/budgets/vision/ann"
    assert (await api.call("PUT", path, {"credits": "1"}, If_Match="*"))[0] == 412
    await api.ok("PUT", path, {"credits": "0"}, "owner")
    first = api.headers["ETag"]
    [state] = (await api.ok("GET", path, role="viewer"))["items"]
    assert (api.headers["ETag"], state["credits"], state["period"]) == (first, "0", "month")
    await api.ok("PUT", "/v1/orgs/acme/budgets/vision", {"credits": "5"})  # another one
    await api.ok("PUT", path, {"credits": "3", "period": "day"}, If_Match=first)
    second = api.headers["ETag"]
    assert (await api.call("PUT", path, {"credits": "4"}, If_Match=first))[1]["code"] == "changed"
    assert (await api.call("DELETE", path, If_Match=first))[0] == 412
    assert len((await api.ok("GET", path))["items"]) == 2
    assert api.headers["ETag"] == second
    assert [one["period"] for one in (await api.ok("GET", f"{path}?period=day"))["items"]] == ["day"]
    assert (await api.call("DELETE", path, If_Match=second))[0] == 204
    assert (await api.call("GET", path))[0] == 404
    kinds = [entry["type"] for entry in await api.journal("?type=budget,budget_removed")]
    assert kinds == ["budget", "budget", "budget", "budget_removed", "budget_removed"]


@pytest.mark.parametrize("what", ["org", "budget"])
async def test_of_many_who_edit_at_once_one_wins(api: Api, what: str) -> None:
    await api.give("acme", "10")
    await api.ok("PUT", "/v1/orgs/acme/budgets/vision", {"credits": "1"})
    path, field = ("/v1/orgs/acme", "contact") if what == "org" else ("/v1/orgs/acme/budgets/vision", "credits")
    await api.ok("GET", path)
    tag = api.headers["ETag"]
    answers = await asyncio.gather(*(api.call("PUT", path, {field: str(n + 2)}, If_Match=tag) for n in range(8)))
    assert sorted(status for status, _ in answers) == [200, *[412] * 7]


async def test_every_change_says_who_made_it_and_from_where(api: Api) -> None:
    through = {"X_Forwarded_For": "203.0.113.9"}
    await api.ok("POST", "/v1/orgs/acme/grants", {"credits": "10"}, Idempotency_Key="k", **through)
    await api.ok("POST", "/v1/orgs/globex/grants", {"credits": "10"}, Idempotency_Key="k", **through)
    await api.ok("PUT", "/v1/orgs/acme", {"contact": "a"}, **through)
    await api.ok("PUT", "/v1/orgs/acme/budgets/vision", {"credits": "1"}, **through)
    await api.ok("DELETE", "/v1/orgs/acme/budgets/vision", **through)
    await api.ok("POST", "/v1/orgs/acme/corrections", CORRECTION, Idempotency_Key="c", **through)
    await api.ok("POST", "/v1/transfers", TRANSFER, Idempotency_Key="t", **through)
    who = f"token:{(await api.ledger.tokens.authenticate(api.tokens['admin'])).id} (admin)"  # type: ignore[union-attr]
    entries = await api.journal() + await api.journal(org="globex")
    assert [entry["type"] for entry in entries] == [
        "grant", "org", "budget", "budget_removed", "correction", "transfer", "grant", "transfer",
    ]  # fmt: skip
    assert {(entry["who"], entry["from"]) for entry in entries} == {(who, "203.0.113.9")}
    made = await api.ok("POST", "/v1/tokens", {"role": "viewer", "org": "acme"}, **through)
    await api.ok("DELETE", f"/v1/tokens/{made['id']}")
    audit = (await api.ok("GET", "/v1/audit?order=desc&limit=2"))["items"]
    assert [(one["type"], one["token"], one["who"], one["from"]) for one in audit] == [
        ("token_revoked", made["id"], who, "127.0.0.1"), ("token_created", made["id"], who, "203.0.113.9"),
    ]  # fmt: skip
    assert made["token"] not in str(audit)


async def test_the_journal_by_type_and_time_from_either_end(api: Api) -> None:
    for number in range(6):
        await api.give("acme", "1", str(number))
        await api.ok("PUT", "/v1/orgs/acme", {"contact": str(number)})
    refused = {"cluster": "c", "org": "acme", "project": "p", "user": "u", "preset": "nope"}
    await api.ok("POST", "/v1/admission", refused)
    async with asyncio.timeout(15):
        while len(await api.journal()) < 13:
            pass
    everything = await api.journal()
    for query, said in (
        ("limt=2", "'limt' is no parameter of this; did you mean 'limit'?"),
        ("type=a&type=b", "type: said"),
    ):
        status, problem = await api.call("GET", f"/v1/orgs/acme/journal?{query}")
        assert (status, problem["detail"].startswith(said)) == (422, True)
    assert await api.journal("?order=desc") == everything[::-1]
    for query, expected in (
        ("type=grant", [one for one in everything if one["type"] == "grant"]),
        ("type=grant,refusal", [one for one in everything if one["type"] in ("grant", "refusal")]),
        ("type=transfer", []),
        ("", everything),
    ):
        for order in ("asc", "desc"):
            items: list[Any] = []
            cursor = ""
            while cursor is not None:
                page = await api.ok("GET", f"/v1/orgs/acme/journal?{query}&order={order}&limit=2&cursor={cursor}")
                items, cursor = items + page["items"], page["next"]
                assert len(page["items"]) <= 2
            assert items == (expected if order == "asc" else expected[::-1])
    ms = int(everything[4]["id"].split("-")[0])
    since = format_time(ms * 1000)
    assert await api.journal(f"?from={since}") == [one for one in everything if int(one["id"].split("-")[0]) >= ms]
    assert await api.journal(f"?to={since}") == [one for one in everything if int(one["id"].split("-")[0]) < ms]
    assert await api.journal("?to=1970-01-01T00:00:00Z") == []
    for wrong in ("order=up", "from=x", "cursor=0-0_", f"cursor={2**64}-1_", "cursor=1-1", "type=grant,typo"):
        status, problem = await api.call("GET", f"/v1/orgs/acme/journal?{wrong}")
        assert (status, problem["code"]) == (422, "invalid")
    assert problem["detail"].startswith("type: 'typo' is none of grant, correction, transfer, withdrawal")
    assert (await api.call("GET", "/v1/audit?cursor=1-1_1-1"))[0] == 422


async def test_a_filter_that_little_passes_gives_short_pages(api: Api) -> None:
    await api.give("acme", "1")
    raw: Any = api.ledger.client
    async with raw.pipeline(transaction=False) as pipe:
        for _ in range(5200):
            pipe.xadd(keys.of_org("acme").journal, {"entry": b'{"type":"org","at":"2026-11-22T10:00:00Z"}'})
        await pipe.execute()
    await api.give("acme", "1", "k2")
    page = await api.ok("GET", "/v1/orgs/acme/journal?type=grant&limit=10")
    assert len(page["items"]) == 1
    page = await api.ok("GET", f"/v1/orgs/acme/journal?type=grant&limit=10&cursor={page['next']}")
    assert ([one["key"] for one in page["items"]], page["next"]) == (["k2"], None)


@pytest.mark.parametrize(
    ("method", "path", "body", "allowed"),
    [
        ("POST", "/v1/orgs/acme/corrections", CORRECTION, ("admin",)),
        ("POST", "/v1/transfers", TRANSFER, ("admin",)),
        ("GET", "/v1/orgs/acme/grants", None, ("admin", "owner", "viewer")),
        ("GET", "/v1/orgs/acme", None, ("admin", "owner", "viewer")),
        ("GET", "/v1/orgs/acme/budgets/vision", None, ("admin", "owner", "viewer")),
        ("GET", "/v1/tokens", None, ("admin", "owner", "other")),
        ("POST", "/v1/tokens", {"role": "viewer", "org": "acme"}, ("admin", "owner")),
        ("DELETE", "/v1/tokens/x", None, ("admin", "owner", "other")),
        ("GET", "/v1/audit", None, ("admin",)),
    ],
)
async def test_each_role_may_do_what_is_its_own_and_nothing_else(
    api: Api, method: str, path: str, body: object, allowed: tuple[str, ...]
) -> None:
    await api.give("acme", "10")
    await api.give("globex", "10")
    for role in ROLES:
        status, _ = await api.call(method, path, body, role, Idempotency_Key="c")
        assert (status not in (401, 403)) == (role in allowed), (role, status)
        if role is None:
            assert status == 401


def test_the_settings_say_whose_word_counts() -> None:
    settings = Settings(path=Path("x"))
    assert settings.enforcer.trusted_proxies == ()
    assert replace(settings.enforcer, trusted_proxies=(ip_network("10.0.0.0/8"),)).trusted_proxies
