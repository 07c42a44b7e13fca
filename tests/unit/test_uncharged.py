"""Who is on call is told which records could not be charged, whatever they contain."""

from __future__ import annotations

import json
from typing import Any

from exporter.sources.json_document import parse
from exporter.sources.uncharged import EXAMPLES_MAX, Uncharged


def _document(*ids: Any) -> bytes:
    workloads = [{"id": i, "kind": "job", "org": "", "started_at": "2026-11-22T09:00:00Z"} for i in ids]
    return json.dumps({"cluster": "c", "taken_at": "2026-11-22T10:00:00Z", "workloads": workloads}).encode()


def test_some_ids_of_each_reason_are_named() -> None:
    found = parse(_document("a", "b", "c", "d", "e"), "json-c", "c")
    (reason,) = found.unbillable
    assert found.unbillable[reason] == 5
    assert found.examples == {reason: ["a", "b", "c"]}
    assert EXAMPLES_MAX == 3


def test_an_id_cannot_forge_a_line_of_the_log() -> None:
    found = parse(_document("x\nERROR all is lost", {"odd": 1}), "json-c", "c")
    assert [text for texts in found.examples.values() for text in texts] == ["'x\\nERROR all is lost'", "{'odd': 1}"]


def test_parts_of_a_source_are_joined() -> None:
    pods, claims = Uncharged(), Uncharged()
    for number in range(2):
        pods.add("no_org", f"ml/pod-{number}")
        claims.add("no_org", f"ml/disk-{number}")
    claims.add("malformed")
    pods.join(claims, claims.examples)
    assert pods == {"no_org": 4, "malformed": 1}
    assert pods.examples == {"no_org": ["ml/pod-0", "ml/pod-1", "ml/disk-0"]}
