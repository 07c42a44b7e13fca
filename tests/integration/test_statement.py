"""Statements: every month adds up, and the last one's closing balance is the balance."""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.clock import parse_time
from ledger.errors import InvalidRequest, UnknownOrg
from ledger.statement import statement
from ledger.statement_html import statement_html
from tests.histories import HOUR
from tests.usage_lab import UsageLab, job, usage_lab

pytestmark = pytest.mark.redis
START = parse_time("2026-09-10T07:00:00Z")
DAY = 24 * HOUR
MONTHS = ("2026-08", "2026-09", "2026-10", "2026-11", "2026-12")
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/St_Johns"])
times = st.integers(0, 60 * 24 * 4).map(lambda n: START + n * HOUR // 4)


async def _grant(lab: UsageLab, data: st.DataObject, number: int) -> None:
    expires = data.draw(st.one_of(st.none(), times))
    effective = data.draw(st.one_of(st.none(), times))
    if expires is not None and expires <= max(lab.clock[0], effective or 0):
        expires = None
    await lab.ledger.accounts.grant(
        "acme", data.draw(st.integers(1, 10**10)), key=f"g{number}", who="test",
        source=data.draw(st.sampled_from(["provision", "purchase", "refund"])),
        effective_us=effective, expires_us=expires,
    )  # fmt: skip


@given(data=st.data())
async def test_statements_add_up_and_end_with_the_balance(data: st.DataObject, valkey_url: str) -> None:
    async with usage_lab(valkey_url, epoch=START) as lab:
        await lab.ledger.accounts.upsert("acme", who="test")
        work: list[Any] = []
        for number, at in enumerate(sorted(data.draw(st.lists(times, min_size=1, max_size=6, unique=True), "steps"))):
            lab.clock[0] = max(lab.clock[0], at)
            if data.draw(st.booleans()):
                await _grant(lab, data, number)
            if data.draw(st.booleans()):
                start = min(at, data.draw(times))
                project = data.draw(st.sampled_from(["vision", "nlp"]))
                work.append(
                    job(
                        f"j{number}",
                        start,
                        project=project,
                        preset=data.draw(st.sampled_from(["cpu-small", "gpu-large"])),
                    )
                )
            if work and data.draw(st.booleans()):  # it ended earlier than was thought: a correction
                last = work[-1]
                work[-1] = job(
                    last.id, last.started_us, last.started_us + HOUR, project=last.project, preset=last.resource
                )
            await lab.take(at, work)
        zone = data.draw(ZONES)
        found = [await statement(lab.ledger, "acme", month, zone) for month in MONTHS]
        for one in found:
            shape = {name: Decimal(value) for name, value in one.shape().items() if name in (
                "opening", "granted", "corrections", "transferred", "expired", "charged", "closing")}  # fmt: skip
            came = shape["granted"] + shape["corrections"] + shape["transferred"]
            assert shape["closing"] == shape["opening"] + came - shape["expired"] - shape["charged"]
            *lines, last = csv.DictReader(io.StringIO("".join(one.csv())))
            assert sum(Decimal(line["credits"]) for line in lines) == Decimal(last["credits"]) == shape["closing"]
        assert all(a.closing_micro == b.opening_micro and a.to_us == b.from_us for a, b in pairwise(found))
        balance = await lab.ledger.accounts.balance("acme")
        assert found[0].opening_micro == 0
        assert found[-1].closing_micro == balance.left_micro


async def test_what_is_taken_of_a_grant_that_has_not_begun_is_missing_from_its_beginning_on(valkey_url: str) -> None:
    async with usage_lab(valkey_url, epoch=START) as lab:
        ledger = lab.ledger
        await ledger.accounts.grant("acme", 100_000_000, key="a", who="test", effective_us=START + 30 * DAY)
        await ledger.accounts.grant("acme", 10_000_000, key="b", who="test")
        await ledger.corrections.correct("acme", -60_000_000, corrects="a", key="c", reason="too much", who="test")
        for days, expected in ((1, 10_000_000), (31, 50_000_000)):
            lab.clock[0] = START + days * DAY
            assert (await ledger.accounts.balance("acme")).left_micro == expected
            assert (await statement(ledger, "acme", "2026-10")).closing_micro == expected
        september, october = [(await statement(ledger, "acme", month)).shape() for month in MONTHS[1:3]]
        assert (september["corrections"], september["closing"]) == ("0", "10")
        assert (october["granted"], october["corrections"], october["closing"]) == ("100", "-60", "50")


async def test_what_is_taken_of_a_grant_that_is_over_leaves_the_months_since_as_they_were(valkey_url: str) -> None:
    async with usage_lab(valkey_url, epoch=START) as lab:
        ledger = lab.ledger
        await ledger.accounts.grant("acme", 100_000_000, key="a", who="test", expires_us=START + DAY)
        lab.clock[0] = START + 40 * DAY
        before = [(await statement(ledger, "acme", month)).closing_micro for month in MONTHS]
        await ledger.corrections.correct("acme", -60_000_000, corrects="a", key="c", reason="too much", who="test")
        found = [await statement(ledger, "acme", month) for month in MONTHS]
        assert [one.closing_micro for one in found] == before == [0] * len(MONTHS)
        shape = found[1].shape()
        assert (shape["granted"], shape["corrections"], shape["expired"]) == ("100", "-60", "40")


async def test_a_statement_says_where_the_credits_went(valkey_url: str) -> None:
    async with usage_lab(valkey_url, epoch=START) as lab:
        grant = lab.ledger.accounts.grant
        await grant("acme", 100_000_000, key="a", who="test", reason="pilot", expires_us=START + DAY)
        await grant("acme", 500_000_000, key="b", who="test", source="purchase", effective_us=START)
        await lab.take(
            START + 2 * HOUR,
            [
                job("j", START, START + 2 * HOUR),
                job("k", START, START + HOUR, project="nlp", preset="cpu-small", app="vllm"),
            ],
        )
        await lab.take(START + 2 * DAY, [])
        shape = (await statement(lab.ledger, "acme", "2026-09", "Europe/Berlin")).shape()
        assert shape == {
            "org": "acme",
            "month": "2026-09",
            "timezone": "Europe/Berlin",
            "from": "2026-08-31T22:00:00Z",
            "to": "2026-09-30T22:00:00Z",
            "opening": "0",
            "granted": "600",
            "corrections": "0",
            "transferred": "0",
            "expired": "15.5",
            "charged": "84.5",
            "closing": "500",
            "entries": [
                {
                    "type": "grant",
                    "at": "2026-09-10T07:00:00Z",
                    "credits": "100",
                    "source": "provision",
                    "reason": "pilot",
                },
                {"type": "grant", "at": "2026-09-10T07:00:00Z", "credits": "500", "source": "purchase", "reason": None},
                {
                    "type": "expired",
                    "at": "2026-09-11T07:00:00Z",
                    "credits": "15.5",
                    "source": "provision",
                    "reason": "pilot",
                },
            ],
            "charges": [
                {
                    "project": "nlp",
                    "kind": "app",
                    "resource": "cpu-small",
                    "app": "vllm",
                    "credits": "3.5",
                    "hours": "1",
                },
                {
                    "project": "vision",
                    "kind": "job",
                    "resource": "gpu-large",
                    "app": None,
                    "credits": "81",
                    "hours": "2",
                },
            ],
            "charged_until": "2026-09-12T07:00:00Z",
        }


async def test_a_statement_to_print_shows_names_as_text(valkey_url: str) -> None:
    async with usage_lab(valkey_url, epoch=START) as lab:
        org, project = "<b>acme</b>", "<script>alert(1)</script>"
        await lab.ledger.accounts.grant(org, 1234_500_000, key="a", who="test", reason='"quoted" & <i>sharp</i>')
        await lab.take(START + 2 * HOUR, [job("j", START, org=org, project=project)])
        page = statement_html(await statement(lab.ledger, org, "2026-09"))
        assert not any(tag in page for tag in ("<b>", "<script", "<i>"))
        assert "&lt;b&gt;acme&lt;/b&gt;" in page
        assert "1,234.50" in page
        assert "−81.00" in page
        assert "1,153.50" in page


@pytest.mark.parametrize("month", ["2026-13", "26-01", "2026-1", "", "2026-01-01", "0001-01", "9999-12"])
async def test_what_is_no_month_is_refused(valkey_url: str, month: str) -> None:
    async with usage_lab(valkey_url) as lab:
        with pytest.raises(InvalidRequest, match="month"):
            await statement(lab.ledger, "acme", month)
        with pytest.raises(UnknownOrg):
            await statement(lab.ledger, "acme", "2026-11")
