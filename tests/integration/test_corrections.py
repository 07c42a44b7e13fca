"""Corrections: they move what they say, once, know what they correct, and leave a ledger whose figures agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.books import Books
from exporter.rounds import Rounds
from ledger.connect import Client, connect
from ledger.corrections import CorrectionReceipt
from ledger.errors import IdempotencyConflict, InvalidRequest
from ledger.model import Kind, Observation, RatePlan, RateTable, Snapshot
from ledger.money import format_micro
from ledger.statement import statement
from ledger.store import Ledger
from ledger.verify import verify
from tests.servers import ServerProcess

T0 = 1_795_000_000_000_000  # 2026-11-18
HOUR = 3_600_000_000
CREDIT = 1_000_000


class Now:
    us = T0

    def __call__(self) -> int:
        return self.us


class NoSource:
    name, cluster = "s", "c"

    async def fetch(self, since_us: int | None) -> Snapshot:
        raise AssertionError

    async def close(self) -> None: ...


async def correct(ledger: Ledger, micro: int, corrects: str = "k", key: str = "c1", **more: Any) -> CorrectionReceipt:
    facts = {"reason": "typo", "who": "test", **more}
    return await ledger.corrections.correct("acme", micro, corrects=corrects, key=key, **facts)


async def give(ledger: Ledger, amount: int, key: str = "k", **more: Any) -> None:
    await ledger.accounts.grant("acme", amount * CREDIT, key=key, who="test", **more)


async def have(ledger: Ledger) -> tuple[str, str]:
    """(available, overdraft)"""
    balance = await ledger.accounts.balance("acme")
    return format_micro(balance.available_micro), format_micro(balance.overdraft_micro)


async def charge(ledger: Ledger, hours: int) -> None:
    """A job `job-1` of 1 credit an hour, that began at T0."""
    await ledger.rates.publish(RatePlan("c", ((0, RateTable({"small": 1_000_000_000})),)))
    job = Observation("job-1", Kind.JOB, "acme", "vision", "ann", "small", "", T0, T0 + hours * HOUR)
    await Rounds(Books(ledger), NoSource(), 0).take(Snapshot("s", "c", T0 + hours * HOUR, [job]), None)


async def agrees(ledger: Ledger) -> None:
    report = await verify(ledger)
    assert report["ok"], report["differences"]


async def test_a_grant_is_corrected_down_from_its_own_credits_first(any_client: Client) -> None:
    now = Now()
    ledger = Ledger(any_client, T0, now)
    await give(ledger, 10)
    await give(ledger, 10, "sooner", expires_us=T0 + 10 * HOUR)
    receipt = await correct(ledger, -4 * CREDIT, address="192.0.2.7")
    assert (receipt.record.credits, receipt.record.what, receipt.record.overdraft) == ("-4", "grant", "0")
    now.us = T0 + 10 * HOUR  # what was to expire is all there is gone: none of it was taken
    assert await have(ledger) == ("6", "0")
    entry = (await ledger.accounts.journal("acme"))[0][-1]
    assert (entry["type"], entry["credits"], entry["corrects"]) == ("correction", "-4", "k")
    assert (entry["who"], entry["from"], entry["reason"]) == ("test", "192.0.2.7", "typo")
    await agrees(ledger)


async def test_down_to_zero_in_all_and_not_below(client: Client) -> None:
    ledger = Ledger(client, T0, Now())
    await give(ledger, 10)
    await give(ledger, 90, "other")
    await correct(ledger, -7 * CREDIT)
    with pytest.raises(InvalidRequest, match="comes to 3 credits"):
        await correct(ledger, -4 * CREDIT, key="c2")
    await correct(ledger, 2 * CREDIT, key="c3")
    await correct(ledger, -5 * CREDIT, key="c4")
    with pytest.raises(InvalidRequest, match="below 0"):
        await correct(ledger, -1, key="c5")
    assert (await have(ledger))[0] == "90"
    await agrees(ledger)


async def test_what_was_used_already_is_an_overdraft_that_the_next_grant_pays(client: Client) -> None:
    now = Now()
    ledger = Ledger(client, T0, now)
    await give(ledger, 10)
    now.us = T0 + 8 * HOUR
    await charge(ledger, 8)
    receipt = await correct(ledger, -10 * CREDIT)
    assert receipt.record.overdraft == "8"
    assert await have(ledger) == ("-8", "8")
    await give(ledger, 20, "next")
    assert await have(ledger) == ("12", "0")
    await agrees(ledger)


async def test_a_workload_and_an_entry_can_be_corrected(client: Client) -> None:
    now = Now()
    ledger = Ledger(client, T0, now)
    await give(ledger, 10)
    now.us = T0 + 8 * HOUR
    await charge(ledger, 8)
    given = await correct(ledger, 8 * CREDIT, "job-1")
    assert (given.record.what, given.record.grant) == ("workload", "correction:c1")
    entry = (await ledger.accounts.journal("acme"))[0][-1]
    assert (entry["workload"], entry["credits"]) == ("job-1", "8")
    taken = await correct(ledger, -8 * CREDIT, entry["id"], "c2")  # the correction was wrong itself
    assert taken.record.what == "entry"
    assert await have(ledger) == ("2", "0")
    granted = next(entry for entry in (await ledger.accounts.journal("acme"))[0] if entry["type"] == "grant")
    with pytest.raises(InvalidRequest, match="grant 'k'"):  # the entry of a grant is the grant
        await correct(ledger, -11 * CREDIT, granted["id"], "c3")
    balance = await ledger.accounts.balance("acme")
    assert balance.granted_by_source == {"provision": 10 * CREDIT, "refund": 8 * CREDIT}
    await agrees(ledger)
    made = await statement(ledger, "acme", "2026-11")
    assert (made.closing_micro, made.sum_of("correction")) == (2 * CREDIT, 0)


@pytest.mark.parametrize(
    "reference", ["", "nothing", "1-1", "99999999999999999999-0", "0-0", "job-*", "k\n", "x" * 9000]
)
async def test_what_is_not_there_cannot_be_corrected(client: Client, reference: str) -> None:
    ledger = Ledger(client, T0, Now())
    await give(ledger, 10)
    with pytest.raises(InvalidRequest, match="corrects"):
        await correct(ledger, CREDIT, reference)
    assert (await have(ledger))[0] == "10"


@pytest.mark.parametrize(
    "wrong", [{"micro": 0}, {"micro": 2**60}, {"reason": " "}, {"reason": "x" * 1001}, {"key": ""}]
)
async def test_what_makes_no_sense_is_refused(client: Client, wrong: dict[str, Any]) -> None:
    ledger = Ledger(client, T0, Now())
    await give(ledger, 10)
    with pytest.raises(InvalidRequest):
        await correct(ledger, **{"micro": CREDIT, **wrong})
    assert len((await ledger.accounts.journal("acme"))[0]) == 1


async def test_a_key_corrects_once(client: Client) -> None:
    ledger = Ledger(client, T0, Now())
    await give(ledger, 10)
    first = await correct(ledger, -CREDIT)
    again = await correct(ledger, -CREDIT)
    assert (first.replayed, again.replayed, again.record) == (False, True, first.record)
    for other in ({"micro": -2 * CREDIT}, {"micro": -CREDIT, "corrects": "x"}, {"micro": -CREDIT, "reason": "other"}):
        with pytest.raises(IdempotencyConflict):
            await correct(ledger, **other)
    assert (await have(ledger))[0] == "9"
    with pytest.raises(InvalidRequest, match="of corrections"):
        await give(ledger, 1, "correction:c1")


async def test_what_a_correction_gives_is_like_the_grant_it_corrects(client: Client) -> None:
    now = Now()
    ledger = Ledger(client, T0, now)
    await give(ledger, 10, expires_us=T0 + HOUR, presets=["large"])
    await correct(ledger, 5 * CREDIT)
    balance = await ledger.accounts.balance("acme")
    assert [(scope.presets, micro) for scope, micro in balance.restricted.items()] == [(("large",), 15 * CREDIT)]
    now.us = T0 + HOUR
    assert await have(ledger) == ("0", "0")
    await correct(ledger, CREDIT, key="late")  # an expiry that is over is none
    assert (await have(ledger))[0] == "1"
    await agrees(ledger)


@pytest.fixture(scope="module")
def quick_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that is never waited for: what it writes is on disk at once."""
    server = ServerProcess(tmp_path_factory.mktemp("quick"), appendfsync="always").start()
    yield server.url
    server.kill9()


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(-6 * CREDIT, 6 * CREDIT).filter(bool), st.sampled_from("abx")), max_size=12))
async def test_all_corrections_add_up_and_no_grant_goes_below_zero(
    quick_url: str, moves: list[tuple[int, str]]
) -> None:
    async with connect(quick_url, None) as client:
        await client.flushall()
        ledger = Ledger(client, T0, Now())
        grants = {"a": 7 * CREDIT, "b": 3 * CREDIT}
        for key, micro in grants.items():
            await ledger.accounts.grant("acme", micro, key=key, who="test")
        expected = sum(grants.values())
        for number, (micro, corrects) in enumerate(moves):
            if corrects in grants and grants[corrects] + micro >= 0:
                await correct(ledger, micro, corrects, str(number))
                grants[corrects] += micro
                expected += micro
            else:
                with pytest.raises(InvalidRequest):
                    await correct(ledger, micro, corrects, str(number))
        assert (await ledger.accounts.balance("acme")).left_micro == expected == sum(grants.values())
        await agrees(ledger)
