"""Charges are passed on to the platform once each, whatever fails in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.sources import ApoloSource as ApoloSettings
from config.sources import ChargeBack as ChargeBackSettings
from config.values import Secret
from exporter.app import exporting, run_once
from exporter.books import Books
from exporter.charge_back import ChargeBack
from exporter.rounds import Rounds
from exporter.sources.apolo import ApoloSource
from exporter.sources.base import SourceError
from ledger.charge_back import ChargeBacks, Progress
from ledger.connect import connect
from ledger.model import Kind, Observation, RatePlan, RateTable, Snapshot
from ledger.store import Ledger, open_ledger
from tests.exporter_lab import settings_of
from tests.standins.apolo_api import ApoloApi, token_of
from tests.standins.faults import Fault

pytestmark = pytest.mark.redis

T0 = 1_764_000_000_000_000
MINUTE = 60_000_000
HOUR = 60 * MINUTE


class Crash(BaseException):
    """The process ends here."""


class Time:
    def __init__(self) -> None:
        self.us = T0

    def __call__(self) -> int:
        return self.us


def settings(url: str, **more: Any) -> ApoloSettings:
    back = ChargeBackSettings(interval_seconds=0.01)
    given: dict[str, Any] = {"name": "apolo", "url": url, "token": Secret(token_of("meter")), "charge_back": back}
    return ApoloSettings(**given | {"disks": False, "timeout_seconds": 5.0} | more)


class Lab:
    """A platform, a ledger metered at 1 credit an hour, and what passes charges on."""

    def __init__(self, api: ApoloApi, ledger: Ledger, url: str, time: Time) -> None:
        self.api, self.ledger, self.time = api, ledger, time
        self.given = settings(url)
        self.source = ApoloSource(self.given, time, retry_seconds=0.001)
        self.rounds = Rounds(Books(ledger), self.source, hold_us=0)
        self.back = ChargeBack(ledger, self.given, time, retry_seconds=0.001)

    async def at(self, us: int) -> None:
        """A round as of an instant, and what is due passed on."""
        self.time.us = us
        await self.rounds.round()
        await self.back.once()

    async def restart(self) -> None:
        await self.back.close()
        self.back = ChargeBack(self.ledger, self.given, self.time, retry_seconds=0.001)


@asynccontextmanager
async def lab(url: str) -> AsyncIterator[Lab]:
    api, time = ApoloApi(), Time()
    async with connect(url, None) as client:
        await client.flushall()
    async with open_ledger(url, epoch_us=T0 - 24 * HOUR, clock=time) as ledger, api.serve() as where:
        await ledger.rates.publish(RatePlan("default", ((0, RateTable({"cpu-small": 1_000_000_000})),)))
        one = Lab(api, ledger, where, time)
        try:
            yield one
        finally:
            await one.source.close()
            await one.back.close()


def credits_of(**subjects: str) -> Mapping[tuple[str, str], Decimal]:
    """{("acme", ""): ...} from acme=..., acme__alice=..."""
    return {(name.partition("__")[0], name.partition("__")[2]): Decimal(text) for name, text in subjects.items()}


async def test_full_hours_are_charged_to_the_org_and_to_its_user(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        one.api.add_job(("running", T0), owner="alice")
        one.api.add_job(("running", T0), owner="alice/service-accounts/ci")
        one.api.add_job(("running", T0 + 30 * MINUTE), owner="bob", org="blue")
        await one.at(T0 + 59 * MINUTE)
        assert one.api.spending == {}
        await one.at(T0 + 90 * MINUTE)
        assert credits_of(acme="2", acme__alice="2", blue="0.5", blue__bob="0.5") == one.api.spending
        await one.at(T0 + 120 * MINUTE)
        assert credits_of(acme="4", acme__alice="4", blue="1.5", blue__bob="1.5") == one.api.spending


async def test_what_was_charged_before_it_was_turned_on_is_the_platforms_own(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        one.api.add_job(("running", T0 - 2 * HOUR))
        await one.at(T0 + 30 * MINUTE)
        await one.at(T0 + HOUR)
        assert credits_of(acme="0.5", acme__alice="0.5") == one.api.spending


async def test_an_org_that_comes_later_is_charged_from_its_first_hour(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        one.api.add_job(("running", T0), ("succeeded", T0 + HOUR), org="late")
        await one.at(T0 + HOUR)
        assert credits_of(late="1", late__alice="1") == one.api.spending


async def test_a_late_charge_for_an_hour_that_was_passed_on_is_a_further_charge(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        one.api.add_job(("running", T0))
        await one.at(T0 + HOUR)
        one.api.add_job(("running", T0 + 52 * MINUTE), ("succeeded", T0 + 58 * MINUTE))
        await one.at(T0 + HOUR + MINUTE)
        await one.at(T0 + HOUR + 2 * MINUTE)
        assert credits_of(acme="1.1", acme__alice="1.1") == one.api.spending
        assert len(one.api.postings) == 4, "each has its own key"


async def test_a_charge_that_is_made_and_not_answered_is_not_made_again(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        one.api.add_job(("running", T0))
        one.api.deaf = 1
        with pytest.raises(SourceError, match="cannot be reached"):
            await one.at(T0 + HOUR)
        await one.restart()
        # Before the same charge is repeated, more is due: it goes by itself.
        await one.at(T0 + 2 * HOUR)
        assert credits_of(acme="2", acme__alice="2") == one.api.spending
        assert sorted(amount for _, user, amount in one.api.postings.values() if not user) == ["1", "1"]


async def test_a_crash_between_org_and_user_leaves_neither_out(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        one.api.add_job(("running", T0))
        written = ChargeBacks.put

        async def crash(self: ChargeBacks, org: str, changes: Any, *, durably: bool) -> set[str]:
            if not durably:
                raise Crash
            return await written(self, org, changes, durably=durably)

        with monkeypatch.context() as patched:
            patched.setattr(ChargeBacks, "put", crash)
            with pytest.raises(Crash):
                await one.at(T0 + HOUR)
        assert len(one.api.postings) == 1
        await one.restart()
        await one.back.once()
        assert credits_of(acme="1", acme__alice="1") == one.api.spending


async def test_an_org_or_user_that_the_platform_does_not_have_holds_up_no_other(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        one.api.add_job(("running", T0))
        one.api.add_job(("running", T0), org="gone")
        one.api.unknown = {("gone", ""), ("acme", "alice")}
        with pytest.raises(SourceError, match=r"2 orgs or users cannot be charged: .*404"):
            await one.at(T0 + HOUR)
        assert credits_of(acme="1", gone__alice="1") == one.api.spending
        outstanding = one.back.outstanding
        assert outstanding is not None
        assert (outstanding.orgs, outstanding.users) == (1_000_000, 1_000_000)
        one.api.unknown = set()
        await one.back.once()
        assert credits_of(acme="1", acme__alice="1", gone="1", gone__alice="1") == one.api.spending


async def test_names_stay_themselves_in_addresses(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        for org, owner in (("a/b", "x y"), ("50%", "ä?#"), ("..", "..")):
            one.api.add_job(("running", T0), org=org, owner=owner)
        with pytest.raises(SourceError, match=r"2 orgs or users .* cannot be named in an address"):
            await one.at(T0 + HOUR)
        found = [("50%", ""), ("50%", "ä?#"), ("a/b", ""), ("a/b", "x y")]
        assert sorted(one.api.spending) == found


async def test_a_token_that_may_not_charge_is_told_so(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        one.api.add_job(("running", T0))
        one.api.faults.add(Fault("spending", status=403))
        with pytest.raises(SourceError, match=r"charge_back\.token"):
            await one.at(T0 + HOUR)


async def test_corrections_are_stated_and_never_passed_on(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        job = one.api.add_job(("running", T0))
        await one.at(T0 + HOUR)
        # The platform's own end of the job, told late.
        job.move("succeeded", T0 + 45 * MINUTE)
        await one.at(T0 + 2 * HOUR)
        assert credits_of(acme="1", acme__alice="1") == one.api.spending
        assert one.back.outstanding is not None
        assert one.back.outstanding.refunded == 250_000
        assert one.back.outstanding.orgs == 0


async def test_two_exporters_pass_on_once(valkey_url: str) -> None:
    async with lab(valkey_url) as one:
        await one.at(T0)
        for number in range(5):
            one.api.add_job(("running", T0), org=f"org-{number}")
        one.time.us = T0 + HOUR
        await one.rounds.round()
        other = ChargeBack(one.ledger, one.given, one.time, retry_seconds=0.001)
        await asyncio.gather(one.back.once(), other.once())
        await other.close()
        assert set(one.api.spending.values()) == {Decimal(1)}
        assert len(one.api.spending) == 10


FAULTS = ["none", "none", "deaf", "500", "cut", "crash before", "crash after", "restart"]


@given(
    jobs=st.lists(
        st.tuples(
            st.sampled_from(["acme", "blue"]),
            st.sampled_from(["", "alice", "alice/service-accounts/ci", "bob"]),
            st.integers(0, 5 * HOUR),
            st.integers(0, 5 * HOUR),
            st.integers(0, 6 * HOUR),
        ),
        min_size=1,
        max_size=8,
    ),
    steps=st.lists(st.tuples(st.integers(0, 6 * HOUR), st.sampled_from(FAULTS)), min_size=1, max_size=8),
)
async def test_in_the_end_the_platform_shows_what_the_ledger_charged(
    jobs: list[tuple[str, str, int, int, int]], steps: list[tuple[int, str]], valkey_url: str
) -> None:
    """A job is (org, user, start, end, when it is first listed): many are listed late."""
    async with lab(valkey_url) as one:
        await one.at(T0)
        one.rounds.source = source = _Listed(one.given.name)
        for at, fault in [*sorted(steps), (7 * HOUR, "none"), (7 * HOUR, "none")]:
            one.time.us = taken = T0 + at
            source.snapshot = Snapshot("apolo", "default", taken, _listed(jobs, taken))
            await one.rounds.round()
            await _with_fault(one, fault)
        expected: dict[tuple[str, str], Decimal] = {}
        for org, user, start, end, _ in jobs:
            micro = max(0, end - start) * 1_000_000 // HOUR
            for subject in {(org, ""), (org, user.partition("/")[0])}:
                expected[subject] = expected.get(subject, Decimal(0)) + Decimal(micro) / 1_000_000
        assert {subject: amount for subject, amount in expected.items() if amount} == one.api.spending
        assert one.back.outstanding is not None
        assert one.back.outstanding.orgs == one.back.outstanding.users == 0


class _Listed:
    """A source that gives what it is told to."""

    cluster = "default"

    def __init__(self, name: str) -> None:
        self.name = name
        self.snapshot: Snapshot | None = None

    async def fetch(self, since_us: int | None) -> Snapshot:
        assert self.snapshot is not None
        return self.snapshot

    async def close(self) -> None:
        """Nothing is open."""


def _listed(jobs: list[tuple[str, str, int, int, int]], taken_us: int) -> list[Observation]:
    return [
        Observation(
            id=f"job-{number}", kind=Kind.JOB.value, org=org, project="ml", user=user, resource="cpu-small",
            started_us=T0 + start, ended_us=T0 + end if T0 + end <= taken_us else None,
        )
        for number, (org, user, start, end, first) in enumerate(jobs)
        if T0 + max(start, first) <= taken_us and start < end
    ]  # fmt: skip


async def _with_fault(one: Lab, fault: str) -> None:
    put = ChargeBacks.put
    calls = 0

    async def crashing(
        self: ChargeBacks, org: str, changes: Mapping[str, tuple[Progress, Progress]], *, durably: bool
    ) -> set[str]:
        nonlocal calls
        calls += 1
        if calls == 3 and fault == "crash before":
            raise Crash
        found = await put(self, org, changes, durably=durably)
        if calls == 3 and fault == "crash after":
            raise Crash
        return found

    match fault:
        case "deaf":
            one.api.deaf = 1
        case "500":
            one.api.faults.add(Fault("spending", status=500))
        case "cut":
            one.api.faults.add(Fault("spending", cut=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ChargeBacks, "put", crashing)
        with suppress(SourceError, Crash):
            await one.back.once()
    one.api.deaf, one.api.faults.coming = 0, []
    if fault in ("restart", "crash before", "crash after"):
        await one.restart()


async def test_an_exporter_passes_on_and_shows_what_is_outstanding(valkey_url: str, tmp_path: Path) -> None:
    api, time = ApoloApi(), Time()
    async with connect(valkey_url, None) as client:
        await client.flushall()
    rates = "clusters: {default: {presets: {cpu-small: {credits_per_hour: 1}}}}"
    async with api.serve() as url:
        given = settings_of(tmp_path, valkey_url, settings(url), rates=rates)
        assert all(result.ok for result in await run_once(given, time))
        api.add_job(("running", T0))
        api.add_job(("running", T0), org="gone")
        api.unknown = {("gone", "")}
        time.us = T0 + 90 * MINUTE
        results = await run_once(given, time)
        assert [result.ok for result in results] == [True, False]
        assert "1 orgs or users cannot be charged" in str(results[1].error)
        async with exporting(given, time) as exporter, aiohttp.ClientSession() as session:
            async with asyncio.timeout(10):
                text = ""
                while "credits_charge_back_pending" not in text:
                    async with session.get(f"{exporter.url}/metrics") as response:
                        text = await response.text()
    assert 'credits_charge_back_pending{of="orgs",source="apolo"} 1.0' in text
    assert 'credits_charge_back_pending{of="users",source="apolo"} 0.0' in text
    assert 'credits_charge_back_refunded{source="apolo"} 0.0' in text
    assert credits_of(acme="1", acme__alice="1", gone__alice="1") == api.spending
