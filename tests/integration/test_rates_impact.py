"""Past use under other rates: exact, and nothing is different where nothing changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import InvalidRequest
from ledger.model import RatePlan, RateTable
from ledger.rerate import GROUPS, rates_impact
from ledger.usage import usage
from ledger.usage_report import UsageQuery
from ledger.verify import verify
from tests.histories import HOUR, SPAN, T0, Prices, app_lists, instants, lives, price_lists, snapshot
from tests.usage_lab import RATES, job, usage_lab, volume

pytestmark = pytest.mark.redis


@given(data=st.data())
async def test_all_use_is_rated_anew_exactly(data: st.DataObject, valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        lives_ = data.draw(lives(), "lives")
        was, new = Prices(), Prices()
        was.put(0, data.draw(price_lists), data.draw(app_lists))
        new.put(0, data.draw(price_lists), data.draw(app_lists))
        await lab.ledger.rates.publish(was.plan("default"))
        for t in sorted(data.draw(st.lists(instants(), min_size=1, max_size=3), "polls")):
            await lab.take(t, snapshot(lives_, t, 3 * SPAN).workloads)
            was.put(lab.clock[0], data.draw(price_lists), data.draw(app_lists))
            await lab.ledger.rates.publish(was.plan("default"))
        end = T0 + SPAN
        await lab.take(end, snapshot(lives_, end, 3 * SPAN).workloads)
        a, b = sorted(data.draw(st.lists(instants(), min_size=2, max_size=2, unique=True), "period"))
        report = await rates_impact(lab.ledger, {"default": new.plan("default")}, end, a, b, ("org",))
        billed = [life for life in lives_ if life.start < end]
        for micro, prices in (("micro", was), ("new_micro", new)):
            expected = sum(int(prices.cost(x, min(b, end), 0)) - int(prices.cost(x, min(a, end), 0)) for x in billed)
            assert expected == sum(getattr(row, micro) for row in report.rows)
        used = await usage(lab.ledger, UsageQuery(from_us=a, to_us=b, group_by=("org",)))
        assert used.total_micro == sum(row.micro for row in report.rows)
        assert (await verify(lab.ledger))["ok"]


async def test_the_rates_that_were_in_force_change_nothing(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        for minute, size in ((0, 10**12), (70, 3 * 10**12), (110, 10**12), (180, 0)):
            await lab.take(T0 + minute * 60_000_000, [volume("v", size), job("j", T0)])
        for a, b in ((0, 180), (0, 75), (75, 111), (111, 130)):
            since, until = T0 + a * 60_000_000, T0 + b * 60_000_000
            report = await rates_impact(lab.ledger, {"default": RatePlan("default", ((0, RATES),))}, T0, since, until)
            assert report.shape()["difference"] == "0"


async def test_who_pays_more_and_who_less(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        work = [
            job("a", T0, T0 + 2 * HOUR),
            job("b", T0, T0 + HOUR, project="nlp", preset="cpu-small"),
            job("c", T0, T0 + HOUR, org="beta", preset="cpu-small", app="vllm"),
        ]
        await lab.take(T0 + 2 * HOUR, work)
        table = RateTable(presets={"gpu-large": 42_000_000_000}, apps={"vllm": 1_000_000_000})
        plan = RatePlan("default", ((0, RATES), (T0 + 5 * HOUR, table)))
        shape = (await rates_impact(lab.ledger, {"default": plan}, T0 + 5 * HOUR, T0, T0 + 2 * HOUR)).shape()
        assert shape["rows"] == [
            {
                "org": "acme",
                "project": "nlp",
                "resource": "cpu-small",
                "hours": "1",
                "credits": "1",
                "new_credits": "0",
                "difference": "-1",
            },
            {
                "org": "acme",
                "project": "vision",
                "resource": "gpu-large",
                "hours": "2",
                "credits": "81",
                "new_credits": "84",
                "difference": "3",
            },
            {
                "org": "beta",
                "project": "vision",
                "resource": "cpu-small",
                "hours": "1",
                "credits": "3.5",
                "new_credits": "0",
                "difference": "-3.5",
            },
        ]
        assert (shape["total"], shape["new_total"], shape["difference"]) == ("85.5", "84", "-1.5")
        assert shape["unpriced"] == [
            {"cluster": "default", "kind": "app", "resource": "cpu-small"},
            {"cluster": "default", "kind": "job", "resource": "cpu-small"},
        ]
        other = (await rates_impact(lab.ledger, {"other": plan}, T0, T0, T0 + 2 * HOUR)).shape()
        assert (other["difference"], other["unchanged_clusters"]) == ("0", ["default"])


async def test_a_wrong_question_is_refused(valkey_url: str) -> None:
    async with usage_lab(valkey_url) as lab:
        with pytest.raises(InvalidRequest, match=", ".join(GROUPS)):
            await rates_impact(lab.ledger, {}, T0, T0, T0 + HOUR, ("workload",))
        with pytest.raises(InvalidRequest, match="from"):
            await rates_impact(lab.ledger, {}, T0, T0, T0)
