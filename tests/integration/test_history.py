"""History as OpenMetrics: parsed by the reference parser, and read from a real Prometheus as the ledger has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dashboards.promql import Scope, checkpoint, total
from exporter import history as module
from exporter.history import history
from exporter.metric_names import EXPIRED, GRANTED, RESTORED, SPENT, WITHDRAWN
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from tests.histories import HOUR, T0
from tests.prometheus_lab import as_grafana, backfill, prometheus
from tests.usage_lab import UsageLab, job, usage_lab, volume

pytestmark = pytest.mark.redis
DAY = 24 * HOUR


async def fill(lab: UsageLab) -> None:
    """Four days of jobs that start and end at odd times, a volume, grants, one of them corrected."""
    accounts = lab.ledger.accounts
    await accounts.grant("acme", 1_000_000_000, key="a", who="test", expires_us=T0 + 2 * DAY)
    work = [
        job(
            f"j{n}",
            T0 + n * 5 * HOUR + n * 1_234_567,
            T0 + n * 7 * HOUR + 9_876_543,
            project=f"p{n % 3}",
            user=f'u"{n % 2}',
        )
        for n in range(1, 13)
    ]
    for at in range(0, 5 * DAY, 13 * HOUR):
        await lab.take(T0 + at, [*(w for w in work if (w.started_us or 0) <= T0 + at), volume("v", 10**9 + at)])
    await accounts.grant("acme", 5_000_000, key="b", who="test", source="gift")
    await lab.ledger.corrections.correct("acme", -3_000_000, corrects="b", key="c", reason="too much", who="test")
    await lab.take(T0 + 5 * DAY, [*work, volume("v", 0)])


async def test_the_reference_parser_reads_it_and_the_last_values_are_the_ledgers(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CELLS_MAX", 500)  # so that rows come in several batches
    async with usage_lab(valkey_url) as lab:
        await fill(lab)
        lab.clock[0] = T0 + 5 * DAY
        text = "".join([part async for part in history(lab.ledger, T0, T0 + 5 * DAY, checkpoint)])
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert set(families) == {
            "credits_spent", "credits:spent:hourly", "credits_granted", "credits:granted:hourly", "credits_expired",
            "credits:expired:hourly", "credits_withdrawn", "credits:withdrawn:hourly", "credits_restored",
            "credits:restored:hourly", "credits_ledger_epoch_timestamp_seconds", checkpoint(module.m.LEDGER_EPOCH),
        }  # fmt: skip
        balance = await lab.ledger.accounts.balance("acme")
        for name, micro in (
            ("spent", balance.spent_micro),
            ("granted", sum(balance.granted_by_source.values())),
            ("expired", balance.expired_micro),
            ("withdrawn", balance.withdrawn_micro),
            ("restored", 0),
        ):
            for family in (families[f"credits_{name}"], families[f"credits:{name}:hourly"]):
                last: dict[tuple[str, ...], float] = {}
                for sample in family.samples:
                    labels = tuple(sample.labels.values())
                    assert sample.value >= last.get(labels, 0)
                    last[labels] = sample.value
                assert round(sum(last.values()) * 1_000_000) == micro, name


@pytest.mark.prometheus
async def test_a_prometheus_that_was_installed_later_shows_what_the_ledger_says(
    valkey_url: str, tmp_path: Path
) -> None:
    async with usage_lab(valkey_url) as lab:
        await fill(lab)
        lines = [part async for part in history(lab.ledger, lab.ledger.epoch_us, T0 + 5 * DAY, checkpoint)]
        data, config = tmp_path / "data", tmp_path / "prometheus.yml"
        data.mkdir()
        config.write_text("global: {}\n")
        backfill(lines, tmp_path, data)
        with prometheus(config, data) as server:
            for since, until in ((0, 120), (24, 48), (3, 5), (30, 119), (119, 120)):
                report = await usage(
                    lab.ledger,
                    UsageQuery(from_us=T0 + since * HOUR, to_us=T0 + until * HOUR, group_by=("project", "user")),
                )
                expected = {
                    tuple(sorted((k, v) for k, v in row.names.items() if v)): row.micro
                    for row in report.rows
                    if row.micro
                }
                seconds = (until - since) * 3600
                query = as_grafana(total(SPENT, Scope(), ("project", "user")), {}, seconds)
                found = server.instant(query, (T0 + until * HOUR) // 1_000_000)
                assert {k: round(v * 1_000_000) for k, v in found.items() if v > 1e-9} == expected
            balance = await lab.ledger.accounts.balance("acme")
            taken = f"{total(WITHDRAWN, Scope())} - {total(RESTORED, Scope())}"
            assert balance.granted_micro == sum(balance.granted_by_source.values()) - balance.withdrawn_micro
            for query, micro in (
                (total(GRANTED, Scope()), sum(balance.granted_by_source.values())),
                (total(EXPIRED, Scope()), balance.expired_micro),
                (taken, balance.withdrawn_micro),
            ):
                found = server.instant(as_grafana(query, {}, 5 * 86400), (T0 + 5 * DAY) // 1_000_000)
                assert {(): micro} == {k: round(v * 1_000_000) for k, v in found.items()}


async def test_an_empty_ledger_has_an_empty_history(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        text = "".join([part async for part in history(lab.ledger, T0, T0 + DAY, checkpoint)])
        assert text.endswith("# EOF\n")
        assert "credits_spent_total" not in text
