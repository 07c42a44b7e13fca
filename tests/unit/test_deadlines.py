"""One time limit for many: what takes too long ends with TimeoutError, a real cancellation stays one."""

from __future__ import annotations

import asyncio

import pytest

from enforcer.deadlines import Deadlines


async def after(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def test_what_takes_too_long_is_ended_and_the_rest_is_not() -> None:
    deadlines = Deadlines(0.1)
    results = await asyncio.gather(
        *(deadlines.within(after(seconds)) for seconds in (0.0, 5.0, 0.01, 5.0)), return_exceptions=True
    )
    assert [result if isinstance(result, str) else type(result) for result in results] == [
        "done", TimeoutError, "done", TimeoutError,
    ]  # fmt: skip


async def test_it_can_be_used_again_after_it_was_idle() -> None:
    deadlines = Deadlines(0.02)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await deadlines.within(after(5))
        assert await deadlines.within(after(0)) == "done"
        await asyncio.sleep(0.05)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_cancellation_from_outside_stays_one() -> None:
    deadlines = Deadlines(5)
    task = asyncio.create_task(deadlines.within(after(5)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_work_is_passed_on() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await Deadlines(1).within(fail())
