"""Prices, sizes, disks and storage out of the Apolo platform's answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from config.preset_sizes import Size
from exporter.sources.apolo_config import rates_of, read_config, sizes_of
from exporter.sources.apolo_disks import Project, read_disks, read_projects
from exporter.sources.base import SourceError
from exporter.sources.storage_usage import read_usage

PRESET = {"name": "gpu", "credits_per_hour": "10.5", "cpu": 7.0, "memory": 48 * 2**30, "nvidia_gpu": {"count": 1}}


def config(**cluster: Any) -> bytes:
    return json.dumps({"authorized": True, "clusters": [{"name": "c1"} | cluster]}).encode()


def test_prices_become_exact_rates():
    found, _ = read_config(
        config(
            resource_presets=[PRESET, {"name": "cpu", "credits_per_hour": "1E-3"}],
            storage_volumes=[{"name": "default", "credits_per_hour_per_gb": "0.000000001"}],
        ),
        "c1",
    )
    rates = rates_of(found)
    assert dict(rates.presets) == {"gpu": 10_500_000_000, "cpu": 1_000_000}
    assert dict(rates.storage) == {"default": 1}


def test_a_price_that_is_a_number_is_read_without_binary_noise():
    found, _ = read_config(config(resource_presets=[{"name": "a", "credits_per_hour": 0.1}]), "c1")
    assert dict(rates_of(found).presets) == {"a": 100_000_000}


def test_the_config_service_puts_presets_and_volumes_elsewhere():
    found, _ = read_config(
        config(
            orchestrator={"resource_presets": [{"name": "a", "credits_per_hour": "2"}]},
            storage={"volumes": [{"name": "v", "credits_per_hour_per_gb": "3"}]},
        ),
        "c1",
    )
    assert dict(rates_of(found).presets) == {"a": 2_000_000_000}
    assert dict(rates_of(found).storage) == {"v": 3_000_000_000}


def test_what_has_no_price_is_unpriced_not_free():
    found, _ = read_config(config(resource_presets=[{"name": "a"}]), "c1")
    assert dict(rates_of(found).presets) == {}


@pytest.mark.parametrize("price", ["-1", "NaN", "0.0000000001", "Infinity", "much"])
def test_an_impossible_price_is_refused_by_name(price: str):
    found, _ = read_config(config(resource_presets=[{"name": "odd", "credits_per_hour": price}]), "c1")
    with pytest.raises(SourceError, match="odd"):
        rates_of(found)


def test_w11_an_odd_preset_leaves_the_sizes_of_the_others():
    found, _ = read_config(config(resource_presets=[PRESET | {"name": "odd", "cpu": "many"}, PRESET]), "c1")
    assert sizes_of(found).choose(None, Size(1000, 1, 1)) == ("gpu", False)


def test_a_cluster_that_the_token_does_not_see_is_named_with_those_it_sees():
    with pytest.raises(SourceError, match=r"no cluster 'c2'.*sees: c1"):
        read_config(config(), "c2")


def test_presets_are_tried_from_the_cheapest_on():
    presets = [PRESET, {"name": "tiny", "credits_per_hour": "1", "cpu": 0.1, "memory_mb": 128}]
    found, _ = read_config(config(resource_presets=presets), "c1")
    assert sizes_of(found).choose(None, Size(100, 1)) == ("tiny", False)
    assert sizes_of(found).choose(None, Size(100, 1, 1)) == ("gpu", False)


def test_w22_disks_are_storage_with_a_user():
    place = {"org_name": "acme", "project_name": "ml"}
    disk = {"id": "disk-1", "storage": 10, "status": "Ready", "owner": "alice"} | place
    found, malformed = read_disks(json.dumps([disk]).encode(), Project("ml", "acme"), "ssd")
    assert malformed == 0
    assert [(d.id, d.kind, d.org, d.project, d.user, d.resource, d.bytes) for d in found] == [
        ("disk-1", "storage", "acme", "ml", "alice", "ssd", 10)
    ]


def test_a_disk_that_waits_is_not_charged_and_an_odd_one_is_counted():
    disks = [{"id": "d1", "storage": 1, "status": "Pending"}, {"id": "d2", "storage": -1}, {"id": "d3", "storage": 3}]
    found, malformed = read_disks(json.dumps(disks).encode(), Project("ml", "acme"), "ssd")
    assert ([d.id for d in found], malformed) == (["d3"], 1)


@pytest.mark.parametrize("body", [b"{}", b"not json", b'{"error": "x"}'])
def test_an_answer_that_is_no_list_is_an_error(body: bytes):
    with pytest.raises(SourceError):
        read_disks(body, Project("ml", "acme"), "ssd")
    with pytest.raises(SourceError):
        read_projects(body)


def usage(*series: tuple[dict[str, str], str]) -> bytes:
    result = [{"metric": metric, "value": [1764000000.5, value]} for metric, value in series]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


def test_w17_storage_of_two_replicas_counts_once():
    place = {"org_name": "acme", "project_name": "ml"}
    view = read_usage(usage((place | {"pod": "a"}, "10"), (place | {"pod": "b"}, "12")), "default")
    assert [(v.org, v.project, v.bytes, v.resource) for v in view.volumes] == [("acme", "ml", 12, "default")]


def test_bytes_in_e_notation_are_exact():
    view = read_usage(usage(({"org_name": "a", "project_name": "p"}, "1.5e+12")), "default")
    assert [v.bytes for v in view.volumes] == [1_500_000_000_000]


def test_a_series_without_an_org_or_a_number_is_counted():
    view = read_usage(
        usage(
            ({"org_name": "no_org", "project_name": "p"}, "1"),
            ({"org_name": "a", "project_name": "p"}, "NaN"),
            ({"org_name": "b", "project_name": "p"}, "1"),
        ),
        "default",
    )
    assert [v.org for v in view.volumes] == ["b"]
    assert view.unbillable == {"no_org": 1, "malformed": 1}
    assert not view.complete


def test_w16_names_never_reach_the_query():
    from exporter.sources.storage_usage import QUERY

    assert "{" not in QUERY


@pytest.mark.parametrize("body", [b"[]", b'{"status":"error","error":"no"}', b"<html>"])
def test_prometheus_refusing_is_an_error(body: bytes):
    with pytest.raises(SourceError):
        read_usage(body, "default")
