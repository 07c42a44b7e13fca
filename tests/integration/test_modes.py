"""An org's own mode goes before its cluster's, whatever a refusal is about and however it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.sources import KubernetesSource
from ledger.connect import Client
from tests.integration.test_enforcer_http import JOB, SETTINGS, admission, enforcer, give, slurm, with_own_server
from tests.integration.test_kubernetes_admission import LABELS, pod, review
from tests.servers import ServerProcess

UNPRICED = {**JOB, "preset": "smoll"}


@pytest.mark.parametrize(("own", "cluster", "allowed", "codes"), [
    ("shadow", "enforce", True, ("unpriced", "unpriced", "unpriced")),
    ("off", "enforce", True, ("ok", "ok", "ok")),
    ("enforce", "shadow", False, ("unpriced", "unpriced", "unpriced")),
    (None, "enforce", False, ("unpriced", "unpriced", "unpriced")),
    (None, "shadow", True, ("unpriced", "unpriced", "unpriced")),
    ("enforce", "off", True, ("ok", "ok", "ok")),
])  # fmt: skip
async def test_what_has_no_rate_is_refused_as_the_orgs_own_mode_says(
    client: Client, own: str | None, cluster: str, allowed: bool, codes: tuple[str, ...]
) -> None:
    settings = admission(mode=cluster)
    kubernetes = KubernetesSource(name="k", cluster="c")
    async with enforcer(client, replace(settings, sources=(*SETTINGS.sources, kubernetes))) as api:
        await api.ledger.accounts.upsert("acme", who="test", policy={"mode": own} if own else {})
        answers: list[Any] = [
            (await api.call("POST", "/v1/admission", UNPRICED, "scheduler"))[1],
            (await api.call("POST", "/v1/admission/slurm", slurm(partition="gpuu"), "scheduler"))[1],
            (await api.call("POST", "/v1/quote", UNPRICED, "scheduler"))[1],
        ]
        assert [answer["code"] for answer in answers[:2]] == list(codes[:2])
        assert [answer["allowed"] for answer in answers[:2]] == [allowed] * 2
        labels = {name: value for name, value in LABELS.items() if not name.endswith("/preset")}
        response = (await api.call("POST", "/k8s/admission/c", review(pod(labels)), "scheduler"))[1]["response"]
        assert (response["allowed"], response["auditAnnotations"]["code"]) == (allowed, codes[2])
        if not allowed:
            assert "it would be refused" not in answers[0]["reason"]


@pytest.mark.parametrize("then", ["deny", "allow"])
async def test_an_orgs_own_mode_also_counts_while_the_ledger_is_away(
    make_server: Callable[..., ServerProcess], tmp_path: Path, then: str
) -> None:
    settings = replace(admission(decision_seconds=0.3, on_ledger_down=then, allow_cap_micro=0), data_dir=tmp_path)
    async with with_own_server(make_server, settings) as (api, server):
        modes = {"acme": None, "tries": "shadow", "free": "off", "once": "shadow"}
        for org, mode in modes.items():
            await give(api, "100", org, key=org)
            await api.ledger.accounts.upsert(org, who="test", policy={"mode": mode} if mode else {})

        async def ask(org: str) -> tuple[bool, str]:
            body = (await api.call("POST", "/v1/admission", {**JOB, "org": org}, "scheduler"))[1]
            return body["allowed"], body["code"]

        assert [await ask(org) for org in modes] == [(True, "ok")] * 4
        await api.ledger.accounts.upsert("once", who="test", policy={})
        assert await ask("once") == (True, "ok")
        server.kill9()
        away = "ledger_unavailable"
        assert [await ask(org) for org in modes] == [(False, away), (True, away), (True, "ok"), (False, away)]
