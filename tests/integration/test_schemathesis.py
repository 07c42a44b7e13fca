"""The OpenAPI document against the live server: what it describes is what is answered, whatever is asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from enforcer.failures import Failures
from tests.api_lab import LiveApi, live_api

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

EMPTY = re.compile(r"[?&]\w+=(?:&|')")
"""A parameter without a value is as left out, which allowEmptyValue says and the check does not look at."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    with pytest.MonkeyPatch.context() as patch, live_api(tmp_path_factory.mktemp("api")) as api:
        patch.setattr(Failures, "check", lambda *_: 0)  # made-up tokens are tried by the hundred
        yield api


def config(headers: dict[str, str], examples: int, *, walks: bool) -> SchemathesisConfig:
    """`examples`: random requests of each call; `walks`: also its limits one by one, and from call to call."""
    found: dict[str, Any] = {
        "headers": headers,
        "continue-on-failure": True,
        "seed": 1,
        "generation": {"max-examples": examples, "database": "none"},
        # A request may be as described and yet make no sense: an end before its beginning, an org that is not there.
        "checks": {"positive_data_acceptance": {"enabled": False}},
        "phases": {"stateful": {"enabled": walks}, "coverage": {"enabled": walks}},
        # What answers told is asked for later: tokens that were listed would be revoked, the caller's own among them.
        "parameters": {"path.token": "0" * 16},
    }
    return SchemathesisConfig.from_dict(found)


@pytest.mark.parametrize(("role", "examples", "walks"), [("admin", 4, True), ("owner", 10, False), (None, 5, False)])
def test_answers_are_as_described(api: LiveApi, role: str | None, examples: int, walks: bool) -> None:
    headers = {} if role is None else {"Authorization": f"Bearer {api.tokens[role]}"}
    schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json", config=config(headers, examples, walks=walks))
    statuses: Counter[int] = Counter()
    failures: list[str] = []
    calls: set[str] = set()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            calls.add(event.recorder.label)
            for interaction in event.recorder.interactions.values():
                if interaction.response is not None:
                    statuses[interaction.response.status_code] += 1
            for checks in event.recorder.checks.values():
                found = [check.failure_info for check in checks if check.failure_info is not None]
                failures += [
                    f"{event.recorder.label}: {info.failure.title}: {info.failure.message}\n{info.code_sample}"
                    for info in found
                    if not (event.recorder.label.startswith("GET ") and EMPTY.search(info.code_sample))
                ]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            failures.append(str(event))
    print(role, sum(statuses.values()), dict(statuses))
    assert not failures, "\n".join(failures[:40])
    assert not [status for status in statuses if status >= 500]
    assert len(calls) >= 30
    assert sum(statuses.values()) > 200
    if role is not None:
        assert requests.get(f"{api.url}/v1/orgs", headers=headers, timeout=10).status_code == 200
    if role == "admin":
        assert {200, 201, 204, 400, 404, 409, 422} <= statuses.keys()
