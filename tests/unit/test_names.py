"""Which names of a scheduler can become ledger rows and metric labels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.sources.names import BAD_NAME, Unbillable, is_name, optional_name, required_id, required_name


@pytest.mark.parametrize("text", ["a", "gpu-large", "a b", "ünï", "名前", "\U0001f680", "a\u200bb", 'a"b\\', "x" * 253])
def test_what_people_call_things_is_a_name(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize("text", ["", "x" * 254, "a\nb", "\x00", "\x7f", "\x85", "\u2028", "\ud800"])
def test_nothing_too_much_and_control_characters_are_no_names(text: str) -> None:
    assert not is_name(text)


@given(st.text())
def test_every_name_can_be_stored_as_utf8_on_one_line(text: str) -> None:
    if is_name(text):
        assert len(text.encode().decode().splitlines()) == 1


@pytest.mark.parametrize("absent", [None, ""])
def test_an_absent_name_is_empty_where_optional_and_has_its_reason_where_required(absent: str | None) -> None:
    assert optional_name(absent) == ""
    with pytest.raises(Unbillable) as caught:
        required_name(absent, "no_org")
    assert caught.value.reason == "no_org"


def test_a_bad_name_has_its_reason_everywhere() -> None:
    for check in (optional_name, required_id, lambda text: required_name(text, "no_org")):
        with pytest.raises(Unbillable) as caught:
            check("a\tb")
        assert caught.value.reason == BAD_NAME


def test_equal_names_share_their_memory() -> None:
    one, other = "".join(["ac", "me"]), "".join(["acm", "e"])

    assert required_name(one, "no_org") is required_name(other, "no_org")
