"""The exporter as a whole: one round, the rounds that follow, what it serves, and what it survives."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from config.problems import ConfigError
from config.rates import load_rates
from config.settings import AdmissionSettings, ExporterSettings
from config.sources import JsonSource
from config.values import Address
from exporter.app import exporting, run_once, serve
from exporter.books import Books
from exporter.retire import retire_idle, retire_old
from exporter.server import CannotListen
from ledger import keys
from ledger.admission import AdmissionRequest
from ledger.clock import now_us
from ledger.connect import Client
from ledger.store import Ledger, open_ledger
from ledger.verify import verify
from tests.exporter_lab import HOUR, RATES, T0, FileCluster, get, scrape, settings_of, spent, until, value

pytestmark = pytest.mark.redis
ANN = {"cluster": "default", "org": "acme", "project": "vision", "user": "ann"}


@pytest.fixture
def cluster(tmp_path: Path) -> FileCluster:
    return FileCluster(tmp_path / "cluster.json")


@pytest.fixture
async def ledger(client: Client, valkey_url: str) -> AsyncIterator[Ledger]:
    async with open_ledger(valkey_url, epoch_us=T0 - HOUR) as opened:
        yield opened


async def test_one_round_charges_all_that_the_sources_report(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a", preset="large")
    cluster.show(T0 + HOUR)
    results = await run_once(settings_of(tmp_path, valkey_url, cluster.source()))
    assert [(r.source, r.ok) for r in results] == [("file", True)]
    assert await spent(ledger) == {("acme", "default", "vision", "ann", "job", "large", ""): 40_500_000}
    assert (await verify(ledger))["ok"]


async def test_one_round_says_which_source_failed_and_charges_the_others(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    cluster.show(T0 + HOUR)
    broken = JsonSource(name="broken", cluster="default", path=tmp_path / "missing.json")
    results = {r.source: r for r in await run_once(settings_of(tmp_path, valkey_url, broken, cluster.source()))}
    assert results["file"].ok
    assert "missing.json" in str(results["broken"].error)
    assert sum((await spent(ledger)).values()) == 1_000_000


async def test_the_same_round_twice_charges_once(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    cluster.show(T0 + HOUR)
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    for _ in range(2):
        assert all(r.ok for r in await run_once(settings))
    assert sum((await spent(ledger)).values()) == 1_000_000


async def test_an_older_snapshot_changes_nothing_that_a_newer_one_said(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    for taken in (T0 + 2 * HOUR, T0 + HOUR):
        cluster.show(taken)
        await run_once(settings)
    assert sum((await spent(ledger)).values()) == 2_000_000


async def test_a_scrape_shows_the_ledgers_figures(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    await ledger.accounts.grant("acme", 100_000_000, key="k1", who="t")
    await ledger.accounts.grant("acme", 5_123_457, key="k2", who="t", source="gift")
    await ledger.accounts.upsert("acme", who="t", credit_line_micro=20_000_000)
    await ledger.budgets.put("acme", "vision", None, 7_000_000, who="t", period="total")
    cluster.job("a")
    cluster.job("b", user="bob", preset="large", app="vllm", kind="app")
    cluster.job("c", preset="no-such-preset")
    volume = {"id": "v", "org": "acme", "project": "vision", "user": None, "storage_class": "default"}
    cluster.storage.append({**volume, "bytes": 2_000_000_000})
    cluster.show(T0 + HOUR)
    async with exporting(settings_of(tmp_path, valkey_url, cluster.source())) as exporter:
        await until(lambda: _is_ready(exporter.url))
        series = await scrape(exporter.url)
    app = {"kind": "app", "resource": "large", "app": "vllm"}
    assert value(series, "credits_spent_total", **ANN, kind="job", resource="small", app="") == 1
    assert value(series, "credits_spent_total", **{**ANN, "user": "bob"}, **app) == 43
    assert value(series, "credits_granted_total", org="acme", source="gift") == Decimal("5.123457")
    assert value(series, "credits_granted_total", org="acme", source="provision") == 100
    assert value(series, "credits_granted_in_use", org="acme") == Decimal("105.123457")
    assert value(series, "credits_overdraft", org="acme") == 0
    assert value(series, "credits_credit_line", org="acme") == 20
    held = value(series, "credits_held", org="acme")
    assert held == Decimal(44) / 4  # a quarter of an hour of what runs; volumes are never refused
    available = value(series, "credits_available", org="acme")
    assert held is not None
    assert available == Decimal("105.123457") - 44 - held
    assert value(series, "credits_budget_limit", org="acme", project="vision", user="", period="total") == 7
    assert value(series, "credits_budget_remaining", org="acme", project="vision", user="") == 7 - 44 - held
    assert value(series, "credits_burn_rate", cluster="default", org="acme", project="vision") == Decimal("44.0002")
    assert value(series, "credits_rate", cluster="default", kind="job", resource="large") == Decimal("40.5")
    assert value(series, "credits_rate", kind="storage", resource="default") == Decimal("0.0001")
    assert value(series, "credits_workloads", kind="job", resource="small") == 1
    assert value(series, "credits_storage_bytes", org="acme", storage_class="default") == 2_000_000_000
    assert value(series, "credits_unpriced_workloads", kind="job", resource="no-such-preset") == 1
    assert value(series, "credits_unbillable_workloads_total", source="file", reason="unpriced") == 1
    assert value(series, "credits_source_up", source="file") == 1
    assert value(series, "credits_ledger_up") == 1
    assert value(series, "credits_config_last_reload_successful") == 1
    assert value(series, "credits_exhaustion_timestamp_seconds", org="acme") is not None
    assert value(series, "credits_ledger_epoch_timestamp_seconds") == (T0 - HOUR) / 1_000_000


async def test_an_org_without_limits_has_no_balance_that_could_run_out(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    await ledger.accounts.upsert("acme", who="t", unlimited=True)
    cluster.job("a")
    cluster.show(T0 + HOUR)
    async with exporting(settings_of(tmp_path, valkey_url, cluster.source())) as exporter:
        await until(lambda: _is_ready(exporter.url))
        series = await scrape(exporter.url)
    assert value(series, "credits_spent_total", **ANN, resource="small") == 1
    for name in ("credits_available", "credits_granted_in_use", "credits_overdraft", "credits_credit_line"):
        assert value(series, name, org="acme") is None


async def test_holds_are_shown_until_their_work_is_metered(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    await ledger.accounts.grant("acme", 100_000_000, key="k1", who="t")
    await ledger.rates.publish(load_rates(settings_of(tmp_path, valkey_url).rates)["default"])
    for workload in ("a", "b"):
        asked: dict[str, Any] = {
            "cluster": "default",
            "org": "acme",
            "project": "vision",
            "user": "ann",
            "preset": "small",
        }
        assert (await ledger.admissions.admit(AdmissionRequest(workload_id=workload, **asked))).allowed
    cluster.job("a", started_us=now_us() - HOUR)
    cluster.show(now_us())
    async with exporting(settings_of(tmp_path, valkey_url, cluster.source())) as exporter:
        await until(lambda: _shows(exporter.url, "credits_holds", 1, org="acme"))
        assert value(await scrape(exporter.url), "credits_orphan_holds", org="acme") == 0
        # Nothing makes a hold for what is metered already, but if something did, it would be seen.
        client: Any = ledger.client
        await client.delete(keys.of_org("acme").metered)
        await ledger.admissions.admit(AdmissionRequest(workload_id="a", **asked))
        await until(lambda: _shows(exporter.url, "credits_orphan_holds", 1, org="acme"))


async def test_totals_follow_the_snapshots(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    cluster.show(T0 + HOUR)
    async with exporting(settings_of(tmp_path, valkey_url, cluster.source())) as exporter:
        await until(lambda: _shows(exporter.url, "credits_spent_total", 1))
        cluster.show(T0 + 3 * HOUR)
        await until(lambda: _shows(exporter.url, "credits_spent_total", 3))


async def test_a_broken_source_stops_no_other_and_is_told_once(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cluster.job("a")
    cluster.show(T0 + HOUR)
    other = FileCluster(tmp_path / "other.json")
    settings = settings_of(tmp_path, valkey_url, other.source("broken"), cluster.source())
    async with exporting(settings) as exporter:
        await until(lambda: _at_least(exporter.url, 3, "credits_source_failed_rounds", source="broken"))
        series = await scrape(exporter.url)
        assert value(series, "credits_source_up", source="broken") == 0
        assert value(series, "credits_source_up", source="file") == 1
        assert value(series, "credits_spent_total", **ANN) == 1
        told = [r for r in caplog.records if "other.json" in r.getMessage()]
        assert len(told) == 1
        other.show(T0 + HOUR)
        await until(lambda: _shows(exporter.url, "credits_source_up", 1, source="broken"))
        await until(lambda: any("works again" in r.getMessage() for r in caplog.records))


async def test_a_slow_source_delays_no_other(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    cluster.show(T0 + HOUR)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow = JsonSource(name="slow", cluster="default", command=("/bin/cat", str(gate)), timeout_seconds=60)
    async with exporting(settings_of(tmp_path, valkey_url, slow, cluster.source())) as exporter:
        await until(lambda: _shows(exporter.url, "credits_source_up", 1, source="file"))
        status, text, _ = await get(f"{exporter.url}/-/ready")
        assert (status, text) == (503, "Not ready: source slow was not asked yet\n")
        cluster.show(T0 + 2 * HOUR)
        await until(lambda: _spent_is(ledger, 2_000_000))
    # Left while the slow source was still being asked: it was given up.


async def test_totals_are_not_shown_before_each_source_was_tried(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    cluster.show(T0 + HOUR)
    await run_once(settings_of(tmp_path, valkey_url, cluster.source()))
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    slow = JsonSource(name="slow", cluster="default", command=("/bin/cat", str(gate)), timeout_seconds=60)
    async with exporting(settings_of(tmp_path, valkey_url, slow)) as exporter:
        series = await scrape(exporter.url)
        assert value(series, "credits_spent_total") is None
        assert value(series, "credits_available") is None


async def test_the_ledger_away_is_shown_and_caught_up(tmp_path: Path, make_server: Any, cluster: FileCluster) -> None:
    server = make_server()
    cluster.job("a")
    cluster.show(T0 + HOUR)
    async with exporting(settings_of(tmp_path, server.url, cluster.source())) as exporter:
        await until(lambda: _shows(exporter.url, "credits_spent_total", 1))
        server.kill9()
        cluster.show(T0 + 5 * HOUR)
        await until(lambda: _shows(exporter.url, "credits_ledger_up", 0), 40)
        assert value(await scrape(exporter.url), "credits_spent_total", **ANN) == 1
        assert (await get(f"{exporter.url}/-/ready"))[0] == 503
        assert (await get(f"{exporter.url}/-/healthy"))[0] == 200
        server.start()
        await until(lambda: _shows(exporter.url, "credits_spent_total", 5), 40)
        await until(lambda: _shows(exporter.url, "credits_ledger_up", 1))
    async with open_ledger(server.url) as ledger:
        assert (await verify(ledger))["ok"]


async def test_counters_go_on_after_a_restart(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    cluster.job("c", preset="no-such-preset")
    cluster.job("d", org=None)
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    seen = []
    for number in range(3):
        if number == 2:
            cluster.job("e", preset="no-such-preset")
            cluster.job("f", org=None)
        cluster.show(T0 + (number + 1) * HOUR)
        async with exporting(settings) as exporter:
            await until(lambda: _is_ready(exporter.url))
            seen.append(await scrape(exporter.url))
    for number, series in enumerate(seen):
        assert value(series, "credits_spent_total", **ANN, resource="small") == number + 1
        for reason in ("unpriced", "no_org"):
            counted = value(series, "credits_unbillable_workloads_total", source="file", reason=reason)
            assert counted == (2 if number == 2 else 1), "what was counted before a restart is not counted again"


async def test_what_expired_does_not_fall_when_a_grant_that_is_over_is_corrected(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    async with open_ledger(valkey_url, epoch_us=T0 - HOUR, clock=lambda: T0) as then:
        await then.accounts.grant("acme", 10_000_000, key="k", who="t", expires_us=T0 + HOUR)
    cluster.show(T0 + HOUR)
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    for withdrawn in (0, 4):
        async with exporting(settings) as exporter:
            await until(lambda: _is_ready(exporter.url))
            series = await scrape(exporter.url)
        assert value(series, "credits_expired_total", org="acme") == 10
        assert value(series, "credits_granted_total", org="acme", source="provision") == 10
        assert value(series, "credits_withdrawn_total", org="acme") == withdrawn
        await ledger.corrections.correct("acme", -4_000_000, corrects="k", key="c", reason="a mistake", who="t")
    assert (await ledger.accounts.balance("acme")).expired_micro == 6_000_000


async def test_an_edited_rate_counts_from_then_on_and_a_bad_one_changes_nothing(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    cluster.show(T0 + HOUR)
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    rate = {"kind": "job", "resource": "large"}
    async with exporting(settings) as exporter, aiohttp.ClientSession() as session:
        await until(lambda: _shows(exporter.url, "credits_rate", "40.5", **rate))
        settings.rates.write_text(RATES.replace("40.5", "50"))
        await until(lambda: _shows(exporter.url, "credits_rate", 50, **rate))
        settings.rates.write_text(RATES.replace("40.5", "-1"))
        async with session.post(f"{exporter.url}/-/reload") as answer:
            assert answer.status == 500
            assert "negative" in await answer.text()
        series = await scrape(exporter.url)
        assert value(series, "credits_config_last_reload_successful") == 0
        assert value(series, "credits_rate", **rate) == 50
        settings.rates.write_text(RATES.replace("40.5", "60"))
        async with session.put(f"{exporter.url}/-/reload") as answer:
            assert answer.status == 200
        await until(lambda: _shows(exporter.url, "credits_rate", 60, **rate))
        async with session.get(f"{exporter.url}/-/reload") as answer:
            assert answer.status == 405
        plan = (await ledger.rates.read("default"))[1]
        assert plan is not None
        assert [t.presets["large"] for _, t in plan.steps] == [40_500_000_000, 50_000_000_000, 60_000_000_000]


async def test_sighup_reads_the_rates_again(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cluster.show(T0)
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(settings, stop))
    await until(lambda: any("metrics at" in r.getMessage() for r in caplog.records))
    await until(lambda: signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL)
    settings.rates.write_text(RATES.replace("40.5", "41"))
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: _plan_has(ledger, 41_000_000_000))
    stop.set()
    await serving
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


async def test_bad_rates_at_a_later_start_leave_the_last_good_ones_in_force(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.job("a", preset="large")
    cluster.show(T0 + HOUR)
    await run_once(settings_of(tmp_path, valkey_url, cluster.source()))
    cluster.show(T0 + 2 * HOUR)
    bad = settings_of(tmp_path, valkey_url, cluster.source(), rates="clusters: {default: {presets: 1}}")
    assert all(r.ok for r in await run_once(bad))
    assert any("rates.yaml:1" in r.getMessage() and "last good" in r.getMessage() for r in caplog.records)
    assert sum((await spent(ledger)).values()) == 81_000_000
    async with exporting(bad) as exporter:
        assert value(await scrape(exporter.url), "credits_config_last_reload_successful") == 0


async def test_bad_rates_at_the_start_are_refused_where_there_never_were_good_ones(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    settings = settings_of(tmp_path, valkey_url, cluster.source(), rates="clusters: {default: {presets: 1}}")
    with pytest.raises(ConfigError, match=r"rates\.yaml:1"):
        await run_once(settings)


async def test_a_cluster_without_rates_is_told_and_costs_nothing(
    tmp_path: Path, valkey_url: str, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    other = FileCluster(tmp_path / "hpc.json", "hpc")
    other.job("a")
    other.show(T0 + HOUR)
    assert all(r.ok for r in await run_once(settings_of(tmp_path, valkey_url, other.source())))
    assert sum((await spent(ledger)).values()) == 0
    assert any("hpc has no rates" in r.getMessage() for r in caplog.records)


async def test_what_a_removed_source_had_set_aside_is_free_at_the_next_start(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster, caplog: pytest.LogCaptureFixture
) -> None:
    await ledger.accounts.grant("acme", 100_000_000, key="k1", who="t")
    cluster.job("a", preset="large")
    cluster.show(T0 + HOUR)
    await run_once(settings_of(tmp_path, valkey_url, cluster.source("old")))
    before = await ledger.accounts.balance("acme")
    assert (before.held_micro, before.burn_micro) == (10_125_000, 40_500_000)
    empty = FileCluster(tmp_path / "empty.json", "elsewhere")
    empty.show(T0 + HOUR)
    settings = settings_of(tmp_path, valkey_url, empty.source("new"))
    await run_once(settings)
    after = await ledger.accounts.balance("acme")
    assert (after.held_micro, after.burn_micro, after.spent_micro) == (0, 0, before.spent_micro)
    assert any("Source old is not configured any more" in r.getMessage() for r in caplog.records)
    assert (await verify(ledger))["ok"]
    caplog.clear()
    await run_once(settings)
    assert not [r for r in caplog.records if "not configured" in r.getMessage()]


async def test_a_source_that_another_exporter_metered_lately_is_not_taken_for_gone_until_it_stays_still(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    await ledger.accounts.grant("acme", 100_000_000, key="k1", who="t")
    cluster.job("a", started_us=now_us() - HOUR)
    cluster.show(now_us())
    theirs = settings_of(tmp_path, valkey_url, cluster.source("theirs"))
    await run_once(theirs)
    books = Books(ledger)
    await retire_old(books, {"ours"}, now_us())
    assert (await ledger.accounts.balance("acme")).held_micro == 250_000
    watching = asyncio.create_task(retire_idle(books, {"ours"}, 0.01))
    await until(lambda: _holds_nothing(ledger))
    while not watching.done():
        watching.cancel()  # one that comes together with an answer of the server is lost
        await asyncio.wait([watching], timeout=0.1)
    # It was only slow: its next round sets everything aside again.
    cluster.show(now_us())
    await run_once(theirs)
    assert (await ledger.accounts.balance("acme")).held_micro == 250_000
    assert (await verify(ledger))["ok"]


async def test_nothing_is_set_aside_where_nothing_is_refused(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    await ledger.accounts.grant("acme", 100_000_000, key="k1", who="t")
    cluster.job("a", preset="large")
    cluster.show(T0 + HOUR)
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    await run_once(replace(settings, admission=AdmissionSettings(mode="off")))
    assert (await ledger.accounts.balance("acme")).held_micro == 0


async def test_two_exporters_at_once_charge_once(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    for number in range(50):
        cluster.job(f"job-{number}", org=f"org-{number % 3}")
    cluster.show(T0 + HOUR)
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    async with exporting(settings) as one, exporting(settings) as two:
        for hours in range(2, 6):
            cluster.show(T0 + hours * HOUR)
            await until(lambda: _spent_is(ledger, 50 * hours * 1_000_000))  # noqa: B023
        for exporter in (one, two):
            await until(lambda: _sum_is(exporter.url, 250))  # noqa: B023
    assert (await verify(ledger))["ok"]


async def test_the_answer_is_packed_and_in_the_format_that_is_asked_for(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    for number in range(40):
        cluster.job(f"job-{number}", user=f"user-{number}")
    cluster.show(T0 + HOUR)
    openmetrics = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    async with exporting(settings_of(tmp_path, valkey_url, cluster.source())) as exporter:
        await until(lambda: _is_ready(exporter.url))
        url = f"{exporter.url}/metrics"
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            async with session.get(url, headers={"Accept-Encoding": "gzip", "Accept": openmetrics}) as answer:
                assert answer.headers["Content-Encoding"] == "gzip"
                assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
                text = gzip.decompress(await answer.read()).decode()
            assert text.endswith("\n# EOF\n")
            assert "# TYPE credits_spent counter\n" in text
            async with session.get(url, headers={"Accept-Encoding": "identity"}) as answer:
                assert "Content-Encoding" not in answer.headers
                assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                plain = await answer.text()
            assert "# TYPE credits_spent_total counter\n" in plain
            assert "# EOF" not in plain
            async with session.head(url) as answer:
                assert (answer.status, await answer.read()) == (200, b"")
            for accept in ("application/openmetrics-text;version=nonsense", "text/plain;version=x", "*/*", ""):
                async with session.get(url, headers={"Accept": accept}) as answer:
                    assert answer.status == 200


async def test_an_address_that_is_taken_is_told_with_the_remedy(
    tmp_path: Path, valkey_url: str, client: Client, cluster: FileCluster
) -> None:
    cluster.show(T0)
    settings = settings_of(tmp_path, valkey_url, cluster.source())
    async with exporting(settings) as exporter:
        port = int(exporter.url.rpartition(":")[2])
        taken = replace(settings, exporter=ExporterSettings(listen=Address("127.0.0.1", port)))
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}: something listens.*exporter\.listen in"):
            async with exporting(taken):
                pass


async def test_names_of_any_kind_are_scraped_as_they_are(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    user, project = 'a"b\\c', "x=1,{y} é漢🙂\\n"
    cluster.job("a", user=user, project=project, org="o/r{g}*")
    cluster.show(T0 + HOUR)
    async with exporting(settings_of(tmp_path, valkey_url, cluster.source())) as exporter:
        await until(lambda: _is_ready(exporter.url))
        series = await scrape(exporter.url)
    assert value(series, "credits_spent_total", org="o/r{g}*", user=user, project=project) == 1


async def test_a_scrape_asks_nothing_of_the_ledger(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster
) -> None:
    cluster.job("a")
    cluster.show(T0 + HOUR)
    settings = settings_of(tmp_path, valkey_url, cluster.source(), interval_seconds=3600)
    client: Any = ledger.client
    async with exporting(settings) as exporter:
        await until(lambda: _shows(exporter.url, "credits_spent_total", 1))
        await until(lambda: _shows(exporter.url, "credits_overdraft", 1))
        before = (await client.info("stats"))["total_commands_processed"]
        for _ in range(20):
            await scrape(exporter.url)
        # The server counts the question itself.
        assert (await client.info("stats"))["total_commands_processed"] - before <= 2
    assert await client.exists(keys.META)


async def _is_ready(url: str) -> bool:
    return (await get(f"{url}/-/ready"))[0] == 200


async def _shows(url: str, name: str, expected: Any, **labels: str) -> bool:
    return value(await scrape(url), name, **labels) == Decimal(expected)


async def _at_least(url: str, least: int, name: str, **labels: str) -> bool:
    found = value(await scrape(url), name, **labels)
    return found is not None and found >= least


async def _sum_is(url: str, expected: int) -> bool:
    return sum(v for (name, _), v in (await scrape(url)).items() if name == "credits_spent_total") == expected


async def _spent_is(ledger: Ledger, micro: int) -> bool:
    return sum((await spent(ledger)).values()) == micro


async def _holds_nothing(ledger: Ledger) -> bool:
    balance = await ledger.accounts.balance("acme")
    return (balance.held_micro, balance.burn_micro) == (0, 0)


async def _plan_has(ledger: Ledger, nano: int) -> bool:
    plan = (await ledger.rates.read("default"))[1]
    return plan is not None and plan.steps[-1][1].presets["large"] == nano


async def test_a_clock_far_ahead_of_ours_is_told_and_charged_all_the_same(
    tmp_path: Path, valkey_url: str, ledger: Ledger, cluster: FileCluster, caplog: pytest.LogCaptureFixture
) -> None:
    now = now_us()
    cluster.job("a", preset="large", started_us=now)
    cluster.show(now + 2 * HOUR)
    assert all(r.ok for r in await run_once(settings_of(tmp_path, valkey_url, cluster.source())))
    assert sum((await spent(ledger)).values()) == 81_000_000
    assert any("2.0 h ahead of ours" in r.getMessage() for r in caplog.records)
