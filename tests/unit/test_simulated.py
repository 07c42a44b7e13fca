"""The simulated cluster: believable, and the same for everybody who looks at it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.sources.simulated import LISTED_US, ORGS, SimulatedCluster, SimulatedSource
from exporter.sources.simulated_load import activity, draw_hour, draw_org, services
from ledger.clock import parse_time
from ledger.model import Observation
from ledger.money import HOUR_US

MONDAY = parse_time("2026-11-23T00:00:00Z")
DAY = 24 * HOUR_US
MINUTE = HOUR_US // 60

instants = st.integers(MONDAY, MONDAY + 30 * DAY)


def cluster(seed: int = 1) -> SimulatedCluster:
    return SimulatedCluster(cluster="demo", seed=seed)


def runs_of(observations: list[Observation]) -> dict[tuple[str, int], Observation]:
    return {(o.id, o.started_us): o for o in observations if o.started_us is not None}


async def test_a_first_look_shows_every_org_with_running_jobs_apps_and_volumes() -> None:
    source = SimulatedSource(name="sim", cluster="demo", clock=lambda: MONDAY + 14 * HOUR_US)

    snapshot = await source.fetch(None)
    await source.close()

    assert snapshot.taken_us == MONDAY + 14 * HOUR_US
    running = [o for o in snapshot.workloads if o.started_us is not None and o.ended_us is None]
    assert {o.org for o in running} == set(ORGS)
    assert {o.kind for o in snapshot.workloads} == {"job", "app", "storage"}
    assert {o.resource for o in snapshot.workloads} == {
        "cpu-small",
        "cpu-large",
        "gpu-small",
        "gpu-large",
        "default",
    }
    assert {o.app for o in snapshot.workloads} == {"", "jupyter", "vllm"}


async def test_what_ended_during_a_long_absence_is_listed() -> None:
    now = MONDAY + 14 * HOUR_US
    source = SimulatedSource(name="sim", cluster="demo", clock=lambda: now)

    usual = await source.fetch(now - MINUTE)
    late = await source.fetch(now - 7 * DAY)

    assert min(o.ended_us for o in usual.workloads if o.ended_us is not None) > now - LISTED_US
    assert min(o.ended_us for o in late.workloads if o.ended_us is not None) < now - 6 * DAY
    assert len(late.workloads) > 5 * len(usual.workloads)


@settings(max_examples=20)
@given(instants)
def test_two_that_look_at_the_same_time_see_the_same_whatever_they_saw_before(us: int) -> None:
    restarted, steady = cluster(), cluster()
    steady.at(us - 3 * HOUR_US, us - 4 * HOUR_US)
    steady.at(us - MINUTE, us - HOUR_US)

    assert restarted.at(us, us - HOUR_US) == steady.at(us, us - HOUR_US)


def test_another_seed_is_another_cluster() -> None:
    assert cluster(1).at(MONDAY, MONDAY - HOUR_US) != cluster(2).at(MONDAY, MONDAY - HOUR_US)


@settings(max_examples=20)
@given(instants, st.integers(1, 6 * HOUR_US))
def test_time_only_adds_to_what_was_said_of_a_run(us: int, later_us: int) -> None:
    simulated = cluster()
    before = runs_of(simulated.at(us, us - LISTED_US))
    after = runs_of(simulated.at(us + later_us, us - LISTED_US))

    assert before.keys() <= after.keys()
    for key, then in before.items():
        now = after[key]
        assert then.ended_us in (None, now.ended_us)
        assert (now.org, now.project, now.user, now.resource) == (
            then.org,
            then.project,
            then.user,
            then.resource,
        )
        for told, whole in zip(then.suspended, now.suspended, strict=False):
            assert told[0] == whole[0]
            assert told[1] in (None, whole[1])


@settings(max_examples=20)
@given(instants)
def test_nothing_is_known_before_it_happens(us: int) -> None:
    for o in cluster().at(us, us - LISTED_US):
        told = [o.started_us, o.ended_us, *(at for interval in o.suspended for at in interval)]
        assert all(at is None or at <= us for at in told)


def test_frequent_looks_and_the_history_agree_on_all_runs_of_a_day() -> None:
    simulated = cluster()
    seen: dict[tuple[str, int], Observation] = {}
    for us in range(MONDAY, MONDAY + DAY + 1, LISTED_US // 2):
        seen |= runs_of(simulated.at(us, us - LISTED_US))

    expected = runs_of(list(simulated.history(MONDAY, MONDAY + DAY)))

    assert expected == {
        key: o for key, o in seen.items() if key[1] < MONDAY + DAY and (o.ended_us is None or o.ended_us > MONDAY)
    }


def test_a_week_has_suspended_requeued_waiting_and_failed_jobs() -> None:
    simulated = cluster()
    history = list(simulated.history(MONDAY, MONDAY + 7 * DAY))
    ids = [o.id for o in history]

    assert 500 < len(history) < 10_000
    assert any(o.suspended for o in history)
    assert len(set(ids)) < len(ids)
    assert len({(o.id, o.started_us) for o in history}) == len(ids)
    assert any(
        o.ended_us is not None and o.started_us is not None and o.ended_us - o.started_us < 2 * MINUTE for o in history
    )
    assert any(
        o.started_us is None and o.kind == "job"
        for hour in range(24)
        for o in simulated.at(MONDAY + hour * HOUR_US, MONDAY)
    )


def test_runs_have_time_in_them_and_suspensions_within_it() -> None:
    org = draw_org("seed", "acme", 50.0)
    drawn = [run for hour in range(500) for run in draw_hour(org, hour)]
    for run in [*drawn, *services(org, 0, 400 * DAY)]:
        assert run.listed_us <= run.started_us < run.ended_us
        assert all(run.started_us <= since < until <= run.ended_us for since, until in run.suspended)


def test_days_are_busier_than_nights_and_weekends() -> None:
    org = draw_org("seed", "acme", 12.0)
    monday = MONDAY // HOUR_US - org.offset_hours

    assert activity(org, monday + 14) == pytest.approx(1.0)
    assert activity(org, monday + 14) > 3 * activity(org, monday + 2)
    assert activity(org, monday + 14) > 3 * activity(org, monday + 14 - 24)
    assert activity(org, monday + 14) > 3 * activity(org, monday + 14 - 48)
    assert activity(org, monday + 14) == pytest.approx(activity(org, monday + 14 - 72))


def test_an_org_that_submits_nothing_has_no_jobs() -> None:
    assert list(draw_hour(draw_org("seed", "acme", 0.0), 14)) == []


def test_volumes_grow_and_are_cleaned_up() -> None:
    simulated = cluster()
    sizes: dict[str, list[int]] = {}
    for day in range(30):
        us = MONDAY + day * DAY
        for o in simulated.at(us, us):
            if o.kind == "storage":
                sizes.setdefault(o.id, []).append(o.bytes)

    assert all(len(of_one) == 30 and min(of_one) > 0 for of_one in sizes.values())
    grown = [any(a < b for a, b in itertools.pairwise(of_one)) for of_one in sizes.values()]
    shrunk = [any(a > b for a, b in itertools.pairwise(of_one)) for of_one in sizes.values()]
    assert all(grown)
    assert all(shrunk)
