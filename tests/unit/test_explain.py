"""What is said of a body that cannot be taken."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from api.explain import explain
from api.types import said


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    presets: list[str] = []
    clusters: list[str] = []


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    credits: str
    source: str = msgspec.field(name="from", default="")
    only: Inner | None = None
    many: Annotated[list[Inner], said(maxItems=3)] = []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"credit": "1"}', "'credit' is not a field of this; did you mean 'credits'?"),
        ('{"zzz": "1"}', "'zzz' is not a field of this; known are credits, from, only, many"),
        ('{"credits": "1", "only": {"preset": []}}', "'preset' is not a field of only; did you mean 'presets'?"),
        ('{"credits": "1", "many": [{}, {"zzz": 1}]}', "'zzz' is not a field of many[1]; known are presets, clusters"),
        ('{"credits": 1}', "credits: expected a text, not a whole number"),
        ('{"credits": "1", "only": {"presets": [1]}}', "only.presets[0]: expected a text, not a whole number"),
        ('{"credits": "1", "only": 5}', "only: expected an object or null, not a whole number"),
        ("{}", "credits: is needed"),
        ("[]", "the body: expected an object, not a list"),
    ],
)
def test_the_field_and_what_would_be_right(body: str, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(body, type=Outer)
    assert explain(str(caught.value), Outer) == words


def test_a_field_whose_name_is_very_long_is_cut() -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode('{"' + "x" * 5000 + '": 1}', type=Outer)
    assert len(explain(str(caught.value), Outer)) < 200
