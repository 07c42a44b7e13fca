"""One time limit for many answers: what takes too long ends with TimeoutError, what came before stays as it is."""

from __future__ import annotations

import asyncio

import pytest

from enforcer.deadlines import Deadlines


def answer_in(seconds: float) -> asyncio.Future[str]:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    loop.call_later(seconds, lambda: answer.done() or answer.set_result("done"))
    return answer


async def test_what_takes_too_long_is_ended_and_the_rest_is_not() -> None:
    deadlines, loop = Deadlines(0.1), asyncio.get_running_loop()
    answers = [answer_in(seconds) for seconds in (0.0, 5.0, 0.01, 5.0)]
    start = loop.time()
    for answer in answers:
        deadlines.watch(answer, start)
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert [result if isinstance(result, str) else type(result) for result in results] == [
        "done", TimeoutError, "done", TimeoutError,
    ]  # fmt: skip
    assert 0.1 <= loop.time() - start < 5


async def test_its_time_is_counted_from_when_it_began() -> None:
    deadlines, loop = Deadlines(5), asyncio.get_running_loop()
    answer = answer_in(60)
    start = loop.time()
    deadlines.watch(answer, start - 4.9)
    with pytest.raises(TimeoutError):
        await answer
    assert loop.time() - start < 4


async def test_it_can_be_used_again_after_it_was_idle() -> None:
    deadlines, loop = Deadlines(0.02), asyncio.get_running_loop()
    for _ in range(2):
        late, early = answer_in(5), answer_in(0)
        for answer in (late, early):
            deadlines.watch(answer, loop.time())
        with pytest.raises(TimeoutError):
            await late
        assert await early == "done"
        await asyncio.sleep(0.05)


async def test_what_was_given_up_is_left_alone() -> None:
    deadlines, loop = Deadlines(0.02), asyncio.get_running_loop()
    given_up, late = answer_in(5), answer_in(5)
    for answer in (given_up, late):
        deadlines.watch(answer, loop.time())
    given_up.cancel()
    with pytest.raises(TimeoutError):
        await late
    assert given_up.cancelled()
