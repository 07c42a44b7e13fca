"""Usage and statements over HTTP: who sees what, in which form."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from config.settings import Settings
from enforcer.app import build_app
from ledger.clock import format_time
from tests.histories import HOUR, T0
from tests.usage_lab import UsageLab, job, usage_lab

pytestmark = pytest.mark.redis
PERIOD = f"from={format_time(T0)}&to={format_time(T0 + 3 * HOUR)}"


class Api:
    def __init__(self, http: TestClient[Any, Any], lab: UsageLab, tokens: dict[str, str]) -> None:
        self.http = http
        self.lab = lab
        self.tokens = tokens

    async def get(self, path: str, role: str | None = "admin", accept: str = "") -> tuple[int, str, str]:
        """(status, media type, text)"""
        headers = {"Accept": accept} if accept else {}
        if role is not None:
            headers["Authorization"] = f"Bearer {self.tokens[role]}"
        async with self.http.get(path, headers=headers) as response:
            return response.status, response.content_type, await response.text()

    async def json(self, path: str, role: str = "admin") -> Any:
        status, _, text = await self.get(path, role)
        assert status == 200, text
        return json.loads(text)


@pytest.fixture
async def api(valkey_url: str) -> AsyncIterator[Api]:
    """Two orgs that used 81 and 3 credits in three hours."""
    async with usage_lab(valkey_url) as lab:
        work = [job("a", T0, T0 + 2 * HOUR, project="=vision"), job("b", T0, org="beta", preset="cpu-small")]
        await lab.take(T0 + 3 * HOUR, work)
        tokens = {}
        for role, org in (("admin", None), ("owner", "acme"), ("viewer", "beta"), ("scheduler", None)):
            _, tokens[role] = await lab.ledger.tokens.create(role, org)
        async with TestClient(TestServer(build_app(lab.ledger, Settings(path=Path("settings.yaml"))))) as http:
            yield Api(http, lab, tokens)


async def test_an_admin_sees_all_orgs_and_others_their_own(api: Api) -> None:
    assert [row["org"] for row in (await api.json(f"/v1/usage?{PERIOD}"))["rows"]] == ["acme", "beta"]
    for role, org, total in (("owner", "acme", "81"), ("viewer", "beta", "3")):
        answer = await api.json(f"/v1/usage?{PERIOD}", role)
        assert ([row["org"] for row in answer["rows"]], answer["total"]) == ([org], total)
        assert (await api.json(f"/v1/usage?{PERIOD}&org={org}&group_by=workload", role))["total"] == total
    assert (await api.get(f"/v1/usage?{PERIOD}&org=beta", "owner"))[0] == 403
    assert (await api.get("/v1/orgs/beta/statement?month=2026-11", "owner"))[0] == 403
    assert (await api.get(f"/v1/usage?{PERIOD}", "scheduler"))[0] == 403
    assert (await api.get(f"/v1/usage?{PERIOD}", None))[0] == 401
    assert (await api.get(f"/v1/usage?{PERIOD}&org=gamma"))[0] == 404


async def test_without_a_period_it_is_all_there_ever_was(api: Api) -> None:
    answer = await api.json("/v1/usage")
    assert (answer["from"], answer["to"], answer["total"]) == ("2026-11-01T00:00:00Z", "2026-11-01T03:00:00Z", "84")


async def test_csv_opens_in_a_spreadsheet(api: Api) -> None:
    status, kind, text = await api.get(f"/v1/usage?{PERIOD}&group_by=org,project&step=hour", accept="text/csv")
    assert (status, kind) == (200, "text/csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0] == {
        "at": "2026-11-01T00:00:00Z",
        "org": "acme",
        "project": "'=vision",
        "credits": "40.5",
        "hours": "1",
        "refunded": "",
    }
    assert (rows[-1]["at"], rows[-1]["credits"]) == ("total", "84")


async def test_pages_over_http(api: Api) -> None:
    path, rows, cursor = f"/v1/usage?{PERIOD}&group_by=org,user&step=hour&limit=2", [], ""
    while cursor is not None:
        page = await api.json(f"{path}&cursor={cursor}")
        rows += page["rows"]
        cursor = page["next"]
        assert page["total"] == "84"
    assert rows == (await api.json(f"/v1/usage?{PERIOD}&group_by=org,user&step=hour"))["rows"]
    assert len(rows) == 5


async def test_a_statement_as_json_csv_and_html(api: Api) -> None:
    path = "/v1/orgs/acme/statement?month=2026-11&timezone=Europe/Berlin"
    assert (await api.json(path, "owner"))["closing"] == "-81"
    status, kind, text = await api.get(path, "owner", "text/csv")
    assert (status, kind) == (200, "text/csv")
    assert text.splitlines()[-1].startswith("closing balance")
    status, kind, text = await api.get(path, "owner", "text/html,application/xhtml+xml")
    assert (status, kind) == (200, "text/html")
    assert "−81.00" in text


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("group_by=team", "group_by 'team'"),
        ("groupby=org", "did you mean 'group_by'"),
        ("step=fortnight", "step 'fortnight'"),
        ("step=day&timezone=Mars", "timezone 'Mars'"),
        ("from=yesterday", "from"),
        ("to=9999-12-31T23:59:59-14:00", "years 1 to 9999"),
        ("from=9999-12-01T00:00:00Z&to=9999-12-31T00:00:00Z&step=day", "between 1970 and 2255"),
        ("from=2026-11-02T00:00:00Z&to=2026-11-01T00:00:00Z", "before `to`"),
        ("org=a&org=b", "twice"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
    ],
)  # fmt: skip
async def test_a_wrong_question_is_answered_with_what_would_be_right(api: Api, query: str, says: str) -> None:
    status, kind, text = await api.get(f"/v1/usage?{query}")
    assert (status, kind) == (422, "application/problem+json")
    assert says in json.loads(text)["detail"]
    assert (await api.get("/v1/orgs/acme/statement"))[0] == 422
