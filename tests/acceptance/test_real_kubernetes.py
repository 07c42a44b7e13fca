"""A real Kubernetes API server with its controllers: what it asks, what users of kubectl see, what is held and charged.

There are no nodes; the test says what kubelets would. Charges are compared with the time between two instants times the
rate, to the micro-credit.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from config.sources import KubernetesActions as ActionSettings
from config.sources import KubernetesSource as KubernetesSettings
from config.values import Secret
from enforcer.actions.base import Outcome
from enforcer.actions.kubernetes import EVENT_REASON, REASON_ANNOTATION, KubernetesActions
from exporter.sources.kubernetes import KubernetesSource
from exporter.sources.kubernetes_client import KubernetesClient, KubernetesError
from ledger.clock import format_time, now_us, parse_time
from ledger.money import format_micro, parse_rate
from tests.kubernetes_lab import Body, KubernetesLab, names_of
from tests.kubernetes_reviews import PAYLOADS, record, shape
from tests.kubernetes_site import RATES, SERVICE_ACCOUNT, Site, labels, paid_site
from tests.slurm_lab import wait_until
from tests.standins.kube_api import running, terminated

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

SECOND = 1_000_000
HELD = 9
"""Credits for 15 minutes of `small`."""
WHY = "acme has no credits left; ask ann@acme.example for more"


@pytest.fixture(scope="module")
def site(kubernetes_base: Path, kubernetes_lab: KubernetesLab) -> Iterator[Site]:
    source = {"actions": {"scale_owners": True, "grace_seconds": 20}}
    exhaustion = {"grace_minutes": 0.05, "then": "block"}
    with paid_site(kubernetes_base / "site", kubernetes_lab, source, exhaustion=exhaustion) as found:
        yield found
    gc.collect()  # connections that were left open are told of here


def pod(org: str, name: str, preset: str = "small", **more: Any) -> Body:
    meta = {"name": name, "namespace": org, "labels": labels(org, preset=preset) | more.pop("labels", {})}
    spec = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "busybox"}], **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def deployment(org: str, replicas: int) -> Body:
    template = {
        "metadata": {"labels": labels(org, app="web")},
        "spec": pod(org, "")["spec"] | {"restartPolicy": "Always"},
    }
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": org}, "spec": spec}


def job(org: str, name: str, at_once: int, **spec: Any) -> Body:
    spec |= {"parallelism": at_once, "completions": at_once}
    spec["template"] = {"metadata": {"labels": labels(org)}, "spec": pod(org, "")["spec"]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": org}, "spec": spec}


def create(site: Site, body: Body, *options: str) -> str:
    """Its UID."""
    made = json.loads(site.kube.kubectl("create", *options, "-o", "json", "-f", "-", given=json.dumps(body)))
    return str(made["metadata"]["uid"])


def refusal(site: Site, body: Body) -> str:
    """What kubectl says of something that is not let in."""
    done = site.kube.tried("create", "-f", "-", given=json.dumps(body))
    assert done.returncode == 1, done.stdout
    return done.stderr.strip()


def wait_held(site: Site, org: str, held: float, seconds: float = 30) -> None:
    wait_until(f"{org} has {held} credits held", lambda: site.held(org) == held, seconds, 0.2)


def wait_charged(site: Site, org: str, expected: dict[tuple[str, str], tuple[str, str]]) -> None:
    """Until (resource, id) -> end and cost are so; the difference where they never are."""
    try:
        wait_until(f"{org} is charged", lambda: _without_starts(site.charges(org)) == expected, 60, 0.5)
    except TimeoutError:
        assert _without_starts(site.charges(org)) == expected
        raise


def started(site: Site, org: str, name: str, since_us: int, preset: str = "small") -> str:
    """A pod that runs; its UID."""
    uid = create(site, pod(org, name, preset))
    site.kube.run_pod(org, name, since_us)
    return uid


def seconds_ago(seconds: int) -> int:
    """A whole second, as fine as Kubernetes tells."""
    return (now_us() // SECOND - seconds) * SECOND


def cost(preset: str, since_us: int, until_us: int) -> str:
    """Time x rate, rounded down once."""
    return format_micro((until_us - since_us) * parse_rate(RATES[preset]) // (3600 * SECOND * 1000))


def test_recorded_reviews_are_what_the_server_sends(site: Site, tmp_path: Path) -> None:
    site.desk.ok("grant", "acme", "1000")
    found = record(site.kube, tmp_path)
    assert found.keys() == {path.stem for path in PAYLOADS.glob("*.json")} - {"admission-review-v1.schema"}
    for name, review in found.items():
        assert shape(review) == shape(json.loads((PAYLOADS / f"{name}.json").read_text())), name


def test_who_has_no_credits_reads_why_in_kubectl(site: Site) -> None:
    org = site.org("umbrella", "10")
    create(site, pod(org, "first"))
    said = refusal(site, pod(org, "second"))
    assert said == (
        'Error from server (Forbidden): error when creating "STDIN": admission webhook "admission.credits.apolo.us" '
        f"denied the request: Org {org} has 1 credit left; this needs 9 credits to start. "
        f"Ask an owner of org {org} or an administrator of the cluster for credits."
    )
    assert "this needs 18 credits to start" in refusal(site, job(org, "sweep", 2))
    assert "Cluster kube has no rate for preset 'huge'" in refusal(site, pod(org, "third", "huge"))
    assert names_of(site.kube.get("pods", org)) == ["first"]
    journal = site.ask(f"orgs/{org}/journal")["items"]
    refused = [entry for entry in journal if entry["type"] == "refusal"]
    assert [(entry["code"], entry["count"]) for entry in refused] == [
        ("no_credits", 1),
        ("no_credits", 2),
        ("unpriced", 1),
    ]
    assert refused[0]["reason"] in said
    assert refused[0]["who"] == "kubernetes-admin (kube)"


def test_a_deployment_starts_as_many_pods_as_are_paid_for_and_its_event_says_why(site: Site) -> None:
    org = site.org("hooli", "40")
    create(site, deployment(org, 5))
    wait_until("a pod is refused", lambda: bool(site.kube.events(org, "FailedCreate")))
    assert len(site.kube.get("pods", org)) == 4
    (why,) = set(site.kube.events(org, "FailedCreate"))
    assert f"Org {org} has 4 credits left; this needs 9 credits to start." in why
    assert site.held(org) == 4 * HELD
    site.desk.ok("grant", org, "5")
    wait_until("the fifth starts with the next try", lambda: len(site.kube.get("pods", org)) == 5)
    assert site.held(org) == 5 * HELD
    site.kube.kubectl("delete", "deployment", "web", "-n", org, "--wait=false")
    wait_held(site, org, 0)


def test_the_pods_of_a_job_take_over_its_hold_and_what_is_cancelled_frees_it(site: Site) -> None:
    org = site.org("initech", "100")
    create(site, job(org, "sweep", 3))
    wait_until("its pods are there", lambda: len(site.kube.get("pods", org)) == 3)
    assert site.held(org) == 3 * HELD
    site.kube.kubectl("delete", "job", "sweep", "-n", org, "--wait=false")
    wait_held(site, org, 0)
    assert Decimal(site.balance(org)["spent"]) == 0


def test_a_job_that_waits_holds_nothing_and_is_resumed_as_a_whole_or_not_at_all(site: Site) -> None:
    org = site.org("wonka", "20")
    waiting = job(org, "later", 3)
    waiting["spec"]["parallelism"] = 0
    create(site, waiting)
    assert site.held(org) == 0

    def resume(at_once: int) -> str:
        change = json.dumps({"spec": {"parallelism": at_once}})
        return site.kube.tried("patch", "job", "later", "-n", org, "-p", change).stderr

    assert f"Org {org} has 20 credits left; this needs 27 credits to start." in resume(3)
    assert (site.held(org), site.kube.get("pods", org)) == (0, [])
    assert resume(2) == ""
    assert site.held(org) == 2 * HELD
    wait_until("its pods are there", lambda: len(site.kube.get("pods", org)) == 2)
    assert site.held(org) == 2 * HELD
    with site.enforcer.sent(signal.SIGKILL):
        assert resume(0) == ""  # it can be changed all the same
        assert resume(1) == ""
        wait_until("its pod is refused", lambda: bool(site.kube.events(org, "FailedCreate")))


def test_dry_runs_changes_and_parts_hold_nothing(site: Site) -> None:
    org = site.org("vandelay", "100")
    create(site, pod(org, "tried"), "--dry-run=server")
    assert site.held(org) == 0
    create(site, pod(org, "real"))
    noted = next(one["annotations"] for one in site.kube.audited("create", "pods")[::-1] if "annotations" in one)
    assert noted["admission.credits.apolo.us/code"] == "ok"
    assert noted["admission.credits.apolo.us/hold"].startswith(f"{org}.")
    site.kube.kubectl("label", "pod", "real", "-n", org, "checked=yes")
    site.kube.bind(org, "real")
    assert site.held(org) == HELD
    site.kube.kubectl("create", "-f", "-", given=json.dumps(pod("kube-system", "of-nobody", labels=labels(org))))
    assert site.held(org) == HELD


def test_what_a_quota_refuses_after_our_yes_does_not_keep_credits(site: Site) -> None:
    org = site.org("soylent", "1000")
    site.kube.apply(
        {
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one", "namespace": org},
            "spec": {"hard": {"pods": "1"}},
        }
    )  # fmt: skip
    wait_until("the quota counts", lambda: "hard" in site.kube.get("resourcequota", org, "one").get("status", {}))
    create(site, deployment(org, 2))
    wait_until("the quota refuses", lambda: bool(site.kube.events(org, "FailedCreate")))
    assert "exceeded quota" in site.kube.events(org, "FailedCreate")[0]
    wait_until("each try held its credits", lambda: site.held(org) > 2 * HELD)
    site.kube.kubectl("scale", "deployment", "web", "-n", org, "--replicas=1")
    wait_held(site, org, HELD, 150)  # of the pod that is there


def test_charges_are_times_between_starts_and_ends_times_the_rate(site: Site) -> None:
    org, kube, draw = site.org("globex", "100000"), site.kube, random.Random(7)
    expected: dict[tuple[str, str], tuple[str, str, str]] = {}
    for number in range(12):
        preset, name = draw.choice(list(RATES)), f"pod-{number}"
        since, until = seconds_ago(draw.randrange(60, 300)), seconds_ago(draw.randrange(20, 50))
        uid = started(site, org, name, since, preset)
        match number % 4:
            case 0:
                kube.end_pod(org, name, since, until, draw.choice(["Succeeded", "Failed"]))
            case 1:  # a restart in between is paid for, also where the first start is forgotten
                between, last = (since + until) // 2 // SECOND * SECOND, until - SECOND
                kube.tell(org, name, "Running", running(between), 1, last=terminated(since, between - SECOND, 1))
                kube.tell(org, name, "Running", running(last), 2, last=terminated(between, last - SECOND, 1))
                kube.tell(org, name, "Succeeded", terminated(last, until), 2)
            case 2:  # deleted: its containers end within the grace period
                kube.kubectl("delete", "pod", name, "-n", org, "--wait=false")
                kube.tell(org, name, "Failed", terminated(since, until, 137))
                kube.remove_pod(org, name)
            case 3:  # made anew under its name
                kube.end_pod(org, name, since, until)
                kube.kubectl("delete", "pod", name, "-n", org)
                again = started(site, org, name, until + SECOND, preset)
                kube.end_pod(org, name, until + SECOND, until + 11 * SECOND)
                span = format_time(until + SECOND), format_time(until + 11 * SECOND)
                expected[preset, again] = *span, cost(preset, until + SECOND, until + 11 * SECOND)
        expected[preset, uid] = format_time(since), format_time(until), cost(preset, since, until)
    wait_charged(site, org, _without_starts(expected))
    assert site.desk.json("verify")["ok"]
    wait_held(site, org, 0)


def _without_starts(charges: dict[tuple[str, str], tuple[str, str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
    """A workload starts, formally, with the creation of its pod; what counts is its end and what it cost."""
    return {key: (end, cost) for key, (_, end, cost) in charges.items()}


def test_volumes_are_charged_from_when_they_are_bound_to_when_they_are_deleted(site: Site) -> None:
    org, kube = site.org("wayne", "100000"), site.kube
    size = {"storage": "3Gi"}
    kube.apply(
        {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
            "spec": {
                "capacity": size, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/none"},
                "claimRef": {"namespace": org, "name": "data"},
            },
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": org, "labels": labels(org)},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": size}, "storageClassName": ""},
        },
    )  # fmt: skip
    wait_until("it is bound", lambda: kube.get("pvc", org, "data")["status"]["phase"] == "Bound")
    uid = kube.get("pvc", org, "data")["metadata"]["uid"]
    wait_until("it is charged", lambda: ("default", uid) in site.charges(org), 30, 0.2)
    kube.kubectl("patch", "pvc", "data", "-n", org, "--type=merge", "-p", '{"metadata": {"finalizers": null}}')
    kube.kubectl("delete", "pvc", "data", "-n", org)
    deleted = now_us()
    found: list[tuple[str, str, str]] = []

    def is_over() -> bool:
        before, found[:] = list(found), [site.charges(org)["default", uid]]
        return bool(found[0][1]) and before == found

    wait_until("it is over", is_over, 30, 1.0)
    _, ended, spent = found[0]
    assert abs(parse_time(ended) - deleted) < 3 * SECOND
    assert Decimal(spent) > 0


def test_a_watch_that_cannot_be_resumed_is_a_new_list_and_nothing_is_lost(site: Site) -> None:
    org, kube = site.org("tyrell", "100000"), site.kube
    since = seconds_ago(100)
    uids = {name: started(site, org, name, since) for name in ("ends", "goes", "stays")}
    wait_until("all run", lambda: len(site.charges(org)) == 3, 30, 0.5)
    lists = _lists(kube)
    with site.exporter.sent(signal.SIGSTOP):
        away = now_us()
        kube.end_api()  # so that nothing more is on its way to the exporter
        kube.start_api()
        until = seconds_ago(0)
        kube.end_pod(org, "ends", since, until)
        kube.remove_pod(org, "goes")
        uids["comes"] = started(site, org, "comes", seconds_ago(30))
        kube.end_api()
        kube.compact()
        kube.start_api()
    late = seconds_ago(0)
    for name in ("stays", "comes"):
        kube.end_pod(org, name, since if name == "stays" else late, late + SECOND)

    def charged() -> dict[str, tuple[str, str]]:
        found = _without_starts(site.charges(org))
        return {name: found.get(("small", uid), ("", "")) for name, uid in uids.items()}

    expected = format_time(until), cost("small", since, until)
    wait_until("the end that it missed is charged", lambda: charged()["ends"] == expected, 60, 0.5)
    stays = format_time(late + SECOND), cost("small", since, late + SECOND)
    wait_until("what it follows again is charged", lambda: charged()["stays"] == stays, 60, 0.5)
    # Of one that is gone nothing is known but that it was there when the server was last heard.
    assert since < parse_time(charged()["goes"][0]) < away + SECOND
    assert charged()["goes"][1] == cost("small", since, parse_time(charged()["goes"][0]))
    assert _lists(kube) == lists + 1
    assert site.desk.json("verify")["ok"]


def _lists(kube: KubernetesLab) -> int:
    """How often the exporter has begun a list of all pods."""
    lists = (one for one in kube.audited("list", "pods") if one["user"]["username"].endswith(SERVICE_ACCOUNT))
    return sum("limit=500" in one["requestURI"] and "continue=" not in one["requestURI"] for one in lists)


def settings_of(kube: KubernetesLab, account: str, **more: Any) -> KubernetesSettings:
    return KubernetesSettings(
        name="k", cluster="kube", url=kube.url, ca_file=kube.ca, token=Secret(kube.token_of(account)), **more
    )


async def test_a_list_whose_version_is_forgotten_between_two_pages_is_begun_anew(site: Site) -> None:
    org, kube = site.org("stark", "100000"), site.kube
    for number in range(6):
        create(site, pod(org, f"pod-{number}"))
    client = KubernetesClient(settings_of(kube, "credits-exporter"))
    path = "/api/v1/pods"
    try:
        page = json.loads(await client.get(path, {"limit": "2"}))
        create(site, pod(org, "later"))
        kube.compact()
        with pytest.raises(KubernetesError) as gone:
            await client.get(path, {"limit": "2", "continue": page["metadata"]["continue"]})
        assert gone.value.status == 410
    finally:
        await client.close()


@asynccontextmanager
async def source(kube: KubernetesLab, selector: str, **options: Any) -> AsyncIterator[KubernetesSource]:
    made = KubernetesSource(settings_of(kube, "credits-exporter", selector=selector), settle_us=0, **options)
    try:
        yield made
    finally:
        await made.close()


async def test_the_documented_rights_suffice_and_bookmarks_move_a_watch_on_that_is_told_nothing(site: Site) -> None:
    org, kube = site.org("cyberdyne", "100000"), site.kube
    create(site, pod(org, "first"))
    async with source(kube, page=2, watch_seconds=5.0, selector="of=interest") as kubernetes:
        assert not (await kubernetes.fetch(None)).pending
        create(site, pod(org, "second"))
        version = int(kube.get("pods", org, "second")["metadata"]["resourceVersion"])
        async with asyncio.timeout(30):
            while int(kubernetes.versions()["/api/v1/pods"]) < version:  # noqa: ASYNC110 - moved by the server
                await asyncio.sleep(0.1)
        kube.kubectl("label", "pod", "first", "-n", org, "of=interest")
        mine = org, kube.get("pods", org, "first")["metadata"]["uid"]
        async with asyncio.timeout(30):
            while mine not in (await kubernetes.fetch(None)).pending:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@asynccontextmanager
async def acting(kube: KubernetesLab, **settings: Any) -> AsyncIterator[KubernetesActions]:
    actions = KubernetesActions(settings_of(kube, "credits-enforcer", actions=ActionSettings(**settings)))
    try:
        yield actions
    finally:
        await actions.close()


async def test_pods_are_told_why_and_evicted_as_their_disruption_budget_lets(site: Site) -> None:
    org, kube = site.org("aperture", "100000"), site.kube
    body = pod(org, "guarded", labels={"app": "guarded"})
    uid = create(site, body)
    kube.run_pod(org, "guarded", seconds_ago(5))
    budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}
    kube.apply(
        {
            "apiVersion": "policy/v1beta1", "kind": "PodDisruptionBudget",
            "metadata": {"name": "keep", "namespace": org}, "spec": budget,
        }
    )  # fmt: skip
    wait_until("the budget counts", lambda: kube.get("pdb", org, "keep").get("status", {}).get("currentHealthy") == 1)
    async with acting(kube, grace_seconds=90.0) as actions:
        for _ in range(2):
            assert await actions.signal(uid, "soon") is Outcome.DONE
            assert await actions.stop(uid, WHY) is Outcome.LATER
        kube.kubectl("delete", "pdb", "keep", "-n", org)
        assert await actions.stop(uid, WHY) is Outcome.DONE
        meta = kube.get("pods", org, "guarded")["metadata"]
        assert (meta["annotations"][REASON_ANNOTATION], meta["deletionGracePeriodSeconds"]) == (WHY, 90)
        assert sorted(kube.events(org, EVENT_REASON)) == sorted(["soon", WHY])  # each once
        assert WHY in kube.kubectl("describe", "pod", "guarded", "-n", org)
        kube.remove_pod(org, "guarded")
        create(site, body)
        assert await actions.signal(uid, WHY) is Outcome.OVER
        assert await actions.stop(uid, WHY) is Outcome.OVER
    assert REASON_ANNOTATION not in kube.get("pods", org, "guarded")["metadata"].get("annotations", {})


async def test_a_deployment_is_scaled_to_zero_and_back(site: Site) -> None:
    org, kube = site.org("weyland", "100000"), site.kube
    create(site, deployment(org, 2))
    wait_until("its pods are there", lambda: len(kube.get("pods", org)) == 2)
    uid = kube.get("pods", org)[0]["metadata"]["uid"]
    async with acting(kube, scale_owners=True) as actions:
        assert await actions.suspend(uid, WHY) is Outcome.DONE
        wait_until("its pods are gone", lambda: not kube.get("pods", org))
        wait_held(site, org, 0)
        assert kube.get("deployment", org, "web")["metadata"]["annotations"][REASON_ANNOTATION] == WHY
        assert await actions.resume(uid) is Outcome.DONE
        assert await actions.resume(uid) is Outcome.OVER
    wait_until("its pods are back", lambda: len(kube.get("pods", org)) == 2)


async def test_a_server_that_cannot_suspend_jobs_is_not_believed(site: Site) -> None:
    """Kubernetes 1.20 answers 200 and leaves `suspend` out."""
    org, kube = site.org("oscorp", "100000"), site.kube
    create(site, job(org, "sweep", 1))
    wait_until("its pod is there", lambda: len(kube.get("pods", org)) == 1)
    async with acting(kube) as actions:
        assert await actions.suspend(kube.get("pods", org)[0]["metadata"]["uid"], WHY) is Outcome.CANNOT
    assert "suspend" not in kube.get("job", org, "sweep")["spec"]


def test_an_org_that_runs_dry_is_told_on_its_pod_which_is_evicted(site: Site) -> None:
    org, kube = site.org("nakatomi", "10"), site.kube
    site.set_policy(org, then="stop")
    started(site, org, "busy", seconds_ago(200))  # so it has used 2 of the 10, and cannot have its next 15 minutes
    wait_until("it is told why", lambda: bool(kube.events(org, EVENT_REASON)), 40, 0.5)
    wait_until("it is evicted", lambda: "deletionTimestamp" in kube.get("pods", org, "busy")["metadata"], 40, 0.5)
    meta = kube.get("pods", org, "busy")["metadata"]
    assert meta["deletionGracePeriodSeconds"] == 20
    assert org in meta["annotations"][REASON_ANNOTATION]
    assert meta["annotations"][REASON_ANNOTATION] in kube.events(org, EVENT_REASON)
    kube.remove_pod(org, "busy")
    wait_held(site, org, 0)
    assert "busy" not in names_of(kube.get("pods", org))


def test_nothing_starts_while_the_enforcer_is_away(site: Site) -> None:
    org = site.org("massive", "1000")
    with site.enforcer.sent(signal.SIGKILL):
        said = refusal(site, pod(org, "first"))
        assert "failed calling webhook" in said
        time_taken = time.monotonic()
        site.kube.kubectl("create", "-f", "-", given=json.dumps(pod("default", "not-ours", labels=labels(org))))
        assert time.monotonic() - time_taken < 5
    create(site, pod(org, "first"))
    assert site.held(org) == HELD


def test_whoever_a_pod_says_pays_its_namespace_does(site: Site) -> None:
    poor, rich = site.org("duff", "1"), site.org("monsters", "1000")
    body = pod(poor, "cheater")
    body["metadata"]["labels"] = labels(rich)
    assert f"Org {poor} has 1 credit left" in refusal(site, body)
    assert site.held(rich) == 0


def test_in_shadow_mode_kubectl_warns_and_all_starts(site: Site) -> None:
    org = site.org("dunder", "1")
    site.set_policy(org, mode="shadow")
    done = site.kube.tried("create", "-f", "-", given=json.dumps(pod(org, "first")))
    assert done.returncode == 0
    (warning,) = done.stderr.strip().splitlines()
    assert warning.startswith("Warning: ")
    assert f"Org {org} has 1 credit left; this needs 9 credits to start." in warning


def test_a_job_that_grows_while_it_runs_starts_as_many_pods_as_are_paid_for(site: Site) -> None:
    org = site.org("pied", "20")
    body = job(org, "sweep", 1)
    body["spec"]["completions"] = 3
    create(site, body)
    site.kube.kubectl("patch", "job", "sweep", "-n", org, "-p", '{"spec": {"parallelism": 3}}')
    wait_until("a pod is refused", lambda: bool(site.kube.events(org, "FailedCreate")))
    assert f"Org {org} has 2 credits left; this needs 9 credits to start." in site.kube.events(org, "FailedCreate")[0]
    assert len(site.kube.get("pods", org)) == 2
    assert site.held(org) == 2 * HELD


def test_a_pod_whose_node_never_ends_it_costs_until_its_grace_period_is_over(site: Site) -> None:
    org, kube, since = site.org("gringotts", "1000"), site.kube, seconds_ago(50)
    uid = started(site, org, "stuck", since)
    kube.kubectl("delete", "pod", "stuck", "-n", org, "--wait=false", "--grace-period=3")
    over = kube.get("pods", org, "stuck")["metadata"]["deletionTimestamp"]
    expected = {("small", uid): (format_time(parse_time(over)), cost("small", since, parse_time(over)))}
    wait_charged(site, org, expected)
    kube.remove_pod(org, "stuck")
    wait_held(site, org, 0)
    wait_charged(site, org, expected)


def test_a_namespace_that_changes_hands_splits_what_its_pod_costs(site: Site) -> None:
    seller, buyer, since = site.org("stay-puft", "1000"), site.org("oceanic", "1000"), seconds_ago(50)
    uid = started(site, seller, "moves", since)
    wait_until("it is charged", lambda: ("small", uid) in site.charges(seller), 30, 0.2)
    site.kube.kubectl("label", "namespace", seller, f"platform.apolo.us/org={buyer}", "--overwrite")
    wait_until("it is the buyer's", lambda: ("small", uid) in site.charges(buyer), 30, 0.2)
    until = seconds_ago(0)
    site.kube.end_pod(seller, "moves", since, until)
    whole = Decimal(cost("small", since, until))

    def parts() -> Decimal:
        return sum((Decimal(site.charges(org)["small", uid][2]) for org in (seller, buyer)), Decimal(0))

    wait_until("both parts make the whole", lambda: parts() == whole, 30, 0.5)
    assert site.desk.json("verify")["ok"]


def test_an_api_server_that_fails_again_and_again_changes_no_charge(site: Site) -> None:
    org, kube, draw = site.org("virtucon", "100000"), site.kube, random.Random(11)
    expected: dict[tuple[str, str], tuple[str, str]] = {}
    for wave in range(3):
        for number in range(8):
            name, since = f"pod-{wave}-{number}", seconds_ago(draw.randrange(60, 200))
            preset, until = draw.choice(list(RATES)), seconds_ago(draw.randrange(5, 40))
            uid = started(site, org, name, since, preset)
            expected[preset, uid] = format_time(until), cost(preset, since, until)
            kube.end_pod(org, name, since, until)
            if number == 4:
                kube.end_api()
                if wave == 1:
                    kube.compact()
                kube.start_api()
    wait_charged(site, org, expected)
    wait_held(site, org, 0)
    assert site.desk.json("verify")["ok"]


def test_an_enforcer_that_hangs_is_a_refusal_in_a_few_seconds(site: Site) -> None:
    org = site.org("acmeboy", "1000")
    began = time.monotonic()
    with site.enforcer.sent(signal.SIGSTOP):
        said = refusal(site, pod(org, "first"))
    assert "failed calling webhook" in said
    assert time.monotonic() - began < 12
    create(site, pod(org, "second"))
