"""What a document of the `json` source means, and what it is refused for."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.sources.base import SourceError
from exporter.sources.json_document import INSTANT_MAX_US, Cache, instant_us, parse
from ledger.clock import format_time, parse_time
from ledger.model import Observation, Snapshot

T9 = parse_time("2026-11-22T09:00:00Z")
T10 = parse_time("2026-11-22T10:00:00Z")
MINUTE = 60_000_000

JOB: dict[str, Any] = {
    "id": "job-1",
    "kind": "job",
    "org": "acme",
    "project": "vision",
    "user": "ann",
    "preset": "gpu-large",
    "app": None,
    "started_at": "2026-11-22T09:00:00Z",
    "ended_at": None,
    "suspended": [],
}
VOLUME: dict[str, Any] = {
    "id": "vol-1",
    "org": "acme",
    "project": "vision",
    "user": None,
    "storage_class": "default",
    "bytes": 1_000_000_000,
}


def document(*workloads: object, storage: tuple[object, ...] = (), **top: object) -> bytes:
    return json.dumps(
        {
            "cluster": "default",
            "taken_at": "2026-11-22T10:00:00Z",
            "workloads": list(workloads),
            "storage": list(storage),
            **top,
        }
    ).encode()


def read(data: bytes, cache: Cache | None = None) -> Snapshot:
    return parse(data, "json-default", "default", cache)


def only(snapshot: Snapshot) -> Observation:
    (observation,) = snapshot.workloads
    return observation


def test_the_documents_job_and_volume_are_observed_as_written() -> None:
    snapshot = read(document(JOB, storage=(VOLUME,)))

    assert (
        Snapshot(
            source="json-default",
            cluster="default",
            taken_us=T10,
            workloads=[
                Observation("job-1", "job", "acme", "vision", "ann", "gpu-large", started_us=T9),
                Observation("vol-1", "storage", "acme", "vision", "", "default", bytes=1_000_000_000),
            ],
        )
        == snapshot
    )


@pytest.mark.parametrize(
    ("record", "resource", "app"),
    [
        ({**JOB, "kind": "app", "app": "vllm"}, "gpu-large", "vllm"),
        ({**JOB, "kind": "app", "app": "vllm", "preset": None}, "vllm", "vllm"),
        ({**JOB, "app": "vllm"}, "gpu-large", "vllm"),
    ],
    ids=["app on a preset", "app without a preset is its own resource", "job of an app"],
)
def test_an_app_is_billed_by_its_preset_or_by_its_own_name(record: dict[str, Any], resource: str, app: str) -> None:
    observation = only(read(document(record)))

    assert (resource, app) == (observation.resource, observation.app)


def test_absent_project_user_and_storage_class_have_their_defaults() -> None:
    bare = {"id": "vol-2", "org": "acme", "bytes": 0}

    assert Observation("vol-2", "storage", "acme", "", "", "default") == only(read(document(storage=(bare,))))


def test_hold_and_run_time_limit_are_carried_along() -> None:
    observation = only(read(document({**JOB, "hold_id": "h1", "max_runtime_seconds": 90, "colour": "red"})))

    assert (observation.hold_id, observation.limit_us) == ("h1", 90_000_000)


def test_a_job_that_waits_is_listed_without_a_start() -> None:
    snapshot = read(document({**JOB, "started_at": None}))

    assert (only(snapshot).started_us, snapshot.complete) == (None, True)


def test_the_holds_of_jobs_that_wait_are_told() -> None:
    waits = {**JOB, "id": "waits", "started_at": None, "hold_id": "h1"}
    cancelled = {**JOB, "id": "cancelled", "started_at": None, "ended_at": "2026-11-22T10:00:00Z", "hold_id": "h2"}
    runs = {**JOB, "id": "runs", "hold_id": "h3"}

    snapshot = read(document(waits, cancelled, runs, {**waits, "id": "other", "hold_id": None}))
    assert snapshot.pending_holds == {"h1"}
    assert snapshot.pending == {(JOB["org"], "other")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22T10:00:00Z", T10),
        ("2026-11-22t10:00:00z", T10),
        ("2026-11-22T11:30:00+01:30", T10),
        ("2026-11-22T10:00:00.000001Z", T10 + 1),
        ("2026-11-22T10:00:00.0000019Z", T10 + 1),
        ("2026-11-22T10:00:00.5-00:00", T10 + 500_000),
        ("1970-01-01T00:00:00Z", 0),
    ],
)
def test_times_have_any_offset_and_what_is_finer_than_a_microsecond_is_cut_off(text: str, expected: int) -> None:
    assert expected == instant_us(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-22",
        "2026-11-22T10:00:00",
        "2026-11-22T10:00Z",
        "20261122T100000Z",
        "2026-02-30T10:00:00Z",
        "2026-11-22T25:00:00Z",
        "2026-11-22T10:00:00+25:00",
        "1969-12-31T23:59:59Z",
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59-12:00",
        "2026-11-22T10:00:00Z\n",
        "٢٠٢٦-11-22T10:00:00Z",
    ],
)
def test_anything_else_is_not_a_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        instant_us(text)


@given(st.integers(15 * 60 * MINUTE, INSTANT_MAX_US - 1), st.integers(-14 * 60, 14 * 60))
def test_every_instant_survives_being_written_in_any_zone(us: int, offset_minutes: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)

    assert us == instant_us(moment.astimezone(timezone(timedelta(minutes=offset_minutes))).isoformat())


@pytest.mark.parametrize(
    ("said", "ended", "expected"),
    [
        ([(10, 20)], None, [(10, 20)]),
        ([(30, 40), (10, 20)], None, [(10, 20), (30, 40)]),
        ([(10, 20), (20, 30)], None, [(10, 30)]),
        ([(10, 30), (15, 20)], None, [(10, 30)]),
        ([(-10, 5)], None, [(0, 5)]),
        ([(10, 50)], 40, [(10, 40)]),
        ([(10, None)], None, [(10, None)]),
        ([(10, None)], 40, [(10, 40)]),
        ([(10, None), (5, 12)], None, [(5, None)]),
        ([(10, 10), (-10, -5), (45, 50)], 40, []),
    ],
)
def test_suspensions_are_sorted_joined_and_kept_within_the_run(
    said: list[tuple[int, int | None]], ended: int | None, expected: list[tuple[int, int | None]]
) -> None:
    def at(minutes: int | None) -> int | None:
        return None if minutes is None else T9 + minutes * MINUTE

    def text(minutes: int | None) -> str | None:
        return None if minutes is None else format_time(T9 + minutes * MINUTE)

    record = {**JOB, "ended_at": text(ended), "suspended": [[text(a), text(b)] for a, b in said]}

    assert tuple((at(a), at(b)) for a, b in expected) == only(read(document(record))).suspended


minutes = st.integers(-5, 30)


@given(st.lists(st.tuples(minutes, st.integers(0, 10) | st.none())), st.none() | st.integers(0, 25))
def test_suspensions_cover_exactly_the_minutes_that_were_said(
    said: list[tuple[int, int | None]], ended: int | None
) -> None:
    def text(minute: int | None) -> str | None:
        return None if minute is None else format_time(T9 + minute * MINUTE)

    pairs = [(since, None if took is None else since + took) for since, took in said]
    record = {**JOB, "ended_at": text(ended), "suspended": [[text(a), text(b)] for a, b in pairs]}
    far = 50
    inside = {m for a, b in pairs for m in range(a, far if b is None else b)}
    expected = {m for m in inside if 0 <= m < (far if ended is None else ended)}

    got = [
        ((a - T9) // MINUTE, far if b is None else (b - T9) // MINUTE)
        for a, b in only(read(document(record))).suspended
    ]

    assert expected == {m for a, b in got for m in range(a, b)}
    assert all(a < b for a, b in got)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(got))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": None}, "malformed"),
        ({"id": 7}, "malformed"),
        ({"id": ""}, "bad_name"),
        ({"id": "x" * 254}, "bad_name"),
        ({"user": "an\nn"}, "bad_name"),
        ({"project": "\x7f"}, "bad_name"),
        ({"org": None}, "no_org"),
        ({"org": ""}, "no_org"),
        ({"preset": None}, "no_preset"),
        ({"preset": None, "kind": "app"}, "no_preset"),
        ({"kind": "storage"}, "malformed"),
        ({"kind": None}, "malformed"),
        ({"started_at": "yesterday"}, "malformed"),
        ({"started_at": 1763800000}, "malformed"),
        ({"ended_at": "2026-11-22T08:59:59Z"}, "malformed"),
        ({"suspended": [["2026-11-22T09:20:00Z", "2026-11-22T09:10:00Z"]]}, "malformed"),
        ({"suspended": [["2026-11-22T09:20:00Z"]]}, "malformed"),
        ({"suspended": "no"}, "malformed"),
        ({"max_runtime_seconds": 0}, "malformed"),
        ({"max_runtime_seconds": 1.5}, "malformed"),
    ],
)
def test_a_record_that_cannot_be_used_is_left_out_and_counted(changes: dict[str, Any], reason: str) -> None:
    snapshot = read(document({**JOB, **changes}, {**JOB, "id": "job-2"}))

    assert only(snapshot).id == "job-2"
    assert {reason: 1} == snapshot.unbillable


@pytest.mark.parametrize("record", [None, 1, "job", [], {}, [JOB]])
def test_a_record_that_is_no_record_is_left_out_and_counted(record: object) -> None:
    snapshot = read(document(record, JOB, storage=(record, VOLUME)))

    assert [o.id for o in snapshot.workloads] == ["job-1", "vol-1"]
    assert snapshot.unbillable == {"malformed": 2}


@pytest.mark.parametrize("size", [-1, 1.5, True, None, "1", 2**63])
def test_a_volume_without_a_whole_number_of_bytes_is_malformed(size: object) -> None:
    snapshot = read(document(storage=({**VOLUME, "bytes": size}, {**VOLUME, "id": "v", "bytes": 2**63 - 1})))

    assert only(snapshot).bytes == 2**63 - 1
    assert snapshot.unbillable == {"malformed": 1}


@pytest.mark.parametrize(
    ("changes", "complete"),
    [
        ({}, False),
        ({"started_at": "soon"}, False),
        ({"ended_at": "2026-11-22T09:30:00Z"}, True),
        ({"ended_at": "later"}, False),
        ({"started_at": None}, True),
    ],
    ids=["running", "who knows", "ended", "ended, who knows when", "waiting"],
)
def test_the_list_is_complete_unless_a_record_left_out_may_be_running(changes: dict[str, Any], complete: bool) -> None:
    assert complete == read(document({**JOB, "org": None, **changes})).complete


def test_the_document_may_say_that_it_is_not_complete() -> None:
    assert not read(document(JOB, complete=False)).complete


def test_of_equal_identities_the_last_one_counts_also_when_it_was_said_before() -> None:
    first, second = JOB, {**JOB, "user": "bob"}

    snapshot = read(document(first, second, first))

    assert only(snapshot).user == "ann"
    assert snapshot.unbillable == {"duplicate": 2}


def test_another_start_under_the_same_id_is_another_run() -> None:
    again = {**JOB, "started_at": "2026-11-22T09:30:00Z"}

    snapshot = read(document({**JOB, "ended_at": "2026-11-22T09:10:00Z"}, again))

    assert len(snapshot.workloads) == 2
    assert snapshot.unbillable == {}


def test_an_unchanged_record_is_the_same_object_in_the_next_snapshot() -> None:
    cache = Cache()
    before = read(document(JOB, {**JOB, "id": "job-2"}, storage=(VOLUME,)), cache)
    ended = {**JOB, "id": "job-2", "ended_at": "2026-11-22T09:30:00Z"}

    after = read(document(ended, JOB, storage=(VOLUME,)), cache)

    assert [o.id for o in after.workloads] == ["job-2", "job-1", "vol-1"]
    assert before.workloads[0] is after.workloads[1]
    assert before.workloads[2] is after.workloads[2]
    assert after.workloads[0].ended_us == T9 + 30 * MINUTE


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a snapshot"),
        (b"<html>", "not a snapshot"),
        (b"[]", "not a snapshot"),
        (b"null", "not a snapshot"),
        (b"{}", "not a snapshot"),
        (b"[" * 100_000, "not a snapshot"),
        (document(JOB)[:-1], "not a snapshot"),
        (document(JOB) + b"}", "not a snapshot"),
        (document(workloads=None), "not a snapshot"),
        (document(workloads={}), "not a snapshot"),
        (document(taken_at=None), "not a snapshot"),
        (document(complete="yes"), "not a snapshot"),
        (document(cluster="other"), "cluster 'other', the settings say 'default'"),
        (document(taken_at="now"), "taken_at: 'now' is not a time"),
        (document(taken_at="2026-11-22T10:00:00"), "taken_at: .* is not a time with a zone"),
        (b'{"cluster": "default", "taken_at": "2026-11-22T10:00:00Z"}', "neither `workloads` nor"),
    ],
)
def test_a_document_that_says_nothing_to_trust_is_refused_whole(data: bytes, told: str) -> None:
    with pytest.raises(SourceError, match=told) as caught:
        read(data)
    assert str(caught.value).startswith("json-default: ")


def test_a_document_of_volumes_alone_and_a_byte_order_mark_are_fine() -> None:
    data = json.dumps({"cluster": "default", "taken_at": "2026-11-22T10:00:00Z", "storage": [VOLUME]}, indent=1).encode(
        "utf-8-sig"
    )

    assert only(read(data)).id == "vol-1"


def test_text_that_is_not_utf8_spoils_its_own_record_only() -> None:
    data = document({**JOB, "user": "@"}, {**JOB, "id": "job-2", "user": "ünï"}).replace(b"@", b"\xff\xfe")

    snapshot = read(data)

    assert only(snapshot).user == "ünï"
    assert snapshot.unbillable == {"malformed": 1}


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["2026-11-22T09:00:00Z", "2026-11-22T09:30:00+01:00", "job", "app"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*JOB, *VOLUME, "hold_id", "max_runtime_seconds"]), inner, max_size=9)
    ),
    max_leaves=15,
)
records = (
    anything
    | st.fixed_dictionaries({}, optional=dict.fromkeys(JOB, anything))
    | st.builds(lambda changes: {**JOB, **changes}, st.dictionaries(st.sampled_from([*JOB]), anything, max_size=2))
)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_source_error(data: bytes) -> None:
    with pytest.raises(SourceError):
        read(data)


@given(st.lists(records, max_size=5), st.lists(records, max_size=5))
def test_no_record_raises_and_each_is_either_observed_or_counted(
    workloads: list[object], storage: list[object]
) -> None:
    cache = Cache()
    data = document(*workloads, storage=tuple(storage))
    try:
        snapshot = read(data, cache)
    except SourceError:
        # NaN and infinity are not JSON, though Python writes them.
        assert b"NaN" in data or b"Infinity" in data
        return

    assert len(workloads) + len(storage) == len(snapshot.workloads) + sum(snapshot.unbillable.values())
    assert snapshot == read(data, cache)


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp")), min_size=1, max_size=20)
instants = st.integers(0, INSTANT_MAX_US - 1)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    started, ended = draw(st.tuples(instants, instants).map(sorted))
    return Observation(
        draw(names),
        draw(st.sampled_from(["job", "app"])),
        draw(names),
        draw(names | st.just("")),
        draw(names | st.just("")),
        draw(names),
        draw(names | st.just("")),
        draw(st.sampled_from([None, started])),
        draw(st.sampled_from([None, ended])),
        hold_id=draw(st.none() | names),
    )


@given(st.lists(observations(), max_size=6, unique_by=lambda o: (o.id, o.kind, o.started_us)))
def test_what_is_written_by_the_contract_is_read_back_the_same(expected: list[Observation]) -> None:
    snapshot = read(
        document(
            *(
                {
                    "id": o.id,
                    "kind": o.kind,
                    "org": o.org,
                    "project": o.project or None,
                    "user": o.user or None,
                    "preset": o.resource,
                    "app": o.app or None,
                    "started_at": None if o.started_us is None else format_time(o.started_us),
                    "ended_at": None if o.ended_us is None else format_time(o.ended_us),
                    "hold_id": o.hold_id,
                }
                for o in expected
            )
        )
    )

    assert expected == snapshot.workloads
    assert snapshot.unbillable == {}
