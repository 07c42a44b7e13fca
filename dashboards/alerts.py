"""Prometheus alerts; each has its section in the runbook, under the alert's name in lower case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dashboards import limits
from dashboards.promql import Scope, by, each
from dashboards.recorded import BALANCE_USED, BUDGET_USED, RUNWAY
from exporter.metric_names import (
    ADMISSIONS,
    CHARGE_BACK_PENDING,
    CREDIT_LINE,
    ENFORCER_LEDGER_UP,
    EXCEPTED,
    LEDGER_DRIFT,
    LEDGER_UP,
    LEDGER_VERIFIED,
    METER_LAG,
    ORPHAN_HOLDS,
    OVERDRAFT,
    PAYMENTS_REFUSED,
    RELOAD_OK,
    SOURCE_LAST_SUCCESS,
    SOURCE_UP,
    UNBILLABLE,
    UNPRICED,
    Metric,
)

EVERYTHING = Scope()


@dataclass(frozen=True)
class Alert:
    """One alert: when it fires, how long that must hold, and what it tells (Go templates)."""

    name: str
    severity: str
    hold: str
    expr: str
    summary: str
    description: str

    def rule(self, runbook: str) -> dict[str, Any]:
        """As Prometheus wants it."""
        return {
            "alert": self.name,
            "expr": self.expr,
            "for": self.hold,
            "labels": {"severity": self.severity},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{runbook}#{self.name.lower()}",
            },
        }


def _grown(metric: Metric, window: str, *extra: str) -> str:
    """What a counter grew by in a window; a series that is new counts from 0, as the ledger's counters do."""
    braces, group = EVERYTHING.on(metric, *extra), by(metric.labels)
    now = f"max{group} ({metric.name}{braces})"
    before = f"max{group} (last_over_time({metric.name}{braces}[{limits.NEAR}] offset {window}))"
    return f"({now} - ({before} or {now} * 0)) > 0"


def _runway() -> list[Alert]:
    warning, critical = limits.RUNWAY_WARNING_HOURS, limits.RUNWAY_CRITICAL_HOURS
    left = "At the present burn rate the credits of org {{ $labels.org }} last {{ $value | humanizeDuration }}."
    name = RUNWAY.name
    return [
        Alert(
            "CreditsRunwayShort",
            "warning",
            "5m",
            f"{name} < {warning * 3600} >= {critical * 3600}",
            f"Org {{{{ $labels.org }}}} runs out of credits within {warning} hours",
            left,
        ),
        Alert(
            "CreditsRunwayCritical",
            "critical",
            "1m",
            f"{name} < {critical * 3600}",
            f"Org {{{{ $labels.org }}}} runs out of credits within {critical} hours",
            left,
        ),
    ]


def _used(prefix: str, ratio: Metric, of: str) -> list[Alert]:
    """One alert for each share used up; the lower one ends when the higher one begins."""
    found = []
    severities = ("info", "warning", "critical")
    upper = (*limits.USED_SHARES[1:], None)
    for share, end, severity in zip(limits.USED_SHARES, upper, severities, strict=True):
        below = f" < {end}" if end is not None else ""
        found.append(
            Alert(
                f"{prefix}{share:.0%}".removesuffix("%"),
                severity,
                "5m",
                f"{ratio.name} >= {share}{below}",
                f"{share:.0%} of {of} is used up",
                f"{{{{ $value | humanizePercentage }}}} of {of} is used up.",
            )
        )
    return found


def overdrawn(scope: Scope) -> str:
    """The overdrafts that are more than the org's credit line."""
    overdraft = each(OVERDRAFT, scope)
    return f"{overdraft} > 0 unless on (org) ({overdraft} <= on (org) {each(CREDIT_LINE, scope)})"


def firing(*severities: str) -> str:
    """The alerts of this file that fire, of all severities or of some."""
    names = "|".join(alert.name for alert in alerts() if not severities or alert.severity in severities)
    return f'ALERTS{{alertname=~"{names}",alertstate="firing"}}'


def _ledger() -> list[Alert]:
    return [
        Alert(
            "CreditsOverdraft",
            "critical",
            "1m",
            overdrawn(EVERYTHING),
            "Org {{ $labels.org }} spent more than it may",
            "Org {{ $labels.org }} is {{ $value }} credits below zero.",
        ),
        Alert(
            "CreditsLedgerDown",
            "critical",
            "1m",
            f"{LEDGER_UP.name} == 0 or {ENFORCER_LEDGER_UP.name} == 0",
            "The ledger's server does not answer",
            "{{ $labels.job }} cannot reach the ledger: nothing is charged, and admission follows on_ledger_down.",
        ),
        Alert(
            "CreditsOrphanHolds",
            "warning",
            "10m",
            f"{each(ORPHAN_HOLDS, EVERYTHING)} > 0",
            "Holds of org {{ $labels.org }} outlive their work",
            "{{ $value }} holds of org {{ $labels.org }} keep credits set aside for work that is over.",
        ),
        Alert(
            "CreditsLedgerDrift",
            "critical",
            "0m",
            f"{each(LEDGER_DRIFT, EVERYTHING)} != 0",
            "The ledger's totals differ from their parts",
            "The last check of the ledger found a difference of {{ $value }} credits.",
        ),
        Alert(
            "CreditsLedgerUnverified",
            "warning",
            "10m",
            f"time() - {each(LEDGER_VERIFIED, EVERYTHING)} > {limits.VERIFY_HOURS * 3600}",
            "The ledger has not been checked for more than a day",
            "The last check of the ledger was {{ $value | humanizeDuration }} ago.",
        ),
    ]


def _metering() -> list[Alert]:
    job = f'up{{job="{limits.EXPORTER_JOB}"}}'
    stale = f"time() - {each(SOURCE_LAST_SUCCESS, EVERYTHING)} > {limits.STALE_SECONDS}"
    return [
        Alert(
            "CreditsExporterDown",
            "critical",
            "2m",
            f"{job} == 0 or absent({job})",
            "The credits exporter is down",
            "Nothing is charged until it is back; then it catches up. Reports end where it stopped.",
        ),
        Alert(
            "CreditsSourceDown",
            "critical",
            "5m",
            f"{stale} or {each(SOURCE_UP, EVERYTHING)} == 0",
            "Source {{ $labels.source }} gives no usable snapshot",
            "The scheduler behind source {{ $labels.source }} is not metered; it is charged once the source is back.",
        ),
        Alert(
            "CreditsMeterLag",
            "warning",
            "5m",
            f"{each(METER_LAG, EVERYTHING)} > {limits.LAG_SECONDS}",
            "Charges of source {{ $labels.source }} are late",
            "What source {{ $labels.source }} reports is charged only up to {{ $value | humanizeDuration }} ago.",
        ),
        Alert(
            "CreditsChargeBackStuck",
            "warning",
            "3h",
            f"{each(CHARGE_BACK_PENDING, EVERYTHING)} > 0",
            "Charges of source {{ $labels.source }} do not reach the platform",
            "{{ $value }} credits of {{ $labels.of }} are missing in the platform's balances; the log says why.",
        ),
        Alert(
            "CreditsConfigRefused",
            "warning",
            "0m",
            f"{RELOAD_OK.name} == 0",
            "An edited configuration was refused",
            "{{ $labels.job }} keeps the last good configuration; its log says what is wrong and where.",
        ),
        Alert(
            "CreditsUnpricedWorkloads",
            "warning",
            "5m",
            f"{each(UNPRICED, EVERYTHING)} > 0",
            "{{ $labels.kind }} {{ $labels.resource }} on {{ $labels.cluster }} has no rate",
            "{{ $value }} workloads run without a rate and cost nothing.",
        ),
        Alert(
            "CreditsUnbillableWorkloads",
            "warning",
            "0m",
            _grown(UNBILLABLE, "1h"),
            "Source {{ $labels.source }} lists workloads that cannot be charged",
            "{{ $value }} workloads within an hour: {{ $labels.reason }}.",
        ),
    ]


def _enforcing() -> list[Alert]:
    job = f'up{{job="{limits.ENFORCER_JOB}"}}'
    passed = (f'decision="{EXCEPTED}"', 'reason="ledger_unavailable"')
    return [
        Alert(
            "CreditsEnforcerDown",
            "critical",
            "2m",
            f"{job} == 0 or absent({job})",
            "The credits enforcer is down",
            "Schedulers get no answer and do what they are set to do without one.",
        ),
        Alert(
            "CreditsAdmissionFailingOpen",
            "critical",
            "0m",
            _grown(ADMISSIONS, "15m", *passed),
            "Work is let through unchecked",
            "{{ $value }} requests within 15 minutes were allowed because the ledger did not answer.",
        ),
        Alert(
            "CreditsPaymentRefused",
            "critical",
            "0m",
            _grown(PAYMENTS_REFUSED, "1h"),
            "A payment was not credited",
            "{{ $value }} payments within an hour moved money and no credits: {{ $labels.reason }}.",
        ),
    ]


def alerts() -> list[Alert]:
    """All alerts, in the runbook's order."""
    budget = (
        "the {{ $labels.period }} budget of {{ $labels.org }}/{{ $labels.project }}"
        "{{ with $labels.user }}, user {{ . }}{{ end }}"
    )
    balance = "what org {{ $labels.org }} was given"
    return [
        *_runway(),
        *_used("CreditsBalanceUsed", BALANCE_USED, balance),
        *_used("CreditsBudgetUsed", BUDGET_USED, budget),
        *_ledger(),
        *_metering(),
        *_enforcing(),
    ]


def alert_rules(runbook: str) -> dict[str, Any]:
    """The rule file's content; `runbook` is the page that the alerts link to."""
    return {"groups": [{"name": "credits-alerts", "rules": [alert.rule(runbook) for alert in alerts()]}]}
