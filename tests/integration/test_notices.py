"""Notices by e-mail and webhook: told once, in words, to whom the org named; whatever the servers do."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.notices import NoticeSettings, Smtp
from config.settings import Settings, load_settings
from config.values import Secret
from enforcer.admission.webhook_config import make_pair
from enforcer.app import build_app, enforcing
from enforcer.mailer import Mailer, NotSent
from enforcer.notices import Telling
from enforcer.notify import EVENT, SIGNATURE, sign
from enforcer.org_hooks import OrgHooks
from ledger.connect import Client, connect
from ledger.errors import InvalidRequest
from ledger.notice_prefs import Hook, NoticePreferences, Preferences, is_address, is_public
from ledger.notice_text import words
from ledger.notices import GIVE_UP_MS, Notice, event_id
from ledger.purchase_step import Paid, Reversal
from ledger.purchases import Purchases
from ledger.store import Ledger
from tests.dying import Dying, Killed
from tests.standins.post_office import PostOffice, post_office

pytestmark = pytest.mark.redis
T0 = 1_795_000_000_000_000
CREDIT = 1_000_000
MINUTE_MS = 60_000
OPS = "ops@example.org"


class Later:
    """Moves the clock of notices on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ledger import notices

        self.ms = 0
        real = notices.wall_ms
        for module in ("ledger.notices", "enforcer.notices", "enforcer.notify", "enforcer.watch"):
            monkeypatch.setattr(f"{module}.wall_ms", lambda: real() + self.ms)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(monkeypatch)


@pytest.fixture
async def office() -> AsyncIterator[PostOffice]:
    async with post_office() as office:
        yield office


def plain_of(mail: EmailMessage) -> str:
    """What the message says, on one line."""
    part = mail.get_body(("plain",))
    assert part is not None
    return " ".join(part.get_content().split())


class Site:
    """An enforcer's notices, with org acme that has ops told of everything."""

    def __init__(self, client: Client, office: PostOffice, **smtp: Any) -> None:
        self.ledger = Ledger(client, T0)
        self.preferences = NoticePreferences(client, self.ledger.scripts)
        given: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": office.port,
            "tls": "none",
            "timeout_seconds": 5.0,
            **smtp,
        }
        self.settings = NoticeSettings(
            smtp=Smtp(**(given | smtp)), sender="credits@example.com", public_url="https://credits.example.com/"
        )
        self.office = office
        self.mailers: list[Mailer] = []
        self.hooks: list[OrgHooks] = []

    def telling(self, mailer: Any = None, allow_private: bool = False) -> Telling:
        """A process that tells."""
        assert self.settings.smtp is not None
        assert self.settings.sender is not None
        self.mailers.append(Mailer(self.settings.smtp, self.settings.sender, self.settings.public_url))
        self.hooks.append(OrgHooks(allow_private))
        return Telling(self.ledger, self.settings, mailer or self.mailers[-1], self.hooks[-1], 10 * MINUTE_MS)

    async def stage(self, number: int = 0, stage: str = "warn", org: str = "acme") -> None:
        await self.ledger.notices.note(
            {"event": event_id(org, stage, str(number)), "type": "stage", "at": "2026-11-22T10:00:00Z", "org": org,
             "stage": stage, "tier": "org", "project": None, "user": None, "left": "12.5", "until": None}
        )  # fmt: skip


@asynccontextmanager
async def open_site(client: Client, office: PostOffice, **given: Any) -> AsyncIterator[Site]:
    wanted = given.pop("wanted", Preferences(email=(OPS,)))
    site = Site(client, office, **given)
    await site.ledger.accounts.grant("acme", 100 * CREDIT, key="first", who="t")
    await site.preferences.put("acme", wanted, who="t")
    await site.telling().once()  # what was before is no news
    await site.ledger.notices.lead("nobody", 0)
    client_: Any = client
    await client_.delete("credits:notifier")
    yield site
    for one in site.mailers:
        one.close()
    for hooks in site.hooks:
        await hooks.close()


@pytest.fixture
async def site(client: Client, office: PostOffice, later: Later) -> AsyncIterator[Site]:
    async with open_site(client, office) as site:
        yield site


async def test_an_event_is_told_once_in_words(site: Site, office: PostOffice, later: Later) -> None:
    telling = site.telling()
    for _ in range(3):
        await site.stage()
        assert await telling.once()
        later.ms += 61 * MINUTE_MS
    (mail,) = office.mail
    assert (mail["To"], mail["X-To"], mail["Subject"]) == (OPS, OPS, "Org acme runs out of credits soon")
    assert mail["From"] == "Apolo Credits <credits@example.com>"
    assert mail["Auto-Submitted"] == "auto-generated"
    plain, page = (part.get_content() for part in mail.iter_parts())
    assert "12.5 credits are left" in plain
    assert "https://credits.example.com/console/orgs/acme/notices" in plain
    assert "<li>" in page
    assert "12.5 credits are left" in page


async def test_of_several_enforcers_one_tells(site: Site, office: PostOffice) -> None:
    await site.stage()
    done = await asyncio.gather(*(site.telling().once() for _ in range(5)))
    assert done.count(True) == 1
    assert len(office.mail) == 1


async def test_a_server_that_says_later_is_asked_later(site: Site, office: PostOffice, later: Later) -> None:
    office.says = [("RCPT", "451 4.7.1 Greylisted, try again"), ("DATA", "451 4.3.0 Busy")]
    await site.stage()
    telling = site.telling()
    for expected in (0, 0, 0, 1, 1):
        await telling.once()
        assert len(office.mail) == expected
        later.ms += 11 * MINUTE_MS
    assert office.asked == 3


async def test_an_address_that_is_refused_is_given_up_and_others_are_told(site: Site, office: PostOffice) -> None:
    await site.preferences.put("acme", Preferences(email=("gone@example.org", OPS)), who="t")
    office.rejected = {"gone@example.org"}
    await site.stage()
    telling = site.telling()
    await telling.once()
    await telling.once()
    assert [mail["To"] for mail in office.mail] == [OPS]
    assert office.asked == 2
    client: Any = site.ledger.client
    assert await client.hlen("credits:{notices}:waiting") == 0


@pytest.mark.parametrize(("cut", "copies"), [("cut", 1), ("take and cut", 2)])
async def test_a_connection_that_is_cut(site: Site, office: PostOffice, later: Later, cut: str, copies: int) -> None:
    office.says = [("DATA", cut)]
    await site.stage()
    telling = site.telling()
    for _ in range(3):
        await telling.once()
        later.ms += 11 * MINUTE_MS
    assert len(office.mail) == copies
    assert len(set(office.ids())) == 1  # who got it twice can tell


async def test_a_slow_server_holds_up_nobody_for_long(client: Client, office: PostOffice, later: Later) -> None:
    async with open_site(client, office, timeout_seconds=0.2) as site:
        office.says = [("DATA", "wait")]
        await site.stage()
        telling = site.telling()
        async with asyncio.timeout(5):
            await telling.once()
        assert office.mail == []
        office.released.set()
        later.ms += 11 * MINUTE_MS
        await telling.once()
        assert len(office.mail) == 1


async def test_killed_between_sending_and_noting_it_makes_one_duplicate_at_most(
    site: Site, office: PostOffice, later: Later
) -> None:
    class Dying:
        async def send(self, notice: Any) -> None:
            await site.mailers[-1].send(notice)
            raise asyncio.CancelledError  # nothing is written after this

    await site.stage()
    with pytest.raises(asyncio.CancelledError):
        await site.telling(Dying()).once()
    assert len(office.mail) == 1
    client: Any = site.ledger.client
    await client.delete("credits:notifier")  # its lease runs out
    telling = site.telling()
    await telling.once()
    assert len(office.mail) == 1  # it may still be in somebody's hands
    later.ms += 3 * MINUTE_MS
    for _ in range(3):
        await telling.once()
    assert len(office.mail) == 2
    assert len(set(office.ids())) == 1


async def test_stages_that_flap_make_no_flood(site: Site, office: PostOffice, later: Later) -> None:
    telling = site.telling()
    for number in range(20):
        await site.stage(number, "warn" if number % 2 else "ok")
        await telling.once()
        later.ms += MINUTE_MS
    assert len(office.mail) == 1
    later.ms += 60 * MINUTE_MS
    await telling.once()
    await telling.once()
    assert len(office.mail) == 2
    assert plain_of(office.mail[1]).count("2026-11-22T10:00:00Z") == 19
    assert office.subjects()[1] == "Org acme runs out of credits soon"  # as it is now


async def test_a_flood_within_the_hour_is_cut(site: Site, office: PostOffice, later: Later) -> None:
    telling = site.telling()
    for number in range(80):
        await site.stage(number)
        if not number:
            await telling.once()
    later.ms += 61 * MINUTE_MS
    await telling.once()
    assert "... and 29 more" in plain_of(office.mail[1])


async def test_after_a_day_it_is_given_up(site: Site, office: PostOffice, later: Later) -> None:
    office.says = [("RCPT", "451 later")] * 100
    await site.stage()
    telling = site.telling()
    for _ in range(40):
        await telling.once()
        later.ms += 60 * MINUTE_MS
    client: Any = site.ledger.client
    assert await client.hlen("credits:{notices}:waiting") == 0
    assert 20 < office.asked < 35
    later.ms += GIVE_UP_MS
    await site.stage(7)
    await telling.once()


async def test_whom_the_org_takes_off_is_told_no_more(site: Site, office: PostOffice, later: Later) -> None:
    office.says = [("RCPT", "451 later")]
    await site.stage()
    telling = site.telling()
    await telling.once()
    await site.preferences.put("acme", Preferences(), who="t")
    later.ms += 11 * MINUTE_MS
    await site.stage(2, "block")
    await telling.once()
    assert office.mail == []
    await site.stage(3, org="globex")  # an org that says nothing
    await telling.once()
    assert office.mail == []


async def test_purchases_refunds_and_top_ups_are_told_from_the_journal(
    site: Site, office: PostOffice, later: Later
) -> None:
    purchases = Purchases(site.ledger.client, site.ledger.scripts)
    order = await purchases.order("acme", 10 * CREDIT, 500, "usd", key="k", who="token:ann")
    telling = site.telling()
    await purchases.paid(Paid("acme", order.id, "pi_1", 500, "usd"))
    await telling.once()
    await purchases.returned(Reversal("acme", order.id, "pi_1", "re_1", "refund", 1, 250, "usd"))
    await telling.once()
    assert office.subjects() == ["Org acme: 10 credits bought", "Org acme: a payment was returned"]
    bodies = [plain_of(mail) for mail in office.mail]
    assert "token:ann" in bodies[0]
    assert "5 credits were taken back from org acme: refund re_1" in bodies[1]
    later.ms += 2 * MINUTE_MS
    await site.telling().once()
    assert len(office.mail) == 2


async def test_runway_is_told_once_until_it_was_long_again(site: Site, office: PostOffice, later: Later) -> None:
    client: Any = site.ledger.client
    telling = site.telling()

    async def burn(micro: int) -> None:
        await client.hset("credits:{acme}:org", "burn:s", micro)
        await telling.once()
        await telling.once()
        later.ms += 61 * MINUTE_MS

    await burn(CREDIT)  # 100 hours
    assert office.mail == []
    await burn(10 * CREDIT)
    await burn(9 * CREDIT)
    await burn(4 * CREDIT)  # 25 hours: hardly more than 24
    await burn(10 * CREDIT)
    assert office.subjects() == ["Org acme runs out of credits soon"]
    await burn(CREDIT)
    await burn(20 * CREDIT)
    assert len(office.mail) == 2
    assert "what runs uses 20 credits an hour, and all of it is paid for until " in plain_of(office.mail[1])


async def test_budgets_are_told_of_at_80_and_100_per_cent_of_each_period(
    site: Site, office: PostOffice, later: Later
) -> None:
    client: Any = site.ledger.client
    telling = site.telling()
    await site.ledger.budgets.put("acme", "vision", None, 10 * CREDIT, who="t", period="total")
    (state,) = await site.ledger.budgets.states("acme")
    for spent in (5, 8, 9, 10, 11):
        await client.hset("credits:{acme}:budgetspent", f"{state.budget.id}\x1f{state.starts_us}", spent * CREDIT)
        await telling.once()
        await telling.once()
        later.ms += 61 * MINUTE_MS
    assert office.subjects() == ["Org acme: 80 % of a budget is used", "Org acme: 100 % of a budget is used"]
    assert "The total budget of project vision has 2 of 10 credits left." in plain_of(office.mail[0])


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
@pytest.mark.parametrize("known", [True, False])
async def test_mail_goes_over_tls_to_a_server_with_a_good_certificate(
    client: Client, tmp_path: Path, later: Later, mode: str, known: bool
) -> None:
    cert, key = make_pair(tmp_path, ["127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    async with post_office(context, mode) as office:
        login: dict[str, Any] = {"user": office.login[0], "password": Secret(office.login[1])}
        async with open_site(client, office, tls=mode, **login) as site:
            telling = site.telling()
            if known:
                site.mailers[-1]._trust = ssl.create_default_context(cafile=str(cert))
            await site.stage()
            await telling.once()
            assert len(office.mail) == int(known)


def test_nothing_that_happened_gets_into_a_header() -> None:
    evil = "x\r\nBcc: all@example.org\r\n\r\n<script>alert(1)</script>"
    for kind in ("stage", "top_up", "purchase", "refund", "budget", "runway", "test", "else"):
        event = {"type": kind, "at": evil, "org": evil, "stage": evil, "reason": evil, "credits": evil, "project": evil,
                 "user": evil, "outcome": evil, "buyer": evil, "percent": evil, "who": evil}  # fmt: skip
        said = words(evil, [event], 0, evil)
        assert "\n" not in said.subject
        assert "\r" not in said.subject + said.text
        assert "<script>" not in said.page


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("ops@example.org", True), ("a.b+c@mail.example.co.uk", True), ("ops@example", False), ("ops", False),
        ("a@b@example.org", False), ("ops@example.org\r\nBcc: x@y.zz", False), ("Ops <ops@example.org>", False),
        ("ops@-example.org", False), ("ops@10.0.0.1", False), ("öps@example.org", False), (".a@example.org", False),
        ("a" * 65 + "@example.org", False), ("", False), ("a b@example.org", False), ("a,b@example.org", False),
    ],
)  # fmt: skip
def test_addresses(address: str, good: bool) -> None:
    assert is_address(address) is good


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("8.8.8.8", True), ("2606:4700::1", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("::1", False), ("::ffff:10.0.0.1", False), ("fe80::1%eth0", False), ("64:ff9b::7f00:1", False),
        ("0.0.0.0", False), ("169.254.169.254", False),
        ("2002:7f00:1::", False), ("224.0.0.1", False), ("100.64.0.1", False), ("x", False),
        # What a network may translate or route to machines of its own, and what is nobody's.
        ("64:ff9b:1::7f00:1", False), ("fec0::1", False), ("::7f00:1", False), ("::ffff:0:7f00:1", False),
        ("5f00::1", False), ("fc00::1", False), ("ff02::1", False), ("2001:db8::1", False),
    ],
)  # fmt: skip
def test_public_addresses(address: str, good: bool) -> None:
    assert is_public(address) is good


class Receiver:
    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 200

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.status, headers={"Location": "http://127.0.0.1:1/"})


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, str]]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.take)
    async with TestServer(app) as server:
        yield receiver, str(server.make_url("/hook"))


async def test_an_orgs_webhook_gets_each_event_signed_until_it_takes_it(
    client: Client, office: PostOffice, later: Later, receiver: tuple[Receiver, str]
) -> None:
    taker, url = receiver
    wanted = Preferences(kinds=("stage",), webhook=Hook(url, "s" * 16))
    async with open_site(client, office, wanted=wanted) as site:
        telling = site.telling(allow_private=True)
        taker.status = 307
        await site.stage(1)
        await site.stage(2, "block")
        await telling.once()
        taker.status = 200
        later.ms += 11 * MINUTE_MS
        for _ in range(3):
            await telling.once()
        assert len(taker.got) == 4
        (headers, body) = taker.got[-1]
        assert headers[EVENT] == json.loads(body)["event"]
        seconds = int(headers[SIGNATURE].split(",")[0].removeprefix("t="))
        assert headers[SIGNATURE] == sign("s" * 16, body, seconds)
        assert {json.loads(body)["stage"] for _, body in taker.got[2:]} == {"warn", "block"}


@pytest.mark.parametrize("url", ["http://example.org/", "https://127.0.0.1/", "https://[::1]/", "https://2130706433/",
                                 "https://0x7f000001/", "https://localhost:1/", "https://127.1/"])  # fmt: skip
async def test_webhooks_of_orgs_reach_nothing_private(url: str) -> None:
    hooks = OrgHooks(allow_private=False)
    try:
        said = await hooks.send(Hook(url, "s" * 16), b'{"event": "1"}')
        assert "public" in said or "https" in said, said
    finally:
        await hooks.close()


async def test_preferences_over_http(client: Client) -> None:
    ledger = Ledger(client, T0)
    await ledger.accounts.grant("acme", CREDIT, key="k", who="t")
    tokens = {}
    for role, org in (("admin", None), ("owner", "acme"), ("viewer", "acme"), ("scheduler", None), ("other", "globex")):
        tokens[role] = (await ledger.tokens.create("owner" if role == "other" else role, org))[1]
    given_settings = Settings(path=Path("settings.yaml"), sources=())
    path = "/v1/orgs/acme/notices"
    async with TestClient(TestServer(build_app(ledger, given_settings))) as http:

        async def call(method: str, where: str, body: Any = None, role: str = "owner") -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {tokens[role]}"}
            async with http.request(method, where, json=body, headers=headers) as response:
                return response.status, await response.json(content_type=None)

        status, shape = await call("GET", path, role="viewer")
        assert (status, shape["email"], shape["webhook"], shape["runway_hours"]) == (200, [], None, 24.0)
        assert (await call("POST", f"{path}/test"))[0] == 409
        body = {
            "email": [OPS],
            "kinds": ["stage"],
            "runway_hours": 48,
            "webhook": {"url": "https://hooks.example.org/x"},
        }
        status, shape = await call("PUT", path, body)
        assert status == 200
        assert shape["webhook"]["secret"].startswith("whs_")
        assert (await call("PUT", path, body))[1]["webhook"] == {"url": "https://hooks.example.org/x", "secret": None}
        status, shape = await call("GET", path)
        assert (shape["email"], shape["kinds"], shape["webhook"]["secret"]) == ([OPS], ["stage"], None)
        status, said = await call("POST", f"{path}/test")
        # No mail server is set up in these settings, so that only the webhook is told.
        assert (status, said["email"], said["webhook"]) == (202, [], "https://hooks.example.org/x")
        assert (await call("PUT", path, {"email": [OPS]}))[0] == 200
        status, said = await call("POST", f"{path}/test")
        assert (status, said["code"], "no mail server" in said["detail"]) == (409, "nobody_to_tell", True)
        for wrong in (
            {"email": ["x"]}, {"email": [OPS, OPS.upper()]}, {"email": [OPS] * 21}, {"kinds": ["all"]}, {"more": 1},
            {"runway_hours": -1}, {"webhook": {"url": "http://example.org/"}}, {"webhook": {"url": "https://10.0.0.1/"}},
            {"webhook": {"url": "https://a:b@example.org/"}}, {"webhook": {"url": "https://e.org/", "secret": "short"}},
            {"webhook": {"url": "ftp://example.org/"}}, {"webhook": {"url": "https://[/"}}, {"email": "x"},
        ):  # fmt: skip
            assert (await call("PUT", path, wrong))[0] == 422, wrong
        for role, seen, edited in (
            ("viewer", 200, 403),
            ("scheduler", 403, 403),
            ("other", 403, 403),
            ("admin", 200, 200),
        ):
            assert (await call("GET", path, role=role))[0] == seen
            assert (await call("PUT", path, body, role))[0] == edited
        assert (await call("PUT", "/v1/orgs/nobody/notices", body, "admin"))[0] == 404
        tags = []
        for condition, hours, expected in (("", 1, 200), ("", 2, 200), (0, 3, 412), (1, 4, 200), ("", 4, 200)):
            headers = {"Authorization": f"Bearer {tokens['owner']}"}
            headers |= {} if condition == "" else {"If-Match": tags[condition]}
            async with http.put(path, json={**body, "runway_hours": hours}, headers=headers) as response:
                assert response.status == expected
                tags.append(response.headers.get("ETag", ""))
        assert len({*tags[:2], tags[3]}) == 3
        assert tags[3] == tags[4]  # nothing was changed
        async with http.get(path, headers=headers) as response:
            assert (response.headers["ETag"], (await response.json())["runway_hours"]) == (tags[4], 4)
    entries, _ = await ledger.accounts.journal("acme")
    noted = [entry for entry in entries if entry["type"] == "notices"]
    assert noted[0]["email"] == [OPS]
    assert "whs_" not in json.dumps(noted)


async def test_preferences_are_checked_where_they_are_kept(client: Client) -> None:
    preferences = NoticePreferences(client, Ledger(client, T0).scripts)
    with pytest.raises(InvalidRequest, match="email"):
        await preferences.put("acme", Preferences(email=("x",)), who="t")


async def test_an_enforcer_tells_by_itself(client: Client, valkey_url: str, office: PostOffice, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        f"redis: {{url: '{valkey_url}'}}\nenforcer: {{listen: '127.0.0.1:0'}}\nmetering: {{interval_seconds: 0.1}}\n"
        f"notices:\n  from: credits@example.com\n  smtp: {{host: 127.0.0.1, port: {office.port}, tls: none}}\n"
    )
    ledger = Ledger(client, T0)
    await NoticePreferences(client, ledger.scripts).put("acme", Preferences(email=(OPS,)), who="t")
    async with enforcing(load_settings(path, {})):
        await ledger.accounts.upsert("acme", who="t")  # with no credits: its work is refused
        async with asyncio.timeout(30):
            while not office.mail:  # noqa: ASYNC110 - another task sends it
                await asyncio.sleep(0.02)
    assert office.subjects() == ["Org acme has nothing left for new work"]


class Collected:
    """Takes notices in place of a mail server, or says later."""

    def __init__(self) -> None:
        self.got: list[Notice] = []
        self.is_up = True

    async def send(self, notice: Notice) -> None:
        if not self.is_up:
            raise NotSent("421 later")
        self.got.append(notice)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_every_event_is_told_and_twice_only_by_who_was_killed(
    data: st.DataObject, valkey_url: str, later: Later
) -> None:
    async with connect(valkey_url, None) as client:
        await client.flushall()
        async with open_site(client, PostOffice(), wanted=Preferences(email=(OPS, "b@example.org"))) as site:
            mail, kills, events = Collected(), 0, 0
            acts = st.sampled_from(["event", "event", "round", "two rounds", "kill", "later", "down", "up"])
            for act in data.draw(st.lists(acts, max_size=25), "acts"):
                if act == "event":
                    events += 1
                    for _ in range(data.draw(st.integers(1, 2), "times")):
                        await site.stage(events, "warn")
                elif act == "round":
                    await site.telling(mail).once()
                elif act == "two rounds":
                    await asyncio.gather(*(site.telling(mail).once() for _ in range(2)))
                elif act == "kill":
                    points = [data.draw(st.integers(1, 25), "point")]
                    telling = site.telling(Dying(mail, points))
                    telling._notices = Dying(telling._notices, points)  # type: ignore[assignment]
                    with suppress(Killed):
                        await telling.once()
                        kills -= 1
                    kills += 1
                elif act == "later":
                    later.ms += data.draw(st.sampled_from([1, 3, 61])) * MINUTE_MS
                else:
                    mail.is_up = act == "up"
                await client.delete("credits:notifier")  # leases of the dead run out
            mail.is_up = True
            for _ in range(4):
                later.ms += 121 * MINUTE_MS
                await site.telling(mail).once()
                await client.delete("credits:notifier")
            for address in (OPS, "b@example.org"):
                messages = {notice.id: notice for notice in mail.got if notice.to == address}
                told = [json.loads(event)["event"] for one in messages.values() for event in one.events]
                assert sorted(told) == sorted(event_id("acme", "warn", str(n + 1)) for n in range(events))
            assert len(mail.got) - len({notice.id for notice in mail.got}) <= 2 * kills
        later.ms = 0
