"""Every alert and recording rule against promtool: when it fires, when it does not, and where it leads."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import limits, units
from dashboards.alerts import alert_rules, alerts
from dashboards.build import all_dashboards, build
from dashboards.rules import recording_rules
from exporter.metric_names import EXCEPTED
from tests.prometheus_lab import as_grafana

ROOT = Path(__file__).parents[2]
RULES = {rule["alert"]: rule for rule in alert_rules("docs/runbook.md")["groups"][0]["rules"]}
UP = [
    {"series": 'up{job="credits-exporter",instance="e"}', "values": "1x1600"},
    {"series": 'up{job="credits-enforcer",instance="f"}', "values": "1x1600"},
]
TAGS = 'instance="e",job="credits-exporter"'

# Series and their values each minute, when they are looked at, labels of what fires then.
Case = tuple[dict[str, str], str, dict[str, str]]
ORG: dict[str, str] = {"org": "acme"}
BUDGET = {"org": "acme", "project": "vision", "user": "ann", "period": "month"}
BUDGET_TEXT = 'org="acme",project="vision",user="ann",period="month"'


def _runway(seconds: int) -> dict[str, str]:
    # The moment it runs out moves on with the clock, so that the time left stays as it is.
    return {f'credits_exhaustion_timestamp_seconds{{org="acme",{TAGS}}}': f"{seconds}+60x60"}


def _balance(left: int) -> dict[str, str]:
    return {f'credits_available{{org="acme",{TAGS}}}': f"1000x60 {left}x60"}


def _budget(left: float) -> dict[str, str]:
    return {
        f"credits_budget_limit{{{BUDGET_TEXT},{TAGS}}}": "200x60",
        f"credits_budget_remaining{{{BUDGET_TEXT},{TAGS}}}": f"{left}x60",
    }


def _series(metric: str, values: str, **labels: str) -> dict[str, str]:
    inner = ",".join([*(f'{key}="{value}"' for key, value in labels.items()), TAGS])
    return {f"{metric}{{{inner}}}": values}


UNCHECKED = {"decision": EXCEPTED, "reason": "ledger_unavailable"}
UNBILLED = {"source": "slurm-hpc", "reason": "no_org"}
FIRES: dict[str, Case] = {
    "CreditsRunwayShort": (_runway(20 * 3600), "30m", ORG),
    "CreditsRunwayCritical": (_runway(3 * 3600), "30m", ORG),
    "CreditsBalanceUsed50": (_balance(500), "90m", ORG),
    "CreditsBalanceUsed75": (_balance(250), "90m", ORG),
    "CreditsBalanceUsed90": (_balance(-20), "90m", ORG),
    "CreditsBudgetUsed50": (_budget(99.5), "30m", BUDGET),
    "CreditsBudgetUsed75": (_budget(50), "30m", BUDGET),
    "CreditsBudgetUsed90": (_budget(0), "30m", BUDGET),
    "CreditsOverdraft": (_series("credits_overdraft", "0.000001x60", **ORG), "30m", ORG),
    "CreditsLedgerDown": (
        _series("credits_ledger_up", "1x10 0x60"),
        "13m",
        {"instance": "e", "job": "credits-exporter"},
    ),
    "CreditsOrphanHolds": (_series("credits_orphan_holds", "1x60", **ORG), "30m", ORG),
    "CreditsLedgerDrift": (_series("credits_ledger_drift", "-0.000001x60"), "30m", {}),
    "CreditsLedgerUnverified": (_series("credits_ledger_verified_timestamp_seconds", "0x1600"), "26h", {}),
    "CreditsExporterDown": (
        {'up{job="credits-exporter",instance="e"}': "1x10 0x60"},
        "15m",
        {"job": "credits-exporter", "instance": "e"},
    ),
    "CreditsSourceDown": (
        _series("credits_source_up", "1x10 0x60", source="slurm-hpc"),
        "20m",
        {"source": "slurm-hpc"},
    ),
    "CreditsMeterLag": (
        _series("credits_meter_lag_seconds", "301x60", source="slurm-hpc"),
        "20m",
        {"source": "slurm-hpc"},
    ),
    "CreditsChargeBackStuck": (
        _series("credits_charge_back_pending", "2x240", source="apolo", of="users"),
        "200m",
        {"source": "apolo", "of": "users"},
    ),
    "CreditsConfigRefused": (
        _series("credits_config_last_reload_successful", "1x10 0x60"),
        "12m",
        {"instance": "e", "job": "credits-exporter"},
    ),
    "CreditsUnpricedWorkloads": (
        _series("credits_unpriced_workloads", "2x60", cluster="hpc", kind="job", resource="gpu-new"),
        "20m",
        {"cluster": "hpc", "kind": "job", "resource": "gpu-new"},
    ),
    "CreditsUnbillableWorkloads": (
        _series("credits_unbillable_workloads_total", "7x100 8x100", **UNBILLED),
        "110m",
        UNBILLED,
    ),
    "CreditsEnforcerDown": (
        {'up{job="credits-enforcer",instance="f"}': "1x10 0x60"},
        "15m",
        {"job": "credits-enforcer", "instance": "f"},
    ),
    "CreditsAdmissionFailingOpen": (_series("credits_admissions_total", "_x20 1x100", **UNCHECKED), "30m", UNCHECKED),
    "CreditsPaymentRefused": (
        _series("credits_payments_refused_total", "_x20 1x100", reason="wrong_amount"),
        "40m",
        {"reason": "wrong_amount"},
    ),
}
ALSO: list[tuple[str, Case]] = [
    (
        # Of a grant of long ago: what there was in the last 30 days says nothing of it.
        "CreditsBalanceUsed50",
        (
            _series("credits_granted_in_use", "1000x120", **ORG) | _series("credits_available", "500x120", **ORG),
            "90m",
            ORG,
        ),
    ),
    (
        "CreditsOverdraft",
        (
            _series("credits_overdraft", "0.000001x60", **ORG) | _series("credits_credit_line", "0x60", **ORG),
            "30m",
            ORG,
        ),
    ),
    (
        "CreditsLedgerDown",
        (
            {'credits_enforcer_ledger_up{instance="f",job="credits-enforcer"}': "1x10 0x60"},
            "13m",
            {"instance": "f", "job": "credits-enforcer"},
        ),
    ),
]
"""Other ways to the same alert."""
VALUES = {
    "CreditsRunwayShort": "20h 0m 0s",
    "CreditsRunwayCritical": "3h 0m 0s",
    "CreditsBalanceUsed50": "50%",
    "CreditsBalanceUsed75": "75%",
    "CreditsBalanceUsed90": "102%",
    "CreditsBudgetUsed50": "50.25%",
    "CreditsBudgetUsed75": "75%",
    "CreditsBudgetUsed90": "100%",
    "CreditsOverdraft": "1e-06",
    "CreditsOrphanHolds": "1",
    "CreditsLedgerDrift": "-1e-06",
    "CreditsLedgerUnverified": "1d 2h 0m 0s",
    "CreditsMeterLag": "5m 1s",
    "CreditsChargeBackStuck": "2",
    "CreditsUnpricedWorkloads": "2",
    "CreditsUnbillableWorkloads": "1",
    "CreditsAdmissionFailingOpen": "1",
    "CreditsPaymentRefused": "1",
}
"""The value as the alert's text writes it."""
QUIET: list[tuple[str, dict[str, str], str]] = [
    ("enough runway", _runway(25 * 3600), "30m"),
    ("half is left", _balance(501), "90m"),
    ("topped up", {f'credits_available{{org="acme",{TAGS}}}': "1000x60 100x60 1200x60"}, "170m"),
    ("budget half left", _budget(101), "30m"),
    ("a budget of nothing", {**_budget(0), f"credits_budget_limit{{{BUDGET_TEXT},{TAGS}}}": "0x60"}, "30m"),
    ("no overdraft", _series("credits_overdraft", "0x60", **ORG), "30m"),
    (
        "an overdraft within the credit line",
        _series("credits_overdraft", "10x60", **ORG) | _series("credits_credit_line", "10x60", **ORG),
        "30m",
    ),
    ("no drift", _series("credits_ledger_drift", "0x60"), "30m"),
    ("an exporter that restarts", {'up{job="credits-exporter",instance="e"}': "1x10 0 1x60"}, "12m"),
    ("a source that misses a round", _series("credits_source_up", "1x10 0 1x60", source="s"), "12m"),
    ("a lag within bounds", _series("credits_meter_lag_seconds", "299x60", source="s"), "30m"),
    ("a configuration in force", _series("credits_config_last_reload_successful", "1x60"), "30m"),
    (
        "everything has a rate",
        _series("credits_unpriced_workloads", "0x60", cluster="h", kind="job", resource="r"),
        "30m",
    ),
    ("nothing new that cannot be charged", _series("credits_unbillable_workloads_total", "7x200", **UNBILLED), "190m"),
    ("an exporter's restart", _series("credits_unbillable_workloads_total", "7x100 _x20 7x80", **UNBILLED), "125m"),
    ("refusals", _series("credits_admissions_total", "0+1x60", decision="deny", reason="no_credits"), "30m"),
    ("unchecked long ago", _series("credits_admissions_total", "3x200", **UNCHECKED), "150m"),
]


def _promtool(tmp_path: Path, tests: list[dict[str, Any]]) -> None:
    build(tmp_path)
    files = [str(path) for path in sorted((tmp_path / "prometheus/rules").iterdir())]
    suite = {"rule_files": files, "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "suite.yml").write_text(yaml.safe_dump(suite))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "suite.yml")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _input(series: dict[str, str]) -> list[dict[str, str]]:
    given = [{"series": name, "values": values} for name, values in series.items()]
    jobs = {name[:25] for name in series}
    return [*given, *(up for up in UP if up["series"][:25] not in jobs)]


def test_every_alert_has_a_case() -> None:
    assert set(FIRES) == set(RULES)


@pytest.mark.prometheus
def test_alerts_fire_when_they_should_and_alone(tmp_path: Path) -> None:
    tests = []
    for name, (series, at, labels) in [*FIRES.items(), *ALSO]:
        rule = RULES[name]
        expected = {
            "exp_labels": {**labels, **rule["labels"]},
            "exp_annotations": {key: _written(text, labels, name) for key, text in rule["annotations"].items()},
        }
        checks = [
            {"eval_time": at, "alertname": other, "exp_alerts": [expected] if other == name else []} for other in RULES
        ]
        tests.append({"name": name, "interval": "1m", "input_series": _input(series), "alert_rule_test": checks})
    _promtool(tmp_path, tests)


def _written(text: str, labels: dict[str, str], name: str) -> str:
    """An alert's text as Prometheus fills it in."""
    text = re.sub(r"{{ with \$labels\.user }}(.*?){{ \. }}{{ end }}", r"\1{{ $labels.user }}", text)
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text)
    return re.sub(r"{{ \$value[^}]*}}", VALUES.get(name, ""), text)


@pytest.mark.prometheus
def test_alerts_keep_quiet_when_all_is_well(tmp_path: Path) -> None:
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": _input(series),
            "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": []} for alert in RULES],
        }
        for name, series, at in QUIET
    ]
    _promtool(tmp_path, tests)


@pytest.mark.prometheus
def test_checkpoints_are_recorded_late_in_each_hour_and_see_what_came_before_an_outage(tmp_path: Path) -> None:
    labels = 'cluster="hpc",org="acme",project="p",user="u",kind="job",resource="r",app=""'
    series = {
        # Two exporters serve the same ledger; one goes away in the second hour, and later all do.
        f'credits_spent_total{{{labels},instance="a"}}': "1+1x70",
        f'credits_spent_total{{{labels},instance="b"}}': "_x30 31+1x70 _x100",
    }
    recorded = f"credits:spent:hourly{{{labels.removesuffix(',app=' + chr(34) * 2)}}}"
    wanted = {"58m": [], "59m": [60], "60m": [], "119m": [101], "179m": []}
    checks = [
        {
            "expr": "credits:spent:hourly",
            "eval_time": at,
            "exp_samples": [{"labels": recorded, "value": v} for v in found],
        }
        for at, found in wanted.items()
    ]
    _promtool(tmp_path, [{"interval": "1m", "input_series": _input(series), "promql_expr_test": checks}])


def _asked(uid: str, title: str) -> list[tuple[str, str]]:
    """What a panel asks, and the first colour that is shown for it."""
    made = next(one for one in all_dashboards() if one["uid"] == uid)
    panel = next(one for one in made["panels"] if one["title"] == title)
    found = panel["fieldConfig"]
    colours = {
        override["matcher"]["options"]: override["properties"][0]["value"]["steps"][0]["color"]
        for override in found["overrides"]
    }
    first = found["defaults"]["thresholds"]["steps"][0]["color"]
    return [
        (as_grafana(target["expr"], {"org": "acme", "cluster": ".*"}, 3600), colours.get(target["refId"], first))
        for target in panel["targets"]
    ]


# The series of the org, and of each panel whose colour hangs on more than its number the value and its colour.
SHOWN: list[tuple[str, dict[str, int | None], dict[str, tuple[int, str]]]] = [
    ("all is well", {"overdraft": 0, "credit_line": 0, "available": 9}, {"Overdraft": (0, "green")}),
    ("within the line", {"overdraft": 9, "credit_line": 9, "available": -8}, {"Overdraft": (9, "green")}),
    ("beyond the line", {"overdraft": 9, "credit_line": 8, "available": -9}, {"Overdraft": (9, "red")}),
    ("no line is told", {"overdraft": 9, "credit_line": None, "available": None}, {"Overdraft": (9, "red")}),
    ("some is left", {"overdraft": 0, "credit_line": 0, "available": 1}, {"Available": (1, "green")}),
    ("nothing is left", {"overdraft": 0, "credit_line": 0, "available": 0}, {"Available": (0, "red")}),
    ("the line is left", {"overdraft": 5, "credit_line": 9, "available": -8}, {"Available": (-8, "green")}),
    ("the line is used up", {"overdraft": 5, "credit_line": 9, "available": -9}, {"Available": (-9, "red")}),
]


@pytest.mark.prometheus
def test_an_orgs_figures_are_red_where_its_alert_fires_or_work_is_refused(tmp_path: Path) -> None:
    tests = []
    for name, given, panels in SHOWN:
        series: dict[str, str] = {}
        for metric, number in given.items():
            if number is not None:
                series |= _series(f"credits_{metric}", f"{number}x60", **ORG)
        checks = []
        for title, (number, colour) in panels.items():
            for expr, shown in _asked("credits-organization", title):
                samples = [{"labels": '{org="acme"}', "value": number}] if shown == colour else []
                checks.append({"expr": expr, "eval_time": "30m", "exp_samples": samples})
        overdraft = panels.get("Overdraft")
        alert = {"eval_time": "30m", "alertname": "CreditsOverdraft", "exp_alerts": []}
        tests.append(
            {
                "name": name,
                "interval": "1m",
                "input_series": _input(series),
                "promql_expr_test": checks,
                "alert_rule_test": [alert] if overdraft and overdraft[1] == "green" else [],
            }
        )
    _promtool(tmp_path, tests)


@pytest.mark.prometheus
def test_homes_figures_have_the_colour_of_the_worst_alert(tmp_path: Path) -> None:
    """Counts of what fires, by the severities that do, and of orgs, by how long the credits of each last."""
    alert = {"info": "CreditsBalanceUsed50", "warning": "CreditsBalanceUsed75", "critical": "CreditsBalanceUsed90"}
    cases: list[tuple[str, list[str], dict[str, int], int, str]] = [
        ("Alerts firing", [], {}, 0, "green"),
        ("Alerts firing", ["info"], {}, 1, "green"),
        ("Alerts firing", ["info", "warning"], {}, 2, "orange"),
        ("Alerts firing", ["info", "warning", "critical"], {}, 3, "red"),
        ("Orgs running out", [], {"acme": 90_000}, 0, "green"),
        ("Orgs running out", [], {"acme": 80_000, "globex": 90_000}, 1, "green"),
        ("Orgs running out", [], {"acme": 80_000, "globex": 14_000}, 2, "red"),
    ]
    tests = []
    for title, severities, runways, number, colour in cases:
        series = {
            f'ALERTS{{alertname="{alert[severity]}",alertstate="firing",severity="{severity}"}}': "1x60"
            for severity in severities
        }
        for org, seconds in runways.items():
            series |= {f'credits_exhaustion_timestamp_seconds{{org="{org}",{TAGS}}}': f"{seconds}+60x60"}
        checks = [
            {
                "expr": expr,
                "eval_time": "30m",
                "exp_samples": [{"labels": "{}", "value": number}] if shown == colour else [],
            }
            for expr, shown in _asked("credits-home", title)
        ]
        tests.append({"name": title, "interval": "1m", "input_series": _input(series), "promql_expr_test": checks})
    _promtool(tmp_path, tests)


@pytest.mark.prometheus
def test_prometheus_accepts_the_generated_configuration(tmp_path: Path) -> None:
    build(tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus/prometheus.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_the_runbook_has_a_section_for_each_alert(alert: Any) -> None:
    page, anchor = RULES[alert.name]["annotations"]["runbook_url"].split("#")
    sections = re.split(r"^## ", (ROOT / page).read_text(), flags=re.MULTILINE)
    section = next(text for text in sections if text.split("\n")[0].strip().lower() == anchor)
    assert all(heading in section for heading in ("**Means**", "**Check**", "**Do**"))


def test_panels_change_colour_where_the_alerts_fire() -> None:
    written = yaml.safe_dump(alert_rules("")) + yaml.safe_dump(recording_rules())
    assert [step["value"] for step in units.USED[1:]] == list(limits.USED_SHARES)
    for steps in (units.RUNWAY, units.USED, units.LAG, units.STALE, units.VERIFIED):
        for step in steps[1:]:
            assert re.search(rf"[<>]=? {step['value']}\b", written), step
