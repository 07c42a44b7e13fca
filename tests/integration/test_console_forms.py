"""The console's pages asked for anything, and its forms sent by anybody: a clear answer, and nothing half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import pytest

from ledger.model import Snapshot
from ledger.money import HOUR_US
from tests.console_lab import NOW, ConsoleLab, console_lab
from tests.sign_in_lab import Browser
from tests.standins.faults import Fault
from tests.usage_lab import job

pytestmark = pytest.mark.redis
ORG = "/console/orgs/acme"
NASTY = (
    "", "0", "-1", "1e9", "99999999999999999999", "NaN", "²", "null", "%00", "\x00", "a" * 5000, "<script>", "'\"",
    "=1+1", "../..", "2026-11-22", "2026-13-45", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+23:59", "UTC",
    "../../etc/passwd", "‮", "\ud7ff", "1-1_", "_", "1_1_1", "WzFd", "e30", "[[[[", "job", "week",
    "workload,workload", "org", "dates",
)  # fmt: skip
PARAMETERS = {
    "": ("period", "from", "to", "page"),
    "/usage": (
        "period", "from", "to", "step", "timezone", "group_by", "cluster", "project", "user", "kind", "cursor",
        "format",
    ),
    "/grants": ("cursor",),
    "/journal": ("cursor", "show"),
    "/budgets": ("project", "user", "period"),
    "/budgets/remove": ("project", "user", "period"),
    "/buy": ("credits", "page"),
}  # fmt: skip


@pytest.fixture
async def lab(valkey_url: str) -> AsyncIterator[ConsoleLab]:
    async with console_lab(valkey_url, since_us=NOW - 2 * HOUR_US) as lab:
        await lab.ledger.accounts.grant("acme", 1_000_000_000, key="1", who="test")
        assert lab.rounds is not None
        lab.clock[0] = NOW
        taken = Snapshot("simulated-default", "default", NOW, [job("j", NOW - HOUR_US)])
        await lab.rounds.take(taken, None)
        await lab.ledger.budgets.put("acme", "vision", None, 100_000_000, who="test")
        yield lab


async def signed_in(lab: ConsoleLab, role: str = "owner") -> Browser:
    browser = Browser(lab.url, lab.http)
    answer = await browser.sign_in(lab.tokens[role])
    assert answer.status == 303, answer.text
    return browser


@pytest.mark.parametrize("page", PARAMETERS)
async def test_whatever_a_page_is_asked_it_answers_with_a_page(lab: ConsoleLab, page: str) -> None:
    browser = await signed_in(lab)
    for name in PARAMETERS[page]:
        for value in NASTY:
            more = {"period": "dates"} if name in ("from", "to") else {}
            answer = await browser.get(f"{ORG}{page}?{urlencode({**more, name: value}, errors='surrogatepass')}")
            assert answer.status in (200, 404, 422), (page, name, value, answer.text)
            is_file = answer.headers["Content-Type"].startswith("text/csv")
            assert is_file or "</html>" in answer.text
            assert "<script>" not in answer.text
            if answer.status == 422:
                assert 'class="error"' in answer.text or 'role="alert"' in answer.text, (page, name, value)


async def test_forms_of_no_page_of_this_session_change_nothing(lab: ConsoleLab) -> None:
    browser, other = await signed_in(lab), await signed_in(lab, "admin")
    fields = {"project": "p", "credits": "5", "period": "month", "timezone": "UTC", "week_start": "monday"}
    assert (await browser.post(f"{ORG}/budgets", fields)).status == 403
    assert (await browser.post(f"{ORG}/budgets", {**fields, "csrf": "x"})).status == 403
    page = await other.get(f"{ORG}/budgets")
    theirs = page.text.partition('name="csrf" value="')[2].partition('"')[0]
    assert theirs
    assert (await browser.post(f"{ORG}/budgets", {**fields, "csrf": theirs})).status == 403
    assert (await other.post(f"{ORG}/budgets", {**fields, "csrf": theirs}, Origin="https://evil.example")).status == 403
    assert (await Browser(lab.url, lab.http).post(f"{ORG}/budgets", {**fields, "csrf": theirs})).status == 403
    assert [state.budget.project for state in await lab.ledger.budgets.states("acme")] == ["vision"]
    assert (await browser.post(f"{ORG}/buy", {"credits": "1000", "key": "k"})).status == 403
    assert not lab.stripe.sessions


async def test_what_cannot_be_a_budget_is_said_beside_its_field_and_kept(lab: ConsoleLab) -> None:
    browser = await signed_in(lab)
    good = {"project": "p", "user": "", "credits": "5", "period": "month", "timezone": "UTC", "week_start": "monday"}
    for field, least in (
        ("project", 3),
        ("user", 2),
        ("credits", 5),
        ("period", 5),
        ("timezone", 5),
        ("week_start", 5),
    ):
        refused = 0
        for value in (*NASTY, "-0.1", "0.0000001", "9007199254740992", "Infinity", "1_000", "1,5"):
            answer = await browser.send(f"{ORG}/budgets", {**good, field: value})
            assert answer.status in (303, 422), (field, value, answer.text)
            if answer.status == 422:
                refused += 1
                assert f'id="{field}-error"' in answer.text, (field, value)
                assert 'aria-invalid="true"' in answer.text
        assert refused >= least, field
    answer = await browser.send(f"{ORG}/budgets", {**good, "project": 'x"><b>', "credits": "many"})
    assert 'value="x&#34;&gt;&lt;b&gt;"' in answer.text
    assert "&#39;many&#39; is not an amount like 1500 or 0.25" in answer.text


async def test_no_budget_and_no_order_makes_an_org(lab: ConsoleLab) -> None:
    browser = await signed_in(lab, "admin")
    fields = {"project": "p", "credits": "5", "period": "month", "timezone": "UTC", "week_start": "monday"}
    nowhere = "/console/orgs/nobody"
    assert (await browser.send(f"{nowhere}/budgets", fields, at=f"{ORG}/budgets")).status == 404
    order = {"credits": "1000", "key": "k"}
    assert (await browser.send(f"{nowhere}/buy", order, at=f"{ORG}/buy")).status == 404
    assert await lab.ledger.accounts.orgs() == ["acme"]


async def test_a_form_sent_many_times_at_once_makes_one_order(lab: ConsoleLab) -> None:
    browser = await signed_in(lab)
    page = await browser.get(f"{ORG}/buy")
    hidden = {
        name: page.text.partition(f'name="{name}" value="')[2].partition('"')[0] for name in ("csrf", "key", "credits")
    }
    answers = await asyncio.gather(*(browser.post(f"{ORG}/buy", hidden) for _ in range(8)))
    assert {(answer.status, answer.where) for answer in answers} == {(303, answers[0].where)}
    assert answers[0].where.startswith(lab.stripe.url)
    assert len(lab.stripe.sessions) == 1
    policy = page.headers["Content-Security-Policy"]
    assert f"form-action 'self' {lab.stripe.url};" in policy


async def test_what_is_not_sold_makes_no_order(lab: ConsoleLab) -> None:
    browser = await signed_in(lab)
    for value in (*NASTY, "9.999999", "10000.1", "10.0000001", "-10", "15,00", "1.500,5", "1,0000", ",100", "١٥٠"):
        answer = await browser.send(f"{ORG}/buy", {"credits": value, "key": "k"})
        assert answer.status == 422, (value, answer.text)
        assert 'role="alert"' in answer.text
    for key in ("", "k" * 65, "ü", "a\x00"):
        assert (await browser.send(f"{ORG}/buy", {"credits": "1000", "key": key})).status == 422
    assert not lab.stripe.sessions


async def test_a_provider_that_does_not_answer_is_said_and_the_form_can_be_sent_again(lab: ConsoleLab) -> None:
    browser = await signed_in(lab)
    lab.stripe.faults.add(Fault("/v1/checkout/sessions", 500, times=2))
    answer = await browser.send(f"{ORG}/buy", {"credits": "1000", "key": "again"})
    assert answer.status == 502
    assert "Nothing was paid" in answer.text
    assert 'name="key" value="again"' in answer.text
    assert (await browser.send(f"{ORG}/buy", {"credits": "1000", "key": "again"})).status == 303
    assert len(lab.stripe.sessions) == 1


async def test_the_zone_of_a_person_is_one_that_there_is(lab: ConsoleLab) -> None:
    browser = await signed_in(lab)
    for value in NASTY:
        if value != "UTC":
            assert (await browser.send("/console/zone", {"timezone": value})).status == 422, value
    answer: Any = await browser.send("/console/zone", {"timezone": "Europe/Berlin"})
    assert answer.status == 303
    assert "HttpOnly" in answer.cookies[-1] + answer.cookies[0]
    assert "CET" in (await browser.get(ORG)).text
    browser.cookies["credits-zone"] = "../../etc/passwd"
    assert (await browser.get(ORG)).status == 200
    browser.cookies["credits-flash"] = "bm90IGpzb24"
    assert (await browser.get(ORG)).status == 200
