"""The `kubernetes` source against a stand-in of an API server: lists, watches, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from config.sources import KubernetesSource as KubernetesSettings
from config.sources import StorageUsage
from config.values import Secret
from exporter.sources.base import SourceError
from exporter.sources.kubernetes import KubernetesSource
from ledger.model import Observation, Snapshot
from tests.standins.faults import Fault, serving
from tests.standins.kube_api import KubeApi, apolo_labels, container_status, pod_body, running, terminated, text

T0 = 1_764_000_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
NS = "platform--acme--ml"


class Time:
    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


@asynccontextmanager
async def source(api: KubeApi, time: Time, **more: Any) -> AsyncIterator[KubernetesSource]:
    options = {"settle_us": 0, "page": 2, "watch_seconds": 60.0, "back_off_seconds": 0.001}
    options |= {key: more.pop(key) for key in list(more) if key in options or key in ("stale_us", "priced_apps")}
    async with api.serve() as url:
        settings = KubernetesSettings(name="kubernetes-default", url=url, **({"timeout_seconds": 5.0} | more))
        made = KubernetesSource(settings, time, **options)  # type: ignore[arg-type]
        try:
            yield made
        finally:
            await made.close()


def live(name: str, since_us: int = T0, namespace: str = NS, **labels: str) -> dict[str, Any]:
    body = pod_body(name, namespace, since_us - MINUTE, apolo_labels(**labels))
    body["status"] = {"phase": "Running", "containerStatuses": [container_status(running(since_us))]}
    return body


async def fetched(
    kubernetes: KubernetesSource, wanted: Callable[[Snapshot], bool], since: int | None = None
) -> Snapshot:
    """The first snapshot that is as wanted; watches take their moment."""
    async with asyncio.timeout(5):
        while True:
            snapshot = await kubernetes.fetch(since)
            if wanted(snapshot):
                return snapshot
            await asyncio.sleep(0.002)


def alive(snapshot: Snapshot) -> list[Observation]:
    return [o for o in snapshot.workloads if o.ended_us is None]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in a server
            await asyncio.sleep(0.002)


async def test_a_list_in_chunks_is_read_whole():
    api, time = KubeApi(), Time()
    for number in range(5):
        await api.put("pods", live(f"pod-{number}"))
    async with source(api, time) as kubernetes:
        snapshot = await kubernetes.fetch(None)
        assert api.faults.count("GET", "/pods?limit=2") == 3
    assert (snapshot.source, snapshot.cluster, snapshot.taken_us) == ("kubernetes-default", "default", T0)
    assert len(snapshot.workloads) == 5
    assert snapshot.complete


async def test_w15_a_round_costs_no_request_and_no_list():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    async with source(api, time) as kubernetes:
        await kubernetes.fetch(None)
        await until(lambda: api.watchers == 3)
        before = len(api.faults.requests)
        for _ in range(50):
            await kubernetes.fetch(T0)
        assert len(api.faults.requests) == before


async def test_pods_come_and_go_by_the_watch():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    async with source(api, time) as kubernetes:
        await kubernetes.fetch(None)
        await api.put("pods", live("pod-2", T0 + SECOND))
        await fetched(kubernetes, lambda s: len(alive(s)) == 2)
        time.us = T0 + MINUTE
        await api.delete("pods", NS, "pod-1")
        snapshot = await fetched(kubernetes, lambda s: len(alive(s)) == 1, T0)
        assert {o.ended_us for o in snapshot.workloads} == {None, T0 + MINUTE}


async def test_w03_a_pod_that_lives_between_two_polls_is_charged_in_full():
    api, time = KubeApi(), Time()
    async with source(api, time) as kubernetes:
        await kubernetes.fetch(None)
        body = await api.put("pods", live("pod-1", T0 + SECOND))
        done = json.loads(json.dumps(body))
        done["status"] = {
            "phase": "Succeeded",
            "containerStatuses": [container_status(terminated(T0 + SECOND, T0 + 2 * SECOND))],
        }
        await api.put("pods", done)
        await api.delete("pods", NS, "pod-1")
        time.us = T0 + MINUTE
        (seen,) = (await fetched(kubernetes, lambda s: len(s.workloads) == 1, T0)).workloads
    assert (seen.suspended[0][1], seen.ended_us) == (T0 + SECOND, T0 + 2 * SECOND)


async def test_a_cut_watch_is_resumed_where_it_was_and_loses_nothing():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    async with source(api, time) as kubernetes:
        await kubernetes.fetch(None)
        await until(lambda: api.watchers == 3)
        api.faults.add(Fault("/pods?watch", 503, times=2))
        await api.cut_watches()
        await api.put("pods", live("pod-2"))
        await api.delete("pods", NS, "pod-1")
        snapshot = await fetched(kubernetes, lambda s: len(s.workloads) == 2)
        assert len(alive(snapshot)) == 1
        assert api.faults.count("GET", "/pods?limit") == 1


@pytest.mark.parametrize("as_event", [False, True])
async def test_a_version_that_the_server_forgot_is_answered_by_a_new_list(as_event: bool):
    api, time = KubeApi(), Time()
    api.gone_as_event = as_event
    await api.put("pods", live("pod-1"))
    await api.put("pods", live("pod-2"))
    async with source(api, time) as kubernetes:
        await kubernetes.fetch(None)
        await until(lambda: api.watchers == 3)
        api.faults.add(Fault("/pods?watch", 503, times=3))
        await api.cut_watches()
        await until(lambda: api.watchers < 3)
        time.us = T0 + MINUTE
        await api.put("pods", live("pod-3"))
        await api.delete("pods", NS, "pod-1")
        api.compact()
        snapshot = await fetched(kubernetes, lambda s: len(s.workloads) == 3)
        assert len(alive(snapshot)) == 2
        # All that is known of the one that is gone is that it was there when the server was last followed.
        assert {o.ended_us for o in snapshot.workloads} == {None, T0}
        assert api.faults.count("GET", "/pods?limit") == 2


async def test_a_continued_list_that_expires_is_begun_anew():
    api, time = KubeApi(), Time()
    api.expire_continue = 1
    for number in range(5):
        await api.put("pods", live(f"pod-{number}"))
    async with source(api, time) as kubernetes:
        assert len((await kubernetes.fetch(None)).workloads) == 5


async def test_bookmarks_move_the_version_on():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    async with source(api, time) as kubernetes:
        await kubernetes.fetch(None)
        await until(lambda: api.watchers == 3)
        await api.tell_bookmark("pods")
        version = api.version
        api.compact()
        await until(lambda: kubernetes.versions()["/api/v1/pods"] == str(version))
        await api.cut_watches()
        await until(lambda: api.faults.count("GET", f"resourceVersion={version}") >= 1)
        assert api.faults.count("GET", "/pods?limit") == 1


async def test_an_api_server_that_is_silent_for_long_fails_the_round():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    async with source(api, time, stale_us=MINUTE) as kubernetes:
        await kubernetes.fetch(None)
        await until(lambda: api.watchers == 3)
        api.faults.add(Fault("watch=1", 500, times=10**6))
        await api.cut_watches()
        await until(lambda: api.watchers == 0)
        time.us = T0 + 30 * SECOND
        snapshot = await fetched(kubernetes, lambda s: s.taken_us != time.us)
        assert snapshot.taken_us == T0, "charges go no further than what is known to be true"
        time.us = T0 + 2 * MINUTE
        with pytest.raises(SourceError, match=r"silent about .* for more than 60 s"):
            await kubernetes.fetch(T0)
        api.faults.coming.clear()
        await until(lambda: api.watchers == 3)
        assert (await fetched(kubernetes, lambda s: s.taken_us == time.us)).workloads


async def test_a_watch_that_is_silent_for_too_long_proves_nothing_about_what_waits():
    """A connection may be dead for a while before that shows; who was let in meanwhile is not listed."""
    api, time = KubeApi(), Time()
    async with source(api, time) as kubernetes:
        await kubernetes.fetch(None)
        await until(lambda: api.watchers == 3)
        time.us = T0 + MINUTE
        assert (await kubernetes.fetch(None)).lists_waiting
        time.us += 6 * SECOND
        snapshot = await kubernetes.fetch(None)
        assert (snapshot.lists_waiting, snapshot.complete, snapshot.taken_us) == (False, True, time.us)
        for plural in ("namespaces", "pods", "persistentvolumeclaims"):
            await api.tell_bookmark(plural)
        await fetched(kubernetes, lambda s: s.lists_waiting is True)


async def test_a_first_list_that_does_not_come_fails_the_round_with_its_reason():
    api, time = KubeApi(), Time()
    api.faults.add(Fault("/pods", 403, times=10**6))
    async with source(api, time, timeout_seconds=0.2) as kubernetes:
        with pytest.raises(SourceError, match=r"403.*docs/kubernetes.md"):
            await kubernetes.fetch(None)


async def test_pages_that_fail_are_asked_for_again():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    api.faults.add(Fault("/pods", 429, headers={"Retry-After": "0"}))
    api.faults.add(Fault("/pods", cut=True))
    async with source(api, time) as kubernetes:
        assert len((await kubernetes.fetch(None)).workloads) == 1


async def test_the_token_file_is_read_again_when_it_is_rotated(tmp_path: Path):
    api, time = KubeApi(), Time()
    token = tmp_path / "token"
    token.write_text("first")
    seen: list[str | None] = []

    @web.middleware
    async def note(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})

    app = web.Application(middlewares=[note])
    async with serving(app) as url:
        settings = KubernetesSettings(name="k", url=url, token=Secret(file=token), volumes=False)
        kubernetes = KubernetesSource(settings, time, back_off_seconds=0.001)
        await kubernetes.fetch(None)
        token.write_text("second")
        await until(lambda: "Bearer second" in seen)
        await kubernetes.close()
    assert seen[0] == "Bearer first"
    assert api.watchers == 0


async def test_the_selector_is_the_servers_to_apply():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    await api.put("pods", live("pod-2", metered="yes"))
    async with source(api, time, selector="metered=yes") as kubernetes:
        assert len((await kubernetes.fetch(None)).workloads) == 1


async def test_namespaces_place_the_pods_in_them():
    api, time = KubeApi(), Time()
    labels = {"platform.apolo.us/org": "blue", "platform.apolo.us/project": "web"}
    await api.put("namespaces", {"metadata": {"name": NS, "labels": labels}})
    await api.put("pods", live("pod-1"))
    async with source(api, time) as kubernetes:
        snapshot = await kubernetes.fetch(None)
        assert [(o.org, o.project) for o in snapshot.workloads] == [("blue", "web")]
        assert snapshot.unbillable == {"org_mismatch": 1}


async def test_volumes_are_followed_to_their_deletion():
    api, time = KubeApi(), Time()
    claim = {
        "metadata": {"name": "data", "namespace": NS, "labels": apolo_labels(preset=None)},
        "spec": {"storageClassName": "ssd"},
        "status": {"phase": "Bound", "capacity": {"storage": "10G"}},
    }
    await api.put("persistentvolumeclaims", claim)
    async with source(api, time) as kubernetes:
        (volume,) = (await kubernetes.fetch(None)).workloads
        assert (volume.kind, volume.resource, volume.bytes) == ("storage", "ssd", 10**10)
        time.us = T0 + MINUTE
        await api.delete("persistentvolumeclaims", NS, "data")
        snapshot = await fetched(kubernetes, lambda s: not alive(s))
        assert [o.ended_us for o in snapshot.workloads] == [T0 + MINUTE]


@asynccontextmanager
async def prometheus(answers: list[list[tuple[str, str, str]]]) -> AsyncIterator[str]:
    """Gives one answer after the other, the last for ever: (org, project, bytes) of each series."""

    async def query(request: web.Request) -> web.Response:
        series = answers.pop(0) if len(answers) > 1 else answers[0]
        result = [
            {"metric": {"org_name": org, "project_name": project, "pod": str(n)}, "value": [0, size]}
            for n, (org, project, size) in enumerate(series)
        ]
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": result}})

    app = web.Application()
    app.router.add_get("/api/v1/query", query)
    async with serving(app) as url:
        yield url


async def test_w17_shared_storage_counts_once_and_an_empty_answer_deletes_nothing():
    api, time = KubeApi(), Time()
    doubled = [("acme", "ml", "10"), ("acme", "ml", "10")]
    async with prometheus([doubled, []]) as url, source(api, time, storage=StorageUsage(url=url)) as kubernetes:
        first = await kubernetes.fetch(None)
        assert [(o.org, o.bytes) for o in first.workloads] == [("acme", 10)]
        time.us += 5 * MINUTE
        second = await kubernetes.fetch(T0)
        assert [(o.org, o.bytes) for o in second.workloads] == [("acme", 10)]
        assert second.complete
        assert second.unbillable == {"stale_storage": 1}


async def test_a_prometheus_that_is_away_at_the_start_keeps_no_pod_from_being_charged():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    async with source(api, time, storage=StorageUsage(url="http://127.0.0.1:9")) as kubernetes:
        snapshot = await kubernetes.fetch(None)
    assert len(snapshot.workloads) == 1
    assert not snapshot.complete


async def test_f08_apps_direct_pods_and_volumes_are_all_metered():
    api, time = KubeApi(), Time()
    await api.put("pods", live("direct"))
    await api.put("pods", live("app", **{"app.kubernetes.io/instance": "llm"}))
    async with source(api, time, priced_apps=lambda: {"llm"}) as kubernetes:
        kinds = sorted((o.kind, o.resource) for o in (await kubernetes.fetch(None)).workloads)
    assert kinds == [("app", "cpu-small"), ("app", "llm"), ("job", "cpu-small")]


async def test_w20_two_exporters_see_the_same_runs():
    api, time = KubeApi(), Time()
    for number in range(3):
        await api.put("pods", live(f"pod-{number}", T0 + number, **{"app.kubernetes.io/instance": "llm"}))
    async with source(api, time) as first, source(api, time) as second:
        assert (await first.fetch(None)).workloads == (await second.fetch(None)).workloads


async def test_a_defect_in_following_is_told_and_followed_by_a_new_start():
    api, time = KubeApi(), Time()
    await api.put("pods", live("pod-1"))
    async with source(api, time) as kubernetes:
        await kubernetes.fetch(None)
        following = kubernetes._following
        assert following is not None
        following.cancel()
        await until(following.done)
        with pytest.raises(SourceError, match="the watch stopped"):
            await kubernetes.fetch(None)
        assert (await kubernetes.fetch(None)).workloads


async def test_creation_times_are_what_tells_runs_apart():
    api, time = KubeApi(), Time()
    body = await api.put("pods", live("pod-1", T0))
    async with source(api, time) as kubernetes:
        (seen,) = (await kubernetes.fetch(None)).workloads
    assert body["metadata"]["creationTimestamp"] == text(seen.started_us or 0)
