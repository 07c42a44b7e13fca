"""The `apolo` source against a stand-in of the platform: what is found, and what is not believed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.sources import ApoloSource as ApoloSettings
from config.values import Secret
from exporter.sources.apolo import ApoloSource
from exporter.sources.base import SourceError
from ledger.model import Observation, Snapshot
from tests.standins.apolo_api import ApoloApi, token_of
from tests.standins.faults import Fault

T0 = 1_764_000_000_000_000
SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 1440 * MINUTE


class Time:
    """A clock that stands where the test puts it."""

    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


@asynccontextmanager
async def source(api: ApoloApi, time: Time, **settings: Any) -> AsyncIterator[ApoloSource]:
    async with api.serve() as url:
        given: dict[str, Any] = {"disks": False, "timeout_seconds": 5.0, "token": Secret(token_of("meter"))} | settings
        made = ApoloSource(ApoloSettings(name="apolo-default", url=url, **given), time, retry_seconds=0.001)
        try:
            yield made
        finally:
            await made.close()


def by_id(snapshot: Snapshot) -> dict[str, Observation]:
    assert len({o.id for o in snapshot.workloads}) == len(snapshot.workloads)
    return {o.id: o for o in snapshot.workloads}


async def test_running_jobs_are_listed_with_their_start():
    api, time = ApoloApi(), Time()
    job = api.add_job(("pending", T0 - MINUTE), ("running", T0 - 30 * SECOND))
    async with source(api, time) as apolo:
        snapshot = await apolo.fetch(None)
    assert (snapshot.source, snapshot.cluster, snapshot.taken_us) == ("apolo-default", "default", T0)
    assert snapshot.complete
    assert by_id(snapshot)[job.id].started_us == T0 - 30 * SECOND


async def test_jobs_of_all_orgs_and_projects_are_seen_each_as_its_own():
    api, time = ApoloApi(), Time()
    for org in ("acme", "blue"):
        for project in ("ml", "web"):
            api.add_job(("running", T0 - MINUTE), org=org, project=project)
    async with source(api, time) as apolo:
        snapshot = await apolo.fetch(None)
    assert {(o.org, o.project) for o in snapshot.workloads} == {
        ("acme", "ml"), ("acme", "web"), ("blue", "ml"), ("blue", "web"),
    }  # fmt: skip


async def test_jobs_that_wait_are_told_so_that_their_holds_live_on():
    api, time = ApoloApi(), Time()
    api.add_job(("pending", T0 - MINUTE), ("running", T0 - 5))
    waits = api.add_job(("pending", T0 - MINUTE), org="acme")
    async with source(api, time) as apolo:
        assert (await apolo.fetch(None)).pending == {("acme", waits.id)}


async def test_only_the_orgs_that_were_asked_for_are_metered():
    api, time = ApoloApi(rights=["job://default/acme"]), Time()
    api.add_job(("running", T0), org="acme")
    api.add_job(("running", T0), org="blue")
    async with source(api, time, orgs=("acme",)) as apolo:
        assert {o.org for o in (await apolo.fetch(None)).workloads} == {"acme"}


async def test_w03_a_job_that_ends_between_polls_is_charged_to_its_end():
    api, time = ApoloApi(), Time()
    job = api.add_job(("running", T0 - 40 * DAY))
    async with source(api, time) as apolo:
        await apolo.fetch(None)
        time.us += MINUTE
        job.move("succeeded", T0 + 7)
        snapshot = await apolo.fetch(T0)
    assert by_id(snapshot)[job.id].ended_us == T0 + 7


async def test_w03_a_job_that_lives_between_two_polls_is_charged_in_full():
    api, time = ApoloApi(), Time()
    async with source(api, time) as apolo:
        await apolo.fetch(None)
        job = api.add_job(("pending", T0 + 1), ("running", T0 + 2), ("failed", T0 + 3))
        time.us += MINUTE
        seen = by_id(await apolo.fetch(T0))[job.id]
    assert (seen.started_us, seen.ended_us) == (T0 + 2, T0 + 3)


async def test_w21_what_ended_while_the_exporter_was_away_is_found_at_its_start():
    api, time = ApoloApi(), Time()
    long = api.add_job(("running", T0 - 5 * DAY), ("succeeded", T0 - 2 * DAY))
    charged = api.add_job(("running", T0 - 5 * DAY), ("succeeded", T0 - 4 * DAY))
    async with source(api, time) as apolo:
        seen = by_id(await apolo.fetch(T0 - 3 * DAY))
    assert long.id in seen
    assert charged.id not in seen


async def test_a_snapshot_that_was_lost_on_its_way_is_told_again():
    api, time = ApoloApi(), Time()
    job = api.add_job(("running", T0 - DAY))
    async with source(api, time) as apolo:
        await apolo.fetch(T0 - MINUTE)
        job.move("cancelled", T0 + 1)
        for _ in range(3):
            time.us += 20 * MINUTE
            assert by_id(await apolo.fetch(T0))[job.id].ended_us == T0 + 1
        time.us += 20 * MINUTE
        assert job.id not in by_id(await apolo.fetch(T0 + 60 * MINUTE))


async def test_f09_a_running_job_whose_record_is_deleted_ends_when_last_seen_and_is_counted():
    api, time = ApoloApi(), Time()
    job = api.add_job(("running", T0 - MINUTE))
    async with source(api, time) as apolo:
        await apolo.fetch(None)
        del api.jobs[job.id]
        time.us += MINUTE
        snapshot = await apolo.fetch(T0)
        assert snapshot.complete
        assert snapshot.unbillable == {"dropped": 1}
        assert not snapshot.workloads
        assert (await apolo.fetch(T0)).unbillable == {}


async def test_too_small_a_right_is_an_error_with_its_remedy_not_an_empty_list():
    api, time = ApoloApi(rights=["job://default/acme"]), Time()
    async with source(api, time) as apolo:
        with pytest.raises(SourceError, match="apolo acl grant job://default meter read"):
            await apolo.fetch(None)


async def test_a_right_that_is_taken_away_does_not_end_the_jobs():
    api, time = ApoloApi(), Time()
    api.add_job(("running", T0 - MINUTE))
    async with source(api, time) as apolo:
        await apolo.fetch(None)
        api.rights = []
        time.us += SECOND
        with pytest.raises(SourceError, match="403"):
            await apolo.fetch(T0)


async def test_records_that_seem_deleted_are_not_believed_without_the_rights_to_see_them():
    api, time = ApoloApi(), Time()
    job = api.add_job(("running", T0 - MINUTE))
    async with source(api, time) as apolo:
        await apolo.fetch(None)
        del api.jobs[job.id]
        api.rights = []
        with pytest.raises(SourceError, match="may not see the whole cluster"):
            await apolo.fetch(T0)
        api.rights = ["job://default"]
        assert (await apolo.fetch(T0)).unbillable == {"dropped": 1}


async def test_a_wrong_token_is_said_to_be_one():
    api, time = ApoloApi(), Time()
    async with source(api, time, token=Secret(token_of("other"))) as apolo:
        with pytest.raises(SourceError, match="401"):
            await apolo.fetch(None)


async def test_a_token_that_names_nobody_is_refused():
    api, time = ApoloApi(), Time()
    async with source(api, time, token=Secret("opaque")) as apolo:
        with pytest.raises(SourceError, match="does not say whose it is"):
            await apolo.fetch(None)


async def test_an_error_line_in_mid_stream_fails_the_round():
    api, time = ApoloApi(), Time()
    api.add_job(("running", T0))
    api.add_job(("running", T0))
    api.error_after = 1
    async with source(api, time) as apolo:
        with pytest.raises(SourceError, match="the database went away"):
            await apolo.fetch(None)
        api.error_after = None
        assert len((await apolo.fetch(None)).workloads) == 2


async def test_a_list_that_is_cut_off_fails_the_round_and_ends_nothing():
    api, time = ApoloApi(), Time()
    first = api.add_job(("running", T0))
    second = api.add_job(("running", T0))
    async with source(api, time) as apolo:
        await apolo.fetch(None)
        api.cut_after = 1
        with pytest.raises(SourceError, match="breaks off"):
            await apolo.fetch(T0)
        api.cut_after = None
        second.move("succeeded", T0 + 5)
        seen = by_id(await apolo.fetch(T0))
    assert seen[first.id].ended_us is None
    assert seen[second.id].ended_us == T0 + 5


@pytest.mark.parametrize("status", [429, 502, 503])
async def test_passing_faults_are_tried_again(status: int):
    api, time = ApoloApi(), Time()
    job = api.add_job(("running", T0 - DAY))
    async with source(api, time) as apolo:
        await apolo.fetch(None)
        job.move("succeeded", T0 + 1)
        api.faults.add(Fault(f"/jobs/{job.id}", status, headers={"Retry-After": "0"}))
        api.faults.add(Fault(f"/jobs/{job.id}", cut=True))
        assert by_id(await apolo.fetch(T0))[job.id].ended_us == T0 + 1


async def test_lasting_faults_fail_the_round_and_what_it_missed_is_found_by_the_next():
    api, time = ApoloApi(), Time()
    job = api.add_job(("running", T0 - DAY))
    async with source(api, time) as apolo:
        await apolo.fetch(None)
        job.move("succeeded", T0 + 1)
        api.faults.add(Fault(f"/jobs/{job.id}", 500))
        with pytest.raises(SourceError, match="500"):
            await apolo.fetch(T0)
        assert by_id(await apolo.fetch(T0))[job.id].ended_us == T0 + 1


async def test_a_server_that_is_silent_fails_the_round_in_time():
    api, time = ApoloApi(), Time()
    api.faults.add(Fault("/jobs", silent=True))
    async with source(api, time, timeout_seconds=0.05) as apolo:
        with pytest.raises(SourceError, match="does not go on"):
            await apolo.fetch(None)


async def test_w11_an_odd_job_is_counted_and_the_others_are_charged():
    api, time = ApoloApi(), Time()
    api.add_job(("running", T0))
    api.extra_lines = [b'{"id": "job-odd", "status": "running", "statuses": 5}']
    async with source(api, time) as apolo:
        snapshot = await apolo.fetch(None)
    assert len(snapshot.workloads) == 1
    assert snapshot.unbillable["malformed"] >= 1
    assert not snapshot.complete


async def test_long_lines_are_read_whole():
    api, time = ApoloApi(), Time()
    job = api.add_job(("running", T0), resources={"note": "x" * 2_000_000})
    async with source(api, time) as apolo:
        assert job.id in by_id(await apolo.fetch(None))


async def test_f09_a_job_that_takes_more_than_its_preset_is_charged_by_the_one_that_fits_and_counted():
    api, time = ApoloApi(), Time()
    api.presets = [
        {"name": "small", "credits_per_hour": "1", "cpu": 1.0, "memory": 2**30},
        {"name": "large", "credits_per_hour": "8", "cpu": 64.0, "memory": 2**36},
    ]
    job = api.add_job(("running", T0), preset="small", resources={"cpu": 64.0, "memory": 2**30})
    async with source(api, time) as apolo:
        snapshot = await apolo.fetch(None)
    assert by_id(snapshot)[job.id].resource == "large"
    assert snapshot.unbillable == {"oversized": 1}


async def test_rates_are_those_of_the_platform():
    api, time = ApoloApi(), Time()
    api.presets = [{"name": "small", "credits_per_hour": "1.5", "cpu": 1.0, "memory": 2**30}]
    api.volumes = [{"name": "default", "credits_per_hour_per_gb": "0.0001"}]
    async with source(api, time) as apolo:
        rates = await apolo.rates()
    assert (dict(rates.presets), dict(rates.storage)) == ({"small": 1_500_000_000}, {"default": 100_000})


async def test_disks_of_all_projects_are_storage():
    api, time = ApoloApi(projects=[("acme", "ml"), ("blue", "web")]), Time()
    api.add_disk("acme", "ml", 10)
    api.add_disk("blue", "web", 20)
    async with source(api, time, disks=True, disk_class="disk") as apolo:
        snapshot = await apolo.fetch(None)
    assert sorted((o.org, o.bytes, o.resource) for o in snapshot.workloads) == [
        ("acme", 10, "disk"),
        ("blue", 20, "disk"),
    ]
    assert snapshot.complete


async def test_an_empty_list_of_disks_is_not_believed_before_each_was_asked_for():
    api, time = ApoloApi(projects=[("acme", "ml")]), Time()
    kept, deleted = api.add_disk("acme", "ml", 10), api.add_disk("acme", "ml", 20)
    async with source(api, time, disks=True) as apolo:
        await apolo.fetch(None)
        api.disks_hidden = True
        del api.disks[deleted]
        api.disks[kept]["storage"] = 11
        time.us += 10 * MINUTE
        snapshot = await apolo.fetch(T0)
    assert {o.id: o.bytes for o in snapshot.workloads} == {kept: 11}
    assert snapshot.complete


async def test_no_disks_at_all_at_the_start_end_nothing_at_first():
    api, time = ApoloApi(projects=[("acme", "ml")]), Time()
    api.add_disk("acme", "ml", 10)
    api.disks_hidden = True
    async with source(api, time, disks=True) as apolo:
        assert not (await apolo.fetch(None)).complete


async def test_disks_are_asked_for_at_most_once_an_interval():
    api, time = ApoloApi(projects=[("acme", "ml")]), Time()
    disk = api.add_disk("acme", "ml", 10)
    async with source(api, time, disks=True, disks_interval_seconds=300.0) as apolo:
        for _ in range(4):
            assert disk in by_id(await apolo.fetch(None))
            time.us += 15 * SECOND
        assert api.faults.count("GET", "/api/v1/disk") == 1


async def test_a_failing_disk_api_keeps_no_job_from_being_charged():
    api, time = ApoloApi(projects=[("acme", "ml")]), Time()
    job, disk = api.add_job(("running", T0)), api.add_disk("acme", "ml", 10)
    async with source(api, time, disks=True) as apolo:
        await apolo.fetch(None)
        api.faults.add(Fault("/api/v1/disk", 500))
        time.us += 10 * MINUTE
        snapshot = await apolo.fetch(T0)
        assert by_id(snapshot).keys() == {job.id, disk}
        assert snapshot.unbillable == {"stale_storage": 1}


async def test_w20_two_exporters_see_the_same_runs():
    api, time = ApoloApi(), Time()
    api.add_job(("pending", T0 - DAY), ("running", T0 - DAY), ("suspended", T0 - MINUTE), ("running", T0 - 5))
    async with source(api, time) as first, source(api, time) as second:
        await first.fetch(None)
        assert (await first.fetch(T0)).workloads == (await second.fetch(T0)).workloads


async def test_unchanged_jobs_are_the_same_objects():
    api, time = ApoloApi(), Time()
    api.add_job(("running", T0))
    async with source(api, time) as apolo:
        first = (await apolo.fetch(None)).workloads[0]
        assert (await apolo.fetch(T0)).workloads[0] is first
