"""Pages of the cluster's administrators: what they show, what they change, for whom, and names that would be HTML."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from config.settings import AdmissionSettings
from config.sources import JsonSource
from ledger import keys
from ledger.connect import Client
from ledger.exhaustion import Act, TierState
from ledger.model import RatePlan, RateTable
from ledger.money import HOUR_US
from ledger.refusals import SHADOW, Refused
from tests.sign_in_lab import T0, Browser, Site, console_site

PAGES = (
    "/console/orgs", "/console/new-org", "/console/orgs/acme/settings", "/console/orgs/acme/grant", "/console/rates",
    "/console/sources", "/console/stages", "/console/shadow", "/console/tokens", "/console/tokens/revoke?id={id}",
    "/console/audit",
)  # fmt: skip
FORMS = ("/console/new-org", "/console/orgs/acme/settings", "/console/orgs/acme/grant", "/console/tokens",
         "/console/tokens/revoke")  # fmt: skip
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"
CREDIT = 1_000_000


@pytest.fixture
async def site(client: Client) -> AsyncIterator[Site]:
    sources = (JsonSource(name="hpc-json", cluster="hpc", url="http://127.0.0.1:1/x"),)
    admission = AdmissionSettings(mode="shadow", clusters={"hpc": "enforce"})
    async with console_site(client, clock=lambda: T0, sources=sources, admission=admission) as site:
        await site.ledger.accounts.upsert("acme", who="test")
        yield site


@pytest.fixture
async def admin(site: Site) -> Browser:
    return await browser_of(site, "admin")


async def browser_of(site: Site, role: str) -> Browser:
    browser = site.browser()
    assert (await browser.sign_in(site.tokens[role])).status == 303
    return browser


async def give(site: Site, org: str, amount: int, **more: Any) -> None:
    await site.ledger.accounts.grant(org, amount * CREDIT, key=f"{org}{amount}", who="test", **more)


def cells(text: str) -> str:
    """The page as it is read: tags out, spaces single."""
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


# -- for whom --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["owner", "viewer", "other"])
async def test_pages_of_administrators_are_for_them_only(site: Site, role: str) -> None:
    browser = await browser_of(site, role)
    for path in PAGES:
        assert (await browser.get(path.replace("{id}", site.ids["owner"]))).status == 403, path
    csrf = re.search(r'name="csrf" value="([^"]+)"', (await browser.get("/console/session")).text)
    assert csrf is not None
    for path in FORMS:
        given = {"csrf": csrf[1], "credits": "5", "reason": "x", "key": "console:x", "role": "admin", "org": "new"}
        assert (await browser.post(path, {**given, "id": site.ids["admin"]})).status == 403, path
    assert len(await site.ledger.tokens.list()) == 5
    assert await site.ledger.accounts.orgs() == ["acme"]
    assert (await site.ledger.accounts.balance("acme")).granted_micro == 0
    page = await browser.get("/console/orgs/acme")
    assert "/console/tokens" not in page.text
    assert "/settings" not in page.text


async def test_forms_of_administrators_need_their_own_token(site: Site, admin: Browser) -> None:
    given = {
        "credits": "5",
        "reason": "x",
        "key": "console:x",
        "role": "viewer",
        "org": "acme",
        "id": site.ids["owner"],
    }
    for path in FORMS:
        assert (await admin.post(path, given)).status == 403, path
        assert (await admin.post(path, {**given, "csrf": "0" * 64})).status == 403, path
    assert len(await site.ledger.tokens.list()) == 5
    assert (await site.ledger.accounts.balance("acme")).granted_micro == 0


async def test_every_page_is_there_also_when_there_is_nothing(site: Site, admin: Browser) -> None:
    for path in PAGES:
        page = await admin.get(path.replace("{id}", site.ids["owner"]))
        assert page.status == 200, path
        assert "<h1>" in page.text
    assert "Nobody is running out" in (await admin.get("/console/stages")).text
    assert "Nothing would have been refused" in (await admin.get("/console/shadow")).text
    assert "No rates yet" in (await admin.get("/console/rates")).text
    assert "Never charged yet" in (await admin.get("/console/sources")).text


async def test_names_that_would_be_html_are_text_on_every_page(site: Site, admin: Browser) -> None:
    ledger, client = site.ledger, site.ledger.client
    await give(site, EVIL, 5, reason=EVIL)
    await ledger.accounts.upsert(EVIL, who=EVIL, contact=EVIL)
    await ledger.tokens.create("owner", EVIL, note=EVIL)
    await ledger.rates.publish(RatePlan("hpc", ((0, RateTable({EVIL: 1}, {EVIL: 2}, {EVIL: 3})),)))
    await client.hset(keys.SOURCES, EVIL, str(T0))  # type: ignore[misc]
    await client.hset(keys.UNBILLABLE, f"{EVIL}{keys.US}{EVIL}", "7")  # type: ignore[misc]
    tier = keys.US.join((EVIL, EVIL, "u", "month"))
    await ledger.exhaustion.write(EVIL, tier, TierState(), TierState(4, T0), None)
    await ledger.exhaustion.note(EVIL, tier, EVIL, EVIL, Act("stop", T0))
    await ledger.refusals.add([Refused(EVIL, shadowed(project=EVIL, user=EVIL, preset=EVIL, app=EVIL))])
    token = (await ledger.tokens.list())[-1][0].id
    quoted = quote(EVIL, safe="")
    more = (
        f"/console/tokens/revoke?id={token}", f"/console/orgs?q={quoted}", f"/console/new-org?org={quoted}",
        f"/console/shadow?org={quoted}", f"/console/shadow?period=x&from={quoted}",
    )  # fmt: skip
    for path in (*PAGES, *more):
        page = await admin.get(path.replace("{id}", site.ids["owner"]).replace("/acme/", f"/{quoted}/"))
        assert page.status in (200, 422), path
        assert "<script>alert" not in page.text, path
        assert "<img src=x" not in page.text, path
    for path in ("/console/orgs", "/console/rates", "/console/sources", "/console/stages",
                 "/console/shadow?from=2026-11-01&to=2040-01-01", "/console/tokens"):  # fmt: skip
        assert "&lt;script&gt;alert(1)" in (await admin.get(path)).text, path


# -- orgs ------------------------------------------------------------------------------------------------------------


async def test_orgs_are_found_and_sorted(site: Site, admin: Browser) -> None:
    await give(site, "acme", 50)
    await give(site, "beta", 7)
    await site.ledger.accounts.upsert("gamma", who="test", unlimited=True)
    names = re.compile(r"<th role=\"rowheader\" scope=\"row\" class=\"name\"><a [^>]+><bdi>([^<]+)</bdi>")
    assert names.findall((await admin.get("/console/orgs")).text) == ["acme", "beta", "gamma"]
    assert names.findall((await admin.get("/console/orgs?sort=available")).text) == ["beta", "acme", "gamma"]
    assert names.findall((await admin.get("/console/orgs?q=AM")).text) == ["gamma"]
    assert "No org like that" in (await admin.get("/console/orgs?q=none")).text
    text = cells((await admin.get("/console/orgs?sort=runway")).text)
    assert "beta Fine 7 0 0 nothing runs" in text
    assert "gamma Fine Unlimited" in text
    for odd in ("?sort=x&page=0", "?page=99999", "?page=-1&sort=%00", "?q=%ff"):
        assert (await admin.get(f"/console/orgs{odd}")).status == 200


async def test_many_orgs_come_in_pages(site: Site, admin: Browser) -> None:
    for number in range(60):
        await site.ledger.accounts.upsert(f"org-{number:02}", who="test")
    page = await admin.get("/console/orgs?q=org-")
    assert "1 to 50 of 60" in page.text
    assert "org-49" in page.text
    assert "org-50" not in page.text
    assert "org-59" in (await admin.get("/console/orgs?q=org-&page=2")).text


async def test_an_org_is_made_once_and_edited_with_a_word_in_the_journal(site: Site, admin: Browser) -> None:
    made = await admin.send("/console/new-org", {"org": "new/org", "contact": "ann@new", "credit_line": "2.5"})
    assert (made.status, made.where) == (303, "/console/orgs/new%2Forg/grant"), made.text
    balance = await site.ledger.accounts.balance("new/org")
    assert (balance.contact, balance.credit_line_micro, balance.unlimited) == ("ann@new", 2_500_000, False)
    again = await admin.send("/console/new-org", {"org": "new/org"})
    assert (again.status, "is there already" in again.text) == (422, True)
    near = await admin.send("/console/new-org", {"org": "new/orgs"})
    assert "made beside new/org, which is very like it" in (await admin.get(str(near.where))).text
    path = "/console/orgs/new%2Forg/settings"
    page = await admin.get(path)
    revision = re.search(r'name="revision" value="([^"]+)"', page.text)
    assert revision is not None
    given = {
        "revision": revision[1], "contact": "bob", "unlimited": "1", "mode": "shadow", "then": "stop",
        "warn_hours_left": "1.5", "grace_minutes": "", "credit_line": "",
    }  # fmt: skip
    assert (await admin.send(path, given)).where == path
    balance = await site.ledger.accounts.balance("new/org")
    assert (balance.unlimited, balance.contact, balance.credit_line_micro) == (True, "bob", 0)
    assert balance.policy == {"mode": "shadow", "then": "stop", "warn_hours_left": 1.5}
    entries, _ = await site.ledger.accounts.journal("new/org")
    assert entries[-1]["who"] == f"token:{site.ids['admin']} (admin)"
    assert entries[-1]["from"] == "127.0.0.1"
    # Somebody else who had the page open does not undo that.
    late = await admin.send(path, {**given, "contact": "late"})
    assert late.status == 409
    assert "Somebody else changed" in late.text
    assert 'value="bob"' in late.text
    assert (await site.ledger.accounts.balance("new/org")).contact == "bob"


async def test_a_policy_that_this_page_does_not_know_is_kept(site: Site, admin: Browser) -> None:
    await site.ledger.accounts.upsert("acme", who="test", policy={"then": "stop", "x-other": [1]})
    page = await admin.get("/console/orgs/acme/settings")
    revision = re.search(r'name="revision" value="([^"]+)"', page.text)
    assert revision is not None
    await admin.send("/console/orgs/acme/settings", {"revision": revision[1], "then": ""})
    assert (await site.ledger.accounts.balance("acme")).policy == {"x-other": [1]}


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"org": ""}, "Expected a name"), ({"org": "a\nb"}, "Expected a name"), ({"org": "x" * 300}, "Expected a name"),
        ({"org": "n", "credit_line": "-1"}, "is not an amount"), ({"org": "n", "credit_line": "x"}, "is not an amount"),
        ({"org": "n", "credit_line": "1e300"}, "is not an amount"), ({"org": "n", "mode": "x"}, "Choose one"),
        ({"org": "n", "then": "explode"}, "Choose one"), ({"org": "n", "warn_hours_left": "-1"}, "Expected a number"),
        ({"org": "n", "grace_minutes": "1e9"}, "Expected a number"), ({"org": "n", "contact": "a\x07"}, "printable"),
        ({"org": "n", "contact": "a" * 501}, "printable"),
    ],
)  # fmt: skip
async def test_settings_that_make_no_sense_are_said_at_their_field(
    site: Site, admin: Browser, given: dict[str, str], word: str
) -> None:
    answer = await admin.send("/console/new-org", given)
    assert answer.status == 422
    assert word in answer.text
    assert 'aria-invalid="true"' in answer.text
    assert await site.ledger.accounts.orgs() == ["acme"]


async def test_an_org_that_is_not_there_is_said_so(site: Site, admin: Browser) -> None:
    for path in ("/console/orgs/none/settings", "/console/orgs/none/grant"):
        assert (await admin.get(path)).status == 404
    page = await admin.get("/console/tokens")
    csrf = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert csrf is not None
    given = {"csrf": csrf[1], "credits": "1", "reason": "x", "key": "console:k"}
    assert (await admin.post("/console/orgs/none/grant", given)).status == 404
    assert (await admin.post("/console/orgs/none/settings", given)).status == 404
    assert await site.ledger.accounts.orgs() == ["acme"]


# -- grants ----------------------------------------------------------------------------------------------------------


async def test_a_form_that_is_sent_twice_grants_once(site: Site, admin: Browser) -> None:
    page = await admin.get("/console/orgs/acme/grant")
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    given = {
        "csrf": fields["csrf"],
        "key": fields["key"],
        "credits": "1000.5",
        "reason": "Invoice 7",
        "source": "gift",
    }
    first, second = [await admin.post("/console/orgs/acme/grant", given) for _ in range(2)]
    assert (first.status, first.where) == (second.status, second.where) == (303, "/console/orgs/acme/grants")
    (grant,) = await site.ledger.accounts.grants("acme")
    assert (grant.credits, grant.reason, grant.source) == ("1000.5", "Invoice 7", "gift")
    assert grant.who == f"token:{site.ids['admin']} (admin)"
    said = await admin.get("/console/orgs/acme/grants")
    assert "1000.5 credits are granted to org acme, without expiry." in said.text
    assert "not again" in said.text
    other = await admin.post("/console/orgs/acme/grant", {**given, "credits": "5"})
    assert other.status == 422
    assert "was sent before, with other values" in other.text
    assert len(await site.ledger.accounts.grants("acme")) == 1
    fresh = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', other.text))
    assert fresh["key"] != fields["key"]


async def test_a_grant_with_everything(site: Site, admin: Browser) -> None:
    admin.cookies["credits-zone"] = "Europe/Berlin"
    given = {
        "credits": "10", "reason": "r", "purpose": "Winter school", "effective_at": "2027-01-01T00:00",
        "expires_at": "2027-07-01T00:00", "presets": "gpu, cpu ,", "clusters": "hpc",
    }  # fmt: skip
    key = re.search(r'name="key" value="([^"]+)"', (await admin.get("/console/orgs/acme/grant")).text)
    assert key is not None
    answer = await admin.send("/console/orgs/acme/grant", {**given, "source": "provision", "key": key[1]})
    assert answer.status == 303, answer.text
    (grant,) = await site.ledger.accounts.grants("acme")
    assert (grant.effective_at, grant.expires_at) == ("2026-12-31T23:00:00Z", "2027-06-30T22:00:00Z")
    assert (grant.purpose, grant.presets, grant.clusters) == ("Winter school", ("cpu", "gpu"), ("hpc",))
    assert "only for presets cpu, gpu in cluster hpc" in (await admin.get("/console/orgs/acme/grants")).text


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"credits": "0"}, "more than 0"), ({"credits": "1,5"}, "not an amount"), ({"credits": ""}, "How many"),
        ({"credits": "NaN"}, "an amount"), ({"credits": "1e99"}, "an amount"), ({"credits": "-5"}, "an amount"),
        ({"credits": "0.0000001"}, "digits"),
        ({"credits": "9007199255"}, "larger"), ({"reason": ""}, "Why?"), ({"source": "loan"}, "expected one of"),
        ({"expires_at": "tomorrow"}, "not a time like"), ({"expires_at": "2001-01-01T00:00"}, "is over"),
        ({"effective_at": "2027-01-01T00:00", "expires_at": "2026-12-31T00:00"}, "not after “In force from”"),
        ({"effective_at": "9999-12-31T23:59"}, "1970 and 2255"), ({"key": "mine"}, "not whole"),
        ({"key": "console:" + "x" * 300}, "not whole"), ({"key": "payment:1"}, "not whole"),
        ({"presets": "a\x01b"}, "control characters"), ({"clusters": ",".join(map(str, range(60)))}, "at most 50"),
    ],
)  # fmt: skip
async def test_a_grant_that_makes_no_sense_grants_nothing_and_is_said(
    site: Site, admin: Browser, given: dict[str, str], word: str
) -> None:
    good = {"credits": "5", "reason": "r", "source": "provision", "key": "console:k"}
    answer = await admin.send("/console/orgs/acme/grant", {**good, **given})
    assert answer.status == 422
    assert word in answer.text, cells(answer.text)
    assert await site.ledger.accounts.grants("acme") == []


# -- corrections and transfers ----------------------------------------------------------------------------------------


async def test_a_wrong_grant_is_taken_back_once(site: Site, admin: Browser) -> None:
    await give(site, "acme", 1000, reason="1000 typed for 100")
    grants = await admin.get("/console/orgs/acme/grants")
    path = re.search(r'href="(/console/orgs/acme/correct\?of=[^"]+)"', grants.text)
    assert path is not None
    page = await admin.get(path[1])
    assert "1000 typed for 100" in page.text
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    given = {**fields, "way": "take", "credits": "900", "corrects": "acme1000", "reason": "a slip"}
    for _ in range(2):
        assert (await admin.post("/console/orgs/acme/correct", given)).where == "/console/orgs/acme/grants"
    assert "not again" in (await admin.get("/console/orgs/acme/grants")).text
    assert (await site.ledger.accounts.balance("acme")).available_micro == 100 * CREDIT
    entries, _ = await site.ledger.accounts.journal("acme")
    assert (entries[-1]["type"], entries[-1]["credits"], entries[-1]["from"]) == ("correction", "-900", "127.0.0.1")
    other = await admin.post("/console/orgs/acme/correct", {**given, "credits": "1"})
    assert (other.status, "with other values" in other.text) == (422, True)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"credits": "1001"}, "cannot be corrected below 0"), ({"credits": "0"}, "more than 0"),
        ({"corrects": "nothing"}, "has no grant of this key"), ({"corrects": ""}, "What is corrected?"),
        ({"reason": ""}, "Why?"), ({"way": "burn"}, "Choose one"), ({"key": "mine"}, "not whole"),
        ({"credits": "1,5"}, "not an amount"),
    ],
)  # fmt: skip
async def test_a_correction_that_makes_no_sense_is_said(
    site: Site, admin: Browser, given: dict[str, str], word: str
) -> None:
    await give(site, "acme", 1000)
    good = {"way": "take", "credits": "5", "corrects": "acme1000", "reason": "r", "key": "console:k"}
    answer = await admin.send("/console/orgs/acme/correct", {**good, **given})
    assert answer.status == 422
    assert word in answer.text, cells(answer.text)
    assert (await site.ledger.accounts.balance("acme")).available_micro == 1000 * CREDIT


async def test_credits_move_to_another_org_once(site: Site, admin: Browser) -> None:
    await give(site, "acme", 1000)
    await site.ledger.accounts.upsert("globex", who="test")
    page = await admin.get("/console/orgs/acme/transfer")
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
    given = {**fields, "to": "globex", "credits": "250.5", "reason": "lent"}
    for _ in range(2):
        assert (await admin.post("/console/orgs/acme/transfer", given)).where == "/console/orgs/acme/grants"
    balances = [(await site.ledger.accounts.balance(org)).available_micro for org in ("acme", "globex")]
    assert balances == [749_500_000, 250_500_000]


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"credits": "1001"}, "that can be transferred"), ({"credits": "0"}, "more than 0"),
        ({"to": "acme"}, "another org"), ({"to": "none"}, "There is no such org"), ({"to": ""}, "name of an org"),
        ({"reason": ""}, "Why?"), ({"key": ""}, "not whole"), ({"credits": "١"}, "not an amount"),
    ],
)  # fmt: skip
async def test_a_transfer_that_makes_no_sense_is_said(
    site: Site, admin: Browser, given: dict[str, str], word: str
) -> None:
    await give(site, "acme", 1000)
    await site.ledger.accounts.upsert("globex", who="test")
    good = {"to": "globex", "credits": "5", "reason": "r", "key": "console:k"}
    answer = await admin.send("/console/orgs/acme/transfer", {**good, **given})
    assert answer.status == 422
    assert word in answer.text, cells(answer.text)
    assert (await site.ledger.accounts.balance("acme")).available_micro == 1000 * CREDIT


# -- what goes on ----------------------------------------------------------------------------------------------------


async def test_rates_in_force_to_come_and_before(site: Site, admin: Browser) -> None:
    first, second = RateTable({"cpu": 1_500_000_000}), RateTable({"cpu": 2_000_000_000, "gpu": 40_500_000_000})
    later = replace(second, presets={"gpu": 42_000_000_000}, unpriced="free")
    steps = ((0, first), (T0 - HOUR_US, second), (T0 + HOUR_US, later))
    await site.ledger.rates.publish(RatePlan("hpc", steps))
    text = cells((await admin.get("/console/rates")).text)
    assert "In force now Name Kind Credits For cpu Preset 2 an hour gpu Preset 40 .5 an hour" in text
    assert "cpu Preset 2 no rate gpu Preset 40 .5 42" in text
    assert "Work on a preset that has no rate is free." in text
    assert "Changes so far (1)" in text
    assert "cpu Preset 1 .5 2 gpu Preset no rate 40 .5" in text


async def test_what_is_known_of_sources(site: Site, admin: Browser) -> None:
    client = site.ledger.client
    await client.hset(keys.SOURCES, "hpc-json", str(T0 - 30_000_000))  # type: ignore[misc]
    await client.hset(keys.UNBILLABLE, f"hpc-json{keys.US}no_preset", "3")  # type: ignore[misc]
    await client.hset(keys.SOURCES, "old", str(T0 - 300 * HOUR_US))  # type: ignore[misc]
    text = cells((await admin.get("/console/sources")).text)
    assert "hpc-json Up to date Type json, cluster hpc" in text
    assert "3 no preset (since the ledger began)" in text
    assert "old Not in the settings" in text
    await client.hset(keys.SOURCES, "hpc-json", str(T0 - 61_000_000))  # type: ignore[misc]
    assert "hpc-json Late" in cells((await admin.get("/console/sources")).text)


async def test_stages_tell_whom_since_when_and_what_is_done(site: Site, admin: Browser) -> None:
    write, note = site.ledger.exhaustion.write, site.ledger.exhaustion.note
    await write("acme", "", TierState(), TierState(3, T0 - HOUR_US, T0 + 600_000_000), {"stage": "grace"})
    tier = keys.US.join(("vision", "ann", "u", "month"))
    await write("acme", tier, TierState(), TierState(4, T0), None)
    await note("acme", tier, "hpc-json", "job-1", Act("suspend", T0))
    await note("acme", tier, "hpc-json", "job-2", Act("suspend", T0))
    await write("acme", keys.US.join(("vision", "", "p", "total")), TierState(), TierState(1, T0), None)
    text = cells((await admin.get("/console/stages")).text)
    assert "3 in a stage" in text
    assert "acme user ann in project vision, budget of the month Suspended" in text
    assert "2 suspended job-1 (hpc-json): suspended" in text
    assert "acme the whole org Grace period" in text
    assert "The grace ends" in text
    assert "acme project vision, budget in all Running low" in text
    assert text.index("user ann") < text.index("the whole org") < text.index("budget in all")


def shadowed(**more: Any) -> dict[str, Any]:
    return {
        "type": SHADOW, "event": "e", "at": "2026-11-18T12:00:00Z", "who": "scheduler", "code": "no_credits",
        "required": "1.5", "project": "vision", "user": "ann", "preset": "gpu", "app": None, **more,
    }  # fmt: skip


async def test_the_shadow_report_on_a_page_and_as_csv(site: Site, admin: Browser) -> None:
    await site.ledger.refusals.add(
        [Refused("acme", shadowed()), Refused("acme", shadowed()), Refused("gone", shadowed())]
    )
    # What is kept goes by the server's clock, which is not the test's.
    page = await admin.get("/console/shadow?from=2026-11-01&to=2040-01-01")
    text = cells(page.text)
    assert "3 decisions in 2 groups" in text
    assert "acme vision ann gpu no credits 2 3 18 Nov 2026" in text
    assert "gone vision ann gpu no credits 1 1 .5" in text
    assert "mode shadow , in cluster hpc in mode enforce" in text
    csv = await admin.get("/console/shadow?from=2026-11-01&to=2040-01-01&csv=1&org=acme")
    assert csv.headers["Content-Type"].startswith("text/csv")
    assert csv.text.splitlines()[1].startswith("acme,vision,ann,gpu,,no_credits,2,3,")
    assert len(csv.text.splitlines()) == 2
    wrong = await admin.get("/console/shadow?from=x&to=y")
    assert (wrong.status, 'role="alert"' in wrong.text) == (422, True)


# -- tokens ----------------------------------------------------------------------------------------------------------


async def test_a_token_is_shown_once_and_works(site: Site, admin: Browser) -> None:
    given = {"role": "viewer", "org": "acme", "note": "Ann's", "expires_at": "2040-01-01T00:00"}
    made = await admin.send("/console/tokens", given)
    assert made.status == 201
    assert made.headers["Cache-Control"] == "no-store"
    token = re.search(r'value="(act_[^"]+)"', made.text)
    assert token is not None
    assert (await site.browser().sign_in(token[1])).status == 303
    listed = await admin.get("/console/tokens")
    assert token[1] not in listed.text
    assert "Ann&#39;s" in listed.text


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"role": "god"}, "Choose one"), ({"role": "owner", "org": ""}, "Which org"),
        ({"role": "admin", "org": "acme"}, "all orgs"), ({"role": "owner", "org": "a\nb"}, "control characters"),
        ({"role": "viewer", "org": "acme", "expires_at": "2001-01-01T00:00"}, "is past"),
        ({"role": "viewer", "org": "acme", "expires_at": "x"}, "not a time like"),
        ({"role": "viewer", "org": "acme", "note": "a\x07"}, "printable"),
    ],
)  # fmt: skip
async def test_a_token_that_makes_no_sense_is_not_made(
    site: Site, admin: Browser, given: dict[str, str], word: str
) -> None:
    answer = await admin.send("/console/tokens", given)
    assert answer.status == 422
    assert word in answer.text, cells(answer.text)
    assert len(await site.ledger.tokens.list()) == 5


async def test_a_token_for_an_org_that_is_not_there_says_so(site: Site, admin: Browser) -> None:
    await site.ledger.accounts.upsert("acme", who="t")
    for org, is_said in (("acme", False), ("acmee", True)):
        made = await admin.send("/console/tokens", {"role": "viewer", "org": org})
        assert (made.status, "There is no org" in made.text) == (201, is_said)


async def test_revoking_asks_first_and_ends_the_sessions_of_the_token(site: Site, admin: Browser) -> None:
    owner = await browser_of(site, "owner")
    path = f"/console/tokens/revoke?id={site.ids['owner']}"
    assert "Revoke this token?" in (await admin.get(path)).text
    answer = await admin.send("/console/tokens/revoke", {"id": site.ids["owner"]}, path)
    assert (answer.status, answer.where) == (303, "/console/tokens")
    assert (await owner.get("/console/session")).status == 303
    assert (await admin.get(path)).status == 404
    assert (await admin.send("/console/tokens/revoke", {"id": site.ids["owner"]}, "/console/tokens")).status == 404


async def test_the_last_administrator_cannot_lock_everybody_out(site: Site, admin: Browser) -> None:
    path = f"/console/tokens/revoke?id={site.ids['admin']}"
    assert "You are signed in with it" in (await admin.get(path)).text
    answer = await admin.send("/console/tokens/revoke", {"id": site.ids["admin"]}, path)
    assert answer.status == 409
    assert "make another one first" in answer.text
    assert (await admin.get("/console/tokens")).status == 200


async def test_the_audit_tells_who_signed_in_and_who_made_which_token(site: Site, admin: Browser) -> None:
    await admin.send("/console/tokens", {"role": "viewer", "org": "acme", "note": "Ann's"})
    me = f"token:{site.ids['admin']} (admin)"
    everything = cells((await admin.get("/console/audit")).text)
    assert re.search(rf"Token created {re.escape(me)} 127\.0\.0\.1 org: acme , token: \w+ , role: viewer", everything)
    assert "address:" not in everything
    assert f"Signed in {me} 127.0.0.1" in everything
    changes = cells((await admin.get("/console/audit?show=changes")).text)
    assert "Token created" in changes
    assert "Signed in" not in changes
    assert "Token created" not in cells((await admin.get("/console/audit?show=sign-ins")).text)
    wrong = await admin.get("/console/audit?cursor=x")
    assert (wrong.status, 'role="alert"' in wrong.text) == (422, True)
    for _ in range(51):
        await site.ledger.tokens.create("viewer", "acme", who=EVIL)
    page = await admin.get("/console/audit?show=changes")
    after = re.search(r'href="([^"]+cursor[^"]+)"', page.text)
    assert after is not None
    assert "<script>" not in page.text.replace('<script src="', "")
    assert "Token created" in (await admin.get(f"/console/audit{after[1].replace('&amp;', '&')}")).text
