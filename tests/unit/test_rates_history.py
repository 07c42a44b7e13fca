"""What was in force when, as files of rates come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ledger.model import RatePlan, RateTable
from ledger.rates_history import decode_plan, encode_plan, first_difference, splice

A, B, C, D = (RateTable({"p": n, "q": 10 * n}) for n in (1, 2, 3, 4))


def plan(*steps: tuple[int, RateTable]) -> RatePlan:
    return RatePlan("default", steps)


def test_an_edit_is_in_force_from_now_on() -> None:
    assert plan((0, A), (60, B)) == splice(plan((0, A)), plan((0, B)), 10, 60)


def test_charged_time_keeps_its_rates_also_ahead_of_the_clock() -> None:
    assert plan((0, A), (90, B)) == splice(plan((0, A)), plan((0, B)), 90, 60)


def test_a_dated_rate_that_is_read_after_its_date_counts_from_its_date_where_nothing_is_charged() -> None:
    assert plan((0, A), (30, B)) == splice(plan((0, A)), plan((0, A), (30, B)), 10, 60)


def test_a_dated_rate_never_reaches_into_charged_time() -> None:
    assert plan((0, A), (60, B)) == splice(plan((0, A)), plan((0, A), (30, B)), 40, 60)


def test_an_edit_beside_a_dated_rate_is_in_force_from_now_on_only() -> None:
    edited = RateTable({"p": 7, "q": 10})  # p was edited, q is dated
    dated = RateTable({"p": 7, "q": 99})
    known = plan((0, A))
    merged = splice(known, plan((0, edited), (30, dated)), 10, 60)
    assert plan((0, A), (30, RateTable({"p": 1, "q": 99})), (60, dated)) == merged


def test_the_same_file_changes_nothing() -> None:
    known = plan((0, A), (30, B), (100, C))
    assert known == splice(known, plan((0, A), (30, B), (100, C)), 50, 60)
    assert first_difference(known, known) is None


tables = st.sampled_from([A, B, C, D])
plans = st.builds(
    lambda first, more: plan((0, first), *sorted(more.items())),
    tables,
    st.dictionaries(st.integers(1, 200), tables, max_size=4),
)


@given(history=plans, new=plans, charged=st.integers(0, 150), now=st.integers(0, 150), at=st.integers(0, 250))
def test_nothing_that_is_charged_changes_and_everything_from_now_on_is_as_the_file_says(
    history: RatePlan, new: RatePlan, charged: int, now: int, at: int
) -> None:
    merged = splice(history, new, charged, now)
    if at < charged:
        assert merged.at(at) == history.at(at)
    if at >= max(now, charged):
        assert merged.at(at) == new.at(at)
    difference = first_difference(history, merged)
    assert difference is None or difference >= charged
    assert merged == splice(merged, new, charged, now)
    assert merged == decode_plan("default", encode_plan(merged))
