"""When accounting is asked, and from when on."""

from __future__ import annotations

from exporter.sources.slurm_accounting import (
    AWAITED_US,
    FORGOTTEN_US,
    OVERLAP_US,
    ROUTINE_US,
    SETTLE_US,
    AccountingWatch,
)
from exporter.sources.slurm_run import JobRun, Phase

SECOND = 1_000_000
HOUR = 3600 * SECOND
T0 = 1_800_000_000 * SECOND
AGE = 300 * SECOND
ROUND = 15 * SECOND


def run(job_id: int, phase: Phase = Phase.RUNNING, start: int = 100, restarts: int = 0) -> JobRun:
    known = None if phase is Phase.PENDING else start
    return JobRun(job_id, phase, "ann", "vision", "cpu", "", start=known, restarts=restarts)


def calm() -> tuple[AccountingWatch, int]:
    """A watch that has asked at its start and settled, with job 1 running; and the instant of its last round."""
    watch = AccountingWatch(24 * HOUR)
    now = T0
    while watch.look(now, now, [run(1)], AGE) is not None:
        watch.answered(now, [])
        now += ROUND
    return watch, now


def test_a_new_watch_asks_back_from_where_charging_stopped() -> None:
    assert AccountingWatch(24 * HOUR).look(T0, T0 - 3 * HOUR, [], AGE) == T0 - 27 * HOUR
    assert AccountingWatch(24 * HOUR).look(T0, None, [], AGE) == T0 - 24 * HOUR


def test_it_asks_as_far_back_until_it_is_answered() -> None:
    watch = AccountingWatch(24 * HOUR)
    watch.look(T0, T0, [], AGE)
    assert watch.look(T0 + HOUR, T0 + HOUR, [], AGE) == T0 + HOUR - 24 * HOUR


def test_while_nothing_happens_it_asks_now_and_then_with_an_overlap() -> None:
    watch, now = calm()
    asked = now - ROUND
    assert now - T0 > SETTLE_US
    while (since := watch.look(now, now, [run(1)], AGE)) is None:
        now += ROUND
    assert asked - ROUND + ROUTINE_US <= now
    assert since <= asked - OVERLAP_US


def test_a_run_that_vanished_is_asked_for_until_its_end_is_known() -> None:
    watch, now = calm()
    for _ in range(10):
        assert watch.look(now, now, [], AGE) is not None
        assert not watch.whole(now)
        watch.answered(now, [])
        now += ROUND
    watch.look(now, now, [], AGE)
    watch.answered(now, [(1, 100)])
    assert watch.whole(now)


def test_a_run_that_vanished_and_is_never_recorded_is_waited_for_ten_minutes_and_asked_for_a_week() -> None:
    watch, now = calm()
    watch.look(now, now, [], AGE)
    watch.answered(now, [])
    now += AWAITED_US + SECOND
    assert watch.whole(now)
    now += 3 * 24 * HOUR
    since = watch.look(now, now, [], AGE)
    watch.answered(now, [])
    assert since is not None
    assert since <= now - 3 * 24 * HOUR
    now += FORGOTTEN_US
    watch.look(now, now, [], AGE)
    watch.answered(now, [])
    now += SETTLE_US + ROUTINE_US
    since = watch.look(now, now, [], AGE)
    assert since is not None
    assert since > now - FORGOTTEN_US


def test_a_run_seen_to_end_needs_no_accounting() -> None:
    watch, now = calm()
    assert watch.look(now, now, [run(1, Phase.ENDED)], AGE) is None
    assert watch.look(now + ROUND, now + ROUND, [], AGE) is None
    assert watch.whole(now + ROUND)


def test_a_requeue_is_noticed_though_nobody_saw_the_run() -> None:
    watch, now = calm()
    assert watch.look(now, now, [run(1), run(2, Phase.PENDING)], AGE) is None
    now += ROUND
    assert watch.look(now, now, [run(1), run(2, Phase.PENDING, restarts=1)], AGE) is not None


def test_a_job_that_runs_again_under_its_id_is_another_run() -> None:
    watch, now = calm()
    assert watch.look(now, now, [run(1, start=200)], AGE) is not None
    assert not watch.whole(now)


def test_rounds_too_far_apart_to_see_every_end_always_ask() -> None:
    watch = AccountingWatch(24 * HOUR)
    for index in range(40):
        now = T0 + index * ROUND
        assert watch.look(now, now, [run(1)], 2 * SECOND) is not None
        watch.answered(now, [])


def test_a_ledger_that_went_back_is_answered_from_where_it_stands() -> None:
    watch, now = calm()
    since = watch.look(now + ROUTINE_US, now - 5 * HOUR, [run(1)], AGE)
    assert since == now - 5 * HOUR - OVERLAP_US
