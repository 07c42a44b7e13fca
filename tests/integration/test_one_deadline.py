"""All that is done for a request shares one time limit: looking up who asks, whose the namespace is, every decision.

Measured with a Valkey that is stopped (SIGSTOP), so that it takes connections and never answers, and with an API
server that never answers. What such a ledger still does once it goes on leaves nothing set aside.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from config.settings import AdmissionSettings, EnforcerSettings, Settings
from config.slurm_rules import AccountRule
from config.sources import ApoloSource, KubernetesSource, SlurmSource
from config.values import Address, Secret
from enforcer.admission.desk import Desk
from enforcer.app import DESK, build_app
from enforcer.server import serving
from exporter.books import Books
from exporter.rounds import Rounds
from ledger.admission import AdmissionRequest
from ledger.connect import connect
from ledger.hold_ids import new_hold_id
from ledger.model import Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger
from ledger.verify import verify
from tests.integration.test_enforcer_http import JOB, slurm
from tests.integration.test_kubernetes_admission import LABELS, pod, recreated, review
from tests.servers import ServerProcess
from tests.stages_lab import Nothing
from tests.standins.faults import Fault
from tests.standins.kube_api import KubeApi

CREDIT = 1_000_000
BUDGET = 0.8
MARGIN = 0.4
"""For a machine on which others work, too: less than any two waits that must not add up."""
NEVER_SEEN = "act_" + "x" * 43


class Enforcer:
    """An enforcer over HTTP, and its ledger's server."""

    def __init__(self, url: str, desk: Desk, server: ServerProcess, token: str, http: aiohttp.ClientSession) -> None:
        self.url, self.desk, self.server, self.token, self.http = url, desk, server, token, http

    async def post(self, path: str, body: object, token: str | None = None) -> tuple[float, int, Any]:
        """(seconds, status, answer)."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        headers = {"Authorization": f"Bearer {token or self.token}"}
        async with self.http.post(self.url + path, json=body, headers=headers) as response:
            answer = await response.json(content_type=None)
            return loop.time() - start, response.status, answer

    async def on_time(self, path: str, body: object, token: str | None = None) -> tuple[int, Any]:
        seconds, status, answer = await self.post(path, body, token)
        assert seconds < BUDGET + MARGIN, f"{path}: {seconds:.2f} s"
        return status, answer

    @contextmanager
    def stalled(self) -> Iterator[None]:
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server.pid, signal.SIGCONT)

    async def back(self) -> None:
        """The ledger answers, and has all that was left to write."""
        async with asyncio.timeout(30):
            aftermath = self.desk.aftermath
            while aftermath.is_away or aftermath._releases or aftermath._entries or aftermath._spool.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def held(self, org: str = "acme") -> int:
        assert (await verify(self.desk.ledger))["ok"]
        return (await self.desk.ledger.accounts.balance(org)).held_micro


@asynccontextmanager
async def enforcing(
    server: ServerProcess, directory: Path, kube_url: str | None = None, *, beside_platform: bool = False,
    **admission: Any,
) -> AsyncIterator[Enforcer]:  # fmt: skip
    platform = ApoloSource(name="a", cluster="c", url="http://127.0.0.1:9", token=Secret("t"))
    settings = Settings(
        path=directory / "settings.yaml", data_dir=directory,
        sources=(
            SlurmSource(name="slurm", cluster="hpc", accounts=(AccountRule("*-*", "{1}", "{2}"),)),
            KubernetesSource(name="k", cluster="c", url=kube_url),
            *([platform] if beside_platform else []),
        ),
        admission=AdmissionSettings(decision_seconds=BUDGET, **admission),
        enforcer=EnforcerSettings(listen=Address("127.0.0.1", 0)),
    )  # fmt: skip
    async with connect(server.url, None) as client, aiohttp.ClientSession() as http:
        ledger = Ledger(client, 0)
        table = RateTable({"small": 4_000_000_000, "cpu": 4_000_000_000, "gpu": 40_000_000_000})
        for cluster in ("c", "hpc"):
            await ledger.rates.publish(RatePlan(cluster, ((0, table),)))
        await ledger.accounts.grant("acme", 1000 * CREDIT, key="k", who="test")
        _, token = await ledger.tokens.create("scheduler")
        app = build_app(ledger, settings)
        async with serving(app, settings.enforcer) as url:
            yield Enforcer(url, app[DESK], server, token, http)


@pytest.fixture
def looked_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is known for 5 s, so that who asks is always asked of the ledger."""
    monkeypatch.setattr("ledger.tokens._KNOWN_SECONDS", 0.0)


QUESTIONS = {
    "/v1/admission": JOB,
    "/v1/admission/slurm": slurm(time_limit_minutes=15),
    "/k8s/admission/c": review(pod()),
}


def said(path: str, answer: Any) -> tuple[bool, str]:
    """(allowed, code)."""
    if path.startswith("/k8s"):
        return answer["response"]["allowed"], answer["response"]["auditAnnotations"]["code"]
    return answer["allowed"], answer["code"]


@pytest.mark.usefixtures("looked_up_each_time")
@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize("then", ["deny", "allow"])
async def test_who_was_seen_before_is_answered_in_time_and_by_the_fail_mode(
    make_server: Callable[..., ServerProcess], tmp_path: Path, path: str, then: str
) -> None:
    kube = KubeApi()
    kube.faults.add(Fault("/namespaces/", silent=True, times=1000))
    async with kube.serve() as url, enforcing(make_server(), tmp_path, url, on_ledger_down=then) as here:
        before = await here.post(path, QUESTIONS[path])
        assert said(path, before[2]) == (True, "ok")
        held = await here.held()
        with here.stalled():
            answers = await asyncio.gather(*(here.on_time(path, QUESTIONS[path]) for _ in range(3)))
            assert here.desk.aftermath.is_away
            answers.append(await here.on_time(path, QUESTIONS[path]))  # by now nobody waits for the ledger
            assert (await here.post(path, QUESTIONS[path]))[0] < BUDGET / 2
        assert {(status, *said(path, answer)) for status, answer in answers} == {
            (200, then == "allow", "ledger_unavailable")
        }
        await here.back()
        types = [entry["type"] for entry in await here.desk.ledger.refusals.read("acme", None, 100)]
        assert types == ["exception" if then == "allow" else "refusal"] * 5
        # A pod is the same pod each time.
        let_through = 0 if then == "deny" or path.startswith("/k8s") else 5 * CREDIT
        assert await here.held() == held + let_through


@pytest.mark.usefixtures("looked_up_each_time")
@pytest.mark.parametrize("then", ["deny", "allow"])
async def test_a_quote_is_refused_in_time(make_server: Callable[..., ServerProcess], tmp_path: Path, then: str) -> None:
    async with enforcing(make_server(), tmp_path, on_ledger_down=then) as here:
        assert (await here.post("/v1/quote", JOB))[1] == 200
        with here.stalled():
            for _ in range(2):
                status, problem = await here.on_time("/v1/quote", JOB)
                assert (status, problem["code"]) == (503, "ledger_unavailable")


@pytest.mark.usefixtures("looked_up_each_time")
async def test_a_release_is_answered_in_time(make_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    async with enforcing(make_server(), tmp_path) as here:
        hold = (await here.post("/v1/admission", JOB))[2]["hold_id"]
        with here.stalled():
            status, problem = await here.on_time(f"/v1/admission/{hold}/release", None)
            assert (status, problem["code"]) == (503, "ledger_unavailable")
        await here.post(f"/v1/admission/{hold}/release", None)
        assert await here.held() == 0


@pytest.mark.parametrize("path", [*QUESTIONS, "/v1/quote"])
async def test_who_was_never_seen_is_nobody_while_the_ledger_is_away(
    make_server: Callable[..., ServerProcess], tmp_path: Path, path: str
) -> None:
    async with enforcing(make_server(), tmp_path, on_ledger_down="allow") as here:
        question = QUESTIONS.get(path, JOB)
        _, fresh = await here.desk.ledger.tokens.create("scheduler")
        with here.stalled():
            # Whether it is one that was made and not shown yet, or none: neither is anybody.
            for token in (NEVER_SEEN, fresh):
                status, problem = await here.on_time(path, question, token)
                assert (status, problem["code"]) == (503, "ledger_unavailable")
            assert (await here.post(path, question, "no token at all"))[1] == 401
        await here.back()
        assert await here.held() == 0
        assert (await here.post(path, question, NEVER_SEEN))[1] == 401
        assert (await here.post(path, question, fresh))[1] == 200


@pytest.mark.usefixtures("looked_up_each_time")
async def test_who_was_seen_counts_for_an_hour_and_not_once_the_ledger_says_otherwise(
    make_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with enforcing(make_server(), tmp_path, on_ledger_down="allow") as here:
        assert (await here.post("/v1/admission", JOB))[1] == 200
        with here.stalled():
            assert (await here.on_time("/v1/admission", JOB))[0] == 200
            with monkeypatch.context() as later:
                later.setattr("ledger.tokens._AWAY_SECONDS", 0.0)
                assert (await here.on_time("/v1/admission", JOB))[0] == 503
        await here.back()
        elsewhere = Ledger(here.desk.ledger.client, 0)
        (made, _), *_ = await elsewhere.tokens.list()
        await elsewhere.tokens.revoke(made.id)
        assert (await here.post("/v1/admission", JOB))[1] == 401
        with here.stalled():
            assert (await here.on_time("/v1/admission", JOB))[0] == 503


async def test_a_second_decision_has_what_the_first_left(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """A pod that says that it is a job which runs: two decisions, with two looks between and before."""
    kube = KubeApi()
    kube.faults.add(Fault("/namespaces/", silent=True))
    async with kube.serve() as url, enforcing(make_server(), tmp_path, url, beside_platform=True) as here:
        path = "/k8s/admission/c"
        now = here.desk.ledger.clock()
        runs = Observation("job-1", "job", "acme", "vision", "ann", "small", "", now)
        await Rounds(Books(here.desk.ledger), Nothing(), 900_000_000).take(Snapshot("s", "c", now + 1, [runs]), None)
        # The token and the org's budgets are known from here on, the namespace is not.
        assert said(path, (await here.post(path, review(pod(namespace="other"), namespace="other")))[2])[0]
        held = await here.held()
        has, client = here.desk.ledger.admitted.has, here.desk.ledger.client

        async def stall_and_look(org: str, *identity: str) -> bool:
            os.kill(here.server.pid, signal.SIGSTOP)
            return await has(org, *identity)

        here.desk.ledger.admitted.has = stall_and_look  # type: ignore[method-assign]
        await client.execute_command("CLIENT", "PAUSE", str(round(BUDGET / 2 * 1000)), "ALL")
        try:
            status, answer = await here.on_time(path, review(recreated("copy")))
        finally:
            os.kill(here.server.pid, signal.SIGCONT)
        assert (status, *said(path, answer)) == (200, False, "ledger_unavailable")
        await here.back()
        assert await here.held() == held


async def test_whether_a_refused_pod_starts_anew_is_asked_in_what_is_left(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    kube = KubeApi()
    kube.faults.add(Fault("/namespaces/", silent=True))
    async with kube.serve() as url, enforcing(make_server(), tmp_path, url) as here:
        poor = {**LABELS, "platform.apolo.us/org": "poor", "platform.apolo.us/job": "job-1"}
        await here.desk.ledger.accounts.grant("poor", CREDIT // 2, key="k", who="test")
        has = here.desk.ledger.admitted.has

        async def stall_and_look(org: str, *identity: str) -> bool:
            os.kill(here.server.pid, signal.SIGSTOP)
            return await has(org, *identity)

        here.desk.ledger.admitted.has = stall_and_look  # type: ignore[method-assign]
        try:
            status, answer = await here.on_time("/k8s/admission/c", review(recreated("anew", poor)))
        finally:
            os.kill(here.server.pid, signal.SIGCONT)
        assert (status, *said("/k8s", answer)) == (200, False, "no_credits")


async def test_an_api_server_that_never_answers_is_not_a_ledger_that_is_away(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    kube = KubeApi()
    kube.faults.add(Fault("/namespaces/", silent=True, times=1000))
    async with kube.serve() as url, enforcing(make_server(), tmp_path, url) as here:
        status, answer = await here.on_time("/k8s/admission/c", review(pod()))
        assert (status, *said("/k8s", answer)) == (200, True, "ok")
        assert not here.desk.aftermath.is_away


@pytest.mark.usefixtures("looked_up_each_time")
async def test_the_dearest_partition_is_looked_for_in_the_same_time(
    make_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with enforcing(make_server(), tmp_path, on_ledger_down="allow") as here:
        job = slurm(partition="cpu,gpu", time_limit_minutes=15)
        assert (await here.post("/v1/admission/slurm", job))[2]["required"] == "10"
        monkeypatch.setattr("ledger.admission.RATES_SECONDS", 0.0)
        monkeypatch.setattr("ledger.admission.RATES_SECONDS_MAX", 0.0)
        with here.stalled():
            for _ in range(2):
                _, answer = await here.on_time("/v1/admission/slurm", job)
                assert (answer["allowed"], answer["code"], answer["required"]) == (True, "ledger_unavailable", "10")


async def test_a_hold_that_is_made_long_after_it_was_given_back_ends(
    make_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a request that the network kept for a while."""
    monkeypatch.setattr("enforcer.aftermath._LATE_SECONDS", 1.0)
    async with enforcing(make_server(), tmp_path) as here:
        request = AdmissionRequest(cluster="c", org="acme", preset="small", hold_id=new_hold_id("acme"))
        with here.stalled():
            await here.desk.decide(request, who="test", via="test")
        await here.back()
        await here.desk.ledger.admissions.release("acme", request.hold_id)
        assert (await here.desk.ledger.admissions.admit(request)).hold_id == request.hold_id
        async with asyncio.timeout(10):
            while await here.held() != 0:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_hold_that_was_made_late_stays_with_who_asked_again_and_got_it(
    make_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by the id of the work, before or after it was to be released."""
    monkeypatch.setattr("enforcer.aftermath._LATE_SECONDS", 1.0)
    async with enforcing(make_server(), tmp_path) as here:
        request = AdmissionRequest(
            cluster="c", org="acme", preset="small", workload_id="job-7", hold_id=new_hold_id("acme")
        )
        other = AdmissionRequest(cluster="c", org="acme", preset="small", hold_id=new_hold_id("acme"))
        with here.stalled():
            await asyncio.gather(*(here.desk.decide(one, who="test", via="test") for one in (request, other)))
        await here.back()
        admissions = here.desk.ledger.admissions
        for one in (request, other):
            await admissions.release("acme", one.hold_id)
            assert (await admissions.admit(one)).hold_id == one.hold_id
        again = await here.desk.decide(replace(request, hold_id=""), who="test", via="test")
        assert (again.allowed, again.hold_id) == (True, request.hold_id)
        async with asyncio.timeout(10):
            while here.desk.aftermath._unwanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await admissions.release("acme", other.hold_id) is None
        assert await admissions.release("acme", request.hold_id) == CREDIT


async def test_a_change_that_is_made_after_its_answer_takes_no_hold_from_the_job_that_waits(
    make_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    async with enforcing(make_server(), tmp_path) as here:
        request = AdmissionRequest(cluster="c", org="acme", preset="small")
        hold = (await here.desk.decide(request, who="test", via="test")).hold_id
        with here.stalled():
            change = replace(request, preset="gpu", replaces=hold, count=None)
            assert not (await here.desk.decide(change, who="test", via="test")).allowed
        await here.back()
        async with asyncio.timeout(10):
            while await here.held() != 10 * CREDIT:  # noqa: ASYNC110 - its answer comes
                await asyncio.sleep(0.02)
            while here.desk.aftermath._releases:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await here.desk.ledger.admissions.release("acme", hold or "") == 10 * CREDIT


@pytest.mark.usefixtures("looked_up_each_time")
@pytest.mark.parametrize("flight_seconds", [5.0, 0.5])
async def test_holds_that_are_made_after_the_answer_do_not_stay(
    make_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flight_seconds: float
) -> None:
    """Also where the connection was given up before the server went on and read what was sent over it."""
    monkeypatch.setattr("ledger.pipelined.FLIGHT_SECONDS", flight_seconds)
    async with enforcing(make_server(), tmp_path) as here:
        await asyncio.gather(*(here.post(path, body) for path, body in QUESTIONS.items()))
        held = await here.held()
        many = [JOB | {"user": f"user-{number}"} for number in range(100)]
        with here.stalled():
            answers = await asyncio.gather(
                *(here.on_time("/v1/admission", job) for job in many),
                *(here.on_time("/k8s/admission/c", review(pod(LABELS, uid=f"pod-{n}"))) for n in range(20)),
            )
            assert [status for status, _ in answers] == [200] * 120
        await here.back()
        async with asyncio.timeout(10):
            while await here.held() != held:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
