"""The console's pages of notices and of auto top-up: forms that set what the API sets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from ledger.money import HOUR_US
from ledger.notice_prefs import NoticePreferences
from ledger.top_ups import Card, TopUps
from tests.console_lab import NOW, ConsoleLab, console_lab
from tests.sign_in_lab import Browser

pytestmark = pytest.mark.redis
NOTICES = "/console/orgs/acme/notices"
TOP_UP = "/console/orgs/acme/topup"
TERMS = {"threshold": "50", "credits": "1000", "monthly_cap": "5,000", "cool_down_minutes": "30", "enabled": "yes"}
CREDIT = 1_000_000


@pytest.fixture
async def lab(valkey_url: str) -> AsyncIterator[ConsoleLab]:
    async with console_lab(valkey_url, since_us=NOW - HOUR_US) as lab:
        await lab.ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="t")
        yield lab


async def signed_in(lab: ConsoleLab, role: str) -> Browser:
    browser = Browser(lab.url, lab.http)
    assert (await browser.sign_in(lab.tokens[role])).status == 303
    return browser


async def test_an_owner_says_whom_to_tell(lab: ConsoleLab) -> None:
    owner = await signed_in(lab, "owner")
    page = await owner.get(NOTICES)
    assert page.status == 200
    assert f'href="{NOTICES}"' in page.text  # there is a place for it
    fields = {"email": "ops@example.org\nann@example.org", "kind-stage": "yes", "runway_hours": "12", "url": ""}
    assert (await owner.send(NOTICES, fields)).status == 303
    preferences = NoticePreferences(lab.ledger.client, lab.ledger.scripts)
    found = await preferences.read("acme")
    assert (found.email, found.kinds, found.runway_hours) == (("ops@example.org", "ann@example.org"), ("stage",), 12.0)
    assert "ann@example.org" in (await owner.get(NOTICES)).text
    refused = await owner.send(NOTICES, {**fields, "email": "<script>"})
    assert refused.status == 422
    assert 'aria-describedby="email-error email-hint" aria-invalid="true"' in refused.text
    assert '<p class="error" id="email-error">&#39;&lt;script&gt;&#39; is not an address like' in refused.text
    assert "<script>" not in refused.text
    private = await owner.send(NOTICES, {**fields, "url": "https://10.0.0.1/"})
    assert '<p class="error" id="url-error">&#39;https://10.0.0.1/&#39; is at 10.0.0.1, which is no pub' in private.text
    for hours, wrong in (("1e2", "&#39;1e2&#39; is not a number of hours like 24"), ("9000", "9000 is not from 0 to ")):
        said = (await owner.send(NOTICES, {**fields, "runway_hours": hours})).text
        assert f'<p class="error" id="runway_hours-error">{wrong}' in said
        assert not re.search("runway_hours:|webhook.url", said)  # the API's names
    hooked = await owner.send(NOTICES, {**fields, "url": "https://hooks.example.org/"})
    secret = re.search(r"<code>(whs_[^<]+)</code>", hooked.text)
    assert secret is not None
    assert secret[1] not in (await owner.get(NOTICES)).text
    assert (await owner.send(f"{NOTICES}/test", {}, at=NOTICES)).status == 303
    entries, _ = await lab.ledger.accounts.journal("acme")
    (first, _) = [entry for entry in entries if entry["type"] == "notices"]
    assert first["who"].startswith("token:")


async def test_a_viewer_sees_and_changes_nothing(lab: ConsoleLab) -> None:
    viewer = await signed_in(lab, "viewer")
    page = await viewer.get(NOTICES)
    assert page.status == 200
    assert "<textarea" not in page.text
    assert (await viewer.post(NOTICES, {"email": ""})).status == 403
    assert (await viewer.get(TOP_UP)).status == 403
    assert (await viewer.get("/console/orgs/globex/notices")).status == 403


async def test_an_owner_sets_and_ends_auto_top_up(lab: ConsoleLab) -> None:
    owner = await signed_in(lab, "owner")
    assert "no card" not in (await owner.get(TOP_UP)).text
    assert (await owner.send(TOP_UP, TERMS)).status == 303
    page = await owner.get(TOP_UP)
    assert "on, but no card is saved" in page.text
    top_ups = TopUps(lab.ledger.client, lab.ledger.scripts)
    terms = (await top_ups.read("acme")).terms
    assert terms is not None
    assert (terms.micro, terms.cap_micro, terms.cool_down_us, terms.enabled) == (
        1000 * CREDIT, 5000 * CREDIT, 1_800_000_000, True,
    )  # fmt: skip
    await top_ups.keep_card("acme", Card("cus_1", "pm_1", "visa", "4242", "2030-04", "ord_1", 1, "token:ann"))
    assert "Visa ending in 4242" in (await owner.get(TOP_UP)).text
    for wrong in ({"credits": "1"}, {"monthly_cap": "10"}, {"threshold": "x"}, {"cool_down_minutes": "-1"},
                  {"credits": "1e999999"}, {"threshold": "NaN"}, {"credits": "1000,5"}, {"monthly_cap": "5,0000"},
                  {"credits": "1_000"}, {"threshold": "１２"}):  # fmt: skip
        refused = await owner.send(TOP_UP, {**TERMS, **wrong})
        assert refused.status == 422, wrong
        assert "Nothing was changed" in refused.text
        assert f'<p class="error" id="{next(iter(wrong))}-error">' in refused.text
    off = {name: value for name, value in TERMS.items() if name != "enabled"}
    assert (await owner.send(TOP_UP, off)).status == 303
    assert (await top_ups.read("acme")).state(0) == "off"
    lab.stripe.methods["pm_1"] = {"id": "pm_1", "object": "payment_method", "customer": "cus_1"}
    assert (await owner.send(f"{TOP_UP}/end", {}, at=TOP_UP)).status == 303
    ended = await top_ups.read("acme")
    assert (ended.terms, ended.card) == (None, None)
    assert lab.stripe.methods["pm_1"]["customer"] is None
    assert (await owner.post(TOP_UP, TERMS)).status == 403  # without the form's token


async def test_two_who_edit_do_not_overwrite_each_other(lab: ConsoleLab) -> None:
    ann, bob = await signed_in(lab, "owner"), await signed_in(lab, "admin")
    for path, fields, change in (
        (NOTICES, {"email": "ops@example.org", "runway_hours": "12", "url": ""}, {"runway_hours": "7"}),
        (TOP_UP, TERMS, {"threshold": "77"}),
    ):
        assert (await ann.send(path, fields)).status == 303
        before = revision_in((await ann.get(path)).text)
        assert (await bob.send(path, {**fields, **change, "revision": before})).status == 303
        late = await ann.send(path, {**fields, "revision": before})
        assert late.status == 409
        assert "Somebody else changed this" in late.text
        assert f'value="{next(iter(change.values()))}"' in late.text  # what is set now
        assert revision_in(late.text) == revision_in((await ann.get(path)).text) != before
        assert (await ann.send(path, {**fields, "revision": revision_in(late.text)})).status == 303
    ended = await ann.send(f"{TOP_UP}/end", {"revision": before}, at=TOP_UP)
    assert ended.status == 409
    assert (await TopUps(lab.ledger.client, lab.ledger.scripts).read("acme")).terms is not None


def revision_in(page: str) -> str:
    found = re.search(r'name="revision" value="([^"]+)"', page)
    assert found is not None
    return found[1]


async def test_where_nothing_is_sold_the_pages_say_so_and_what_to_do(valkey_url: str) -> None:
    async with console_lab(valkey_url, since_us=NOW - HOUR_US, sells=False) as lab:
        await lab.ledger.accounts.grant("acme", 100 * CREDIT, key="k", who="t")
        for role, remedy in (("owner", "Ask an administrator"), ("admin", "add a section “payments”")):
            browser = await signed_in(lab, role)
            for path, title in ((TOP_UP, "Auto top-up"), ("/console/orgs/acme/buy", "Buy credits")):
                page = await browser.get(path)
                assert (page.status, f"<h1>{title}</h1>" in page.text) == (200, True)
                assert "No credits are sold here." in page.text
                assert remedy in page.text
                assert "<form method" not in page.text.partition("<main")[2]
                assert f'href="{TOP_UP}"' not in page.text  # it is no place to go to
        assert (await browser.get("/console/orgs/nobody/topup")).status == 404
