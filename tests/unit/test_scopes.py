"""What is left for a class of work while all others get what they can, against a flow that is searched for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import scopes
from ledger.errors import InvalidRequest
from ledger.money import HOUR_US
from ledger.scopes import Scope, class_field, classes_in, is_class, make_scope, preset_of
from tests.flow import Work, max_flow

works = st.tuples(st.sampled_from(["one", "two"]), st.sampled_from(["small", "large", ""]))
restrictions = st.builds(
    lambda presets, clusters: Scope(tuple(sorted(presets)), tuple(sorted(clusters))),
    st.frozensets(st.sampled_from(["small", "large"])), st.frozensets(st.sampled_from(["one", "two"])),
).filter(any)  # fmt: skip


@given(
    st.integers(0, 30), st.dictionaries(restrictions, st.integers(0, 30), max_size=6), works,
    st.dictionaries(works, st.integers(0, 30)),
)  # fmt: skip
def test_what_is_left_is_the_difference_of_two_maximum_flows(
    free: int, by_scope: dict[Scope, int], mine: Work, others: dict[Work, int]
) -> None:
    supplies = [(None, free), *by_scope.items()]
    demands = [(work, amount, work) for work, amount in others.items() if work != mine]
    expected = max_flow(supplies, [*demands, (mine, 10**6, mine)]) - max_flow(supplies, demands)
    assert scopes.Supply(free, by_scope).left_for(*mine, others) == expected


@given(
    st.integers(0, 30), st.dictionaries(restrictions, st.integers(0, 30), max_size=6),
    st.dictionaries(works, st.integers(1, 30), min_size=1), st.integers(1, 30),
)  # fmt: skip
def test_work_lasts_until_it_asks_for_more_than_flows(
    free: int, by_scope: dict[Scope, int], aside: dict[Work, int], burn: int
) -> None:
    lasts = scopes.Supply(free, by_scope).lasts_us(burn, aside)
    whole = HOUR_US * sum(aside.values())
    supplies = [(scope, micro * whole) for scope, micro in ((None, free), *by_scope.items())]
    for us, is_paid in ((lasts, True), (lasts + 1, False)):
        demands = [(work, burn * micro * us, work) for work, micro in aside.items()]
        assert (max_flow(supplies, demands) == sum(micro for _, micro, _ in demands)) is is_paid


def test_what_is_owed_is_not_there_for_any_work() -> None:
    assert scopes.Supply(-5, {Scope(("small",)): 3}).left_for("one", "large", {}) == 0
    assert scopes.Supply(-5, {Scope(("small",)): 3}).left_for("one", "small", {}) == 3


def test_classes_are_told_from_other_sums() -> None:
    field = class_field("one", "small")
    assert classes_in({field: 3, "": 4, "p\x1fc": 5, "u\x1fone\x1fsmall": 6}) == {("one", "small"): 3}
    assert is_class(field)
    assert not is_class("c\x1fann\x1fu\x1fmonth")  # a budget of a project named c


def test_storage_and_apps_by_themselves_have_no_preset() -> None:
    assert preset_of("job", "small", "") == preset_of("app", "small", "vllm") == "small"
    assert preset_of("app", "vllm", "vllm") == preset_of("storage", "ssd", "") == ""


def test_a_scope_is_the_same_in_any_order_and_bounded() -> None:
    one = make_scope(["b", "a", "b"], ["|", "\u00e9"])
    assert one == make_scope(["a", "b"], ["\u00e9", "|"])
    assert one is not None
    assert Scope.decode(one.encode()) == one
    assert make_scope([], []) is None
    with pytest.raises(InvalidRequest, match="at most 50"):
        make_scope([], [str(n) for n in range(51)])
