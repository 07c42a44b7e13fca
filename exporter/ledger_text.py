"""The ledger's families as exposition text, out of the view."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from exporter import metric_names as m
from exporter.exposition import Sample, credits_text, decimal_text, family, family_head, seconds_text
from exporter.org_lines import BURN_UNIT, LiveSums, OrgLines
from exporter.view import View
from ledger.clock import Clock, now_us
from ledger.model import RatePlan
from ledger.rates_history import nano_of


class LedgerText:
    """Renders the view; keeps what does not change between two scrapes."""

    def __init__(self, view: View, clock: Clock = now_us) -> None:
        self._view = view
        self._clock = clock
        self._orgs: dict[str, OrgLines] = {}

    def render(self, openmetrics: bool) -> str:
        """Every line, the last one ended."""
        lines: list[str] = []
        for metric, samples in self._small():
            lines += family(metric, samples, openmetrics)
        if self._view.is_whole:
            self._rows(lines, openmetrics)
        lines.append("")
        return "\n".join(lines)

    def _small(self) -> Iterator[tuple[m.Metric, Iterable[Sample]]]:
        view = self._view
        yield m.LEDGER_EPOCH, [((), seconds_text(view.epoch_us))]
        yield m.RATE, self._rates()
        if not view.is_whole:
            return
        balances = view.balances
        yield (
            m.GRANTED,
            [
                ((b.org, source), credits_text(micro))
                for b in balances
                for source, micro in sorted(b.granted_by_source.items())
            ],
        )
        yield m.EXPIRED, [((b.org,), credits_text(b.expired_most_micro)) for b in balances]
        yield m.WITHDRAWN, [((b.org,), credits_text(b.withdrawn_micro)) for b in balances]
        yield m.RESTORED, [((b.org,), credits_text(b.restored_micro)) for b in balances]
        limited = [b for b in balances if not b.unlimited]
        yield m.GRANTED_IN_USE, [((b.org,), credits_text(view.in_use.get(b.org, 0))) for b in limited]
        yield m.AVAILABLE, [((b.org,), credits_text(b.available_micro)) for b in limited]
        yield m.HELD, [((b.org,), credits_text(b.held_micro)) for b in balances]
        yield m.OVERDRAFT, [((b.org,), credits_text(b.overdraft_micro)) for b in limited]
        yield m.CREDIT_LINE, [((b.org,), credits_text(b.credit_line_micro)) for b in limited]
        yield m.HOLDS, [((b.org,), str(b.holds)) for b in balances]
        yield m.ORPHAN_HOLDS, [((org,), str(count)) for org, count in view.orphans.items()]
        exhausted = [(b.org, b.exhausted_us) for b in balances]
        yield m.EXHAUSTION, [((org,), seconds_text(us)) for org, us in exhausted if us is not None]
        budgets = [((org, s.budget.project, s.budget.user or "", s.budget.period), s) for org, s in view.budgets]
        yield m.BUDGET_LIMIT, [(labels, credits_text(s.budget.limit_micro)) for labels, s in budgets]
        yield m.BUDGET_REMAINING, [(labels, credits_text(s.remaining_micro)) for labels, s in budgets]
        yield m.UNBILLABLE, [(key, str(count)) for key, count in sorted(view.unbillable.items())]

    def _rates(self) -> Iterator[Sample]:
        now = self._clock()
        for cluster, plan in sorted(self._view.plans.items()):
            if plan is None:
                continue
            table = plan.at(now)
            for kind, rates in (("job", table.presets), ("app", table.apps), ("storage", table.storage)):
                for name, nano in rates.items():
                    yield (cluster, kind, name), decimal_text(nano, 9)

    def _rows(self, lines: list[str], openmetrics: bool) -> None:
        sums = LiveSums()
        is_priced = _Prices(self._view.plans, self._clock())
        lines.append(family_head(m.SPENT, openmetrics))
        for name, state in self._view.states.items():
            org = self._orgs.get(name)
            if org is None or org.state is not state:
                org = self._orgs[name] = OrgLines(state, org)
            org.spent(credits_text, lines)
            org.live(sums, is_priced)
        lines.append(family_head(m.WORKLOADS, openmetrics))
        lines.extend(f"{head}{count}" for head, count in sums.workloads.items())
        lines.append(family_head(m.STORAGE_BYTES, openmetrics))
        lines.extend(f"{head}{count}" for head, count in sums.stored.items())
        lines.append(family_head(m.BURN_RATE, openmetrics))
        lines.extend(head + credits_text(numerator // BURN_UNIT) for head, numerator in sums.burn.items())
        lines += family(m.UNPRICED, ((key, str(count)) for key, count in sums.unpriced.items()), openmetrics)


class _Prices:
    """Whether a row has a rate now."""

    def __init__(self, plans: Mapping[str, RatePlan | None], now: int) -> None:
        self._tables = {cluster: plan.at(now) for cluster, plan in plans.items() if plan is not None}

    def __call__(self, cluster: str, kind: str, resource: str, app: str) -> bool:
        table = self._tables.get(cluster)
        return table is not None and nano_of(table, kind, resource, app) is not None
