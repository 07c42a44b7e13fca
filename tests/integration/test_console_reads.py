"""What the console reads beside the API: running work with its cost, and the journal backwards."""

from __future__ import annotations

from typing import Any

import pytest

from ledger.journal import JournalFilter, journal_page
from ledger.model import RateTable
from ledger.money import HOUR_US, format_micro
from ledger.refusals import REFUSAL, Refused
from ledger.running import running_page
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from tests.histories import T0
from tests.usage_lab import RATES, UsageLab, job, usage_lab, volume

pytestmark = pytest.mark.redis


@pytest.fixture
async def lab(valkey_url: str) -> Any:
    async with usage_lab(valkey_url) as lab:
        await lab.ledger.accounts.grant("acme", 1_000_000_000, key="g", who="test", effective_us=T0)
        yield lab


async def test_running_work_costs_what_usage_says_of_it_over_all_its_legs(lab: UsageLab) -> None:
    hour = T0 + HOUR_US
    start = T0 + HOUR_US // 7
    await lab.take(hour, [job("moves", start), job("done", start, hour), volume("data", 3 * 10**12)])
    # Another preset is another leg; its sum goes on.
    moved = job("moves", start, preset="cpu-small")
    stopped = job("stopped", hour, suspended=((hour + HOUR_US // 2, None),))
    at = hour + HOUR_US * 3 // 4
    await lab.take(at, [moved, stopped, volume("data", 3 * 10**12), job("free", hour, preset="free")])
    page = await running_page(lab.ledger, "acme", 0, 10)
    assert [one.id for one in page.items] == ["moves", "stopped", "data", "free"]
    report = await usage(lab.ledger, UsageQuery(from_us=T0, to_us=at, org="acme", group_by=("workload",)))
    costs = {row.names["workload"]: row.micro for row in report.rows}
    assert {one.id: one.micro for one in page.items} == {name: costs.get(name, 0) for name in
                                                          ("moves", "stopped", "data", "free")}  # fmt: skip
    rates = {one.id: one.nano for one in page.items}
    assert rates == {"moves": RATES.presets["cpu-small"], "stopped": 0, "data": 300_000_000, "free": 0}
    assert [one.id for one in page.items if one.is_suspended] == ["stopped"]
    assert page.nano == sum(rates.values())
    balance = await lab.ledger.accounts.balance("acme")
    assert format_micro(balance.burn_micro) == "1.3"


async def test_a_scheduled_rate_counts_from_its_time_on(lab: UsageLab) -> None:
    await lab.take(T0 + HOUR_US, [job("long", T0)])
    later = RateTable(presets={**RATES.presets, "gpu-large": 81_000_000_000}, storage=RATES.storage)
    await lab.publish(T0 + 2 * HOUR_US, later)
    await lab.take(T0 + 3 * HOUR_US, [job("long", T0)])
    page = await running_page(lab.ledger, "acme", 0, 10)
    report = await usage(lab.ledger, UsageQuery(from_us=T0, to_us=T0 + 4 * HOUR_US, org="acme"))
    assert [one.micro for one in page.items] == [report.total_micro]


async def test_pages_of_running_work_have_each_workload_once(lab: UsageLab) -> None:
    await lab.take(T0 + HOUR_US, [job(f"j{n:02d}", T0 + n * HOUR_US // 40) for n in range(30)])
    found = [one.id for start in (0, 10, 20, 30) for one in (await running_page(lab.ledger, "acme", start, 10)).items]
    assert found == [f"j{n:02d}" for n in range(30)]
    assert (await running_page(lab.ledger, "acme", 10, 10)).count == 30


async def test_the_journal_backwards_is_the_journal_turned_around(lab: UsageLab) -> None:
    for number in range(7):
        await lab.ledger.budgets.put("acme", "p", None, number, who="test")
        refusal = {"type": REFUSAL, "at": "2026-11-01T00:00:00Z", "number": number}
        await lab.ledger.refusals.add([Refused("acme", refusal)])
    forwards, _ = await journal_page(lab.ledger, "acme", None, 100)
    backwards: list[Any] = []
    cursor, pages = None, 0
    while cursor is not None or pages == 0:
        entries, cursor = await journal_page(lab.ledger, "acme", cursor, 4, JournalFilter(newest_first=True))
        backwards += entries
        pages += 1
    assert pages == 4
    assert backwards == forwards[::-1]
    refused = JournalFilter(newest_first=True, parts=("refusals",))
    refusals, after = await journal_page(lab.ledger, "acme", None, 3, refused)
    assert [entry["number"] for entry in refusals] == [6, 5, 4]
    assert after is not None
    refusals, after = await journal_page(lab.ledger, "acme", after, 10, refused)
    assert ([entry["number"] for entry in refusals], after) == ([3, 2, 1, 0], None)
    changes, after = await journal_page(lab.ledger, "acme", None, 50, JournalFilter(parts=("changes",)))
    assert ({entry["type"] for entry in changes}, after) == ({"grant", "budget"}, None)
