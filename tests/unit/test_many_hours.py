"""Many full hours that are charged at once come to what they come to one by one, hour by hour."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import example, given
from hypothesis import strategies as st

from exporter.matching import OrgWork
from exporter.meter import Meter
from exporter.slots import slots
from ledger.budgets import Budget
from ledger.model import Interval, Observation, Snapshot
from ledger.money import COST_DENOMINATOR, HOUR_US
from ledger.org_state import OrgState
from ledger.plan import Plan, Slot
from ledger.rates_history import RateLine
from ledger.runs import cumulative

T0 = 1_760_000_400_000_000
DAY = 24 * HOUR_US
instants = st.one_of(
    st.integers(0, 6 * DAY), st.integers(0, 144).map(lambda hour: hour * HOUR_US), st.integers(0, 5).map(DAY.__mul__)
).map(T0.__add__)
nanos = st.one_of(
    st.none(), st.just(0), st.integers(0, 10**12), *(st.integers(0, 10**6).map(step.__mul__) for step in (250, 1000))
)
spans = st.lists(instants, max_size=6, unique=True).map(sorted)


def _suspended(cuts: list[int], is_open: bool) -> tuple[Interval, ...]:
    found: list[Interval] = list(zip(cuts[::2], cuts[1::2], strict=False))
    return (*found, (cuts[-1], None)) if is_open and len(cuts) % 2 else tuple(found)


def _one_by_one(
    state: OrgState,
    started: int,
    since: int,
    until: int,
    ended: int | None,
    suspended: tuple[Interval, ...],
    line: RateLine,
) -> Iterator[tuple[Slot, tuple[int, int]]]:
    """(micro-credits, microseconds) of each slot, by two floors for each."""
    points = ((started, 0, 0, 10**9),)
    for slot in slots(since, until, state.budgets, state.grant_edges):
        (cost, us), (later, us_later) = (cumulative(points, ended, suspended, line, at) for at in slot)
        micro = later // COST_DENOMINATOR - cost // COST_DENOMINATOR
        if micro or us_later - us:
            yield slot, (micro, us_later - us)


def _of(plan: Plan) -> dict[Slot, tuple[int, int]]:
    return {
        slot: (sum(a.micro for a in rows.values()), sum(a.us for a in rows.values()))
        for slot, rows in plan.tally().items()
    }


# It goes on, at a rate that is no whole number of micro-credits, over days that begin between full hours.
@example(
    started=[T0 + 1, T0 + 2], first_round=T0 + HOUR_US // 2 + 1, ended=None, cuts=[], is_open=False, changes=[],
    first=1_234_567_891, edges=[], period="day", zone="Asia/Kolkata",
)  # fmt: skip
@given(
    started=st.lists(instants, min_size=1, max_size=4),
    first_round=instants,
    ended=st.one_of(st.none(), instants),
    cuts=spans,
    is_open=st.booleans(),
    changes=st.lists(st.tuples(instants, nanos), max_size=3),
    first=nanos,
    edges=spans,
    period=st.sampled_from(["day", "week", "month", "total"]),
    zone=st.sampled_from(["UTC", "Asia/Kolkata", "Asia/Kathmandu", "Europe/Berlin"]),
)
def test_a_run_of_many_hours_is_charged_by_the_hour_as_if_each_was_cut_out(
    started: list[int],
    first_round: int,
    ended: int | None,
    cuts: list[int],
    is_open: bool,
    changes: list[tuple[int, int | None]],
    first: int | None,
    edges: list[int],
    period: str,
    zone: str,
) -> None:
    line = RateLine([(0, first), *sorted(dict(changes).items())])
    suspended = _suspended(cuts, is_open)
    state = OrgState("acme", budgets=(Budget("b", "p", None, 10**9, period, zone),), grant_edges=tuple(edges))
    listed = [
        Observation(f"j{number}", "job", "acme", "p", "u", "r", "", since, ended, suspended)
        for number, since in enumerate(started)
        if ended is None or ended > since
    ]
    meter = Meter("s", "default", 0, 0)
    since = 0
    for until in (first_round, T0 + 6 * DAY):
        snapshot = Snapshot("s", "default", until, [run for run in listed if (run.started_us or 0) < until])
        work = meter.matcher.sort(snapshot, {"acme": state}).get("acme", OrgWork())
        plan = meter.plan(state, work, snapshot, lambda *_: line)
        expected: dict[Slot, tuple[int, int]] = {}
        for run in listed:
            origin = run.started_us or 0
            for slot, (micro, us) in _one_by_one(state, origin, max(origin, since), until, ended, suspended, line):
                before = expected.get(slot, (0, 0))
                expected[slot] = before[0] + micro, before[1] + us
        assert _of(plan) == expected
        since = state.marks["s"] = until
