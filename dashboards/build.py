"""Writes everything that Grafana and Prometheus need: dashboards, provisioning, scrape configuration, rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from dashboards import (
    cluster,
    enforcement,
    exporter_health,
    home,
    organization,
    project,
    rates,
    user,
)
from dashboards.alerts import alert_rules
from dashboards.layout import PanelJson
from dashboards.limits import ENFORCER_JOB, EXPORTER_JOB, SCRAPE_SECONDS
from dashboards.rules import recording_rules

HEADER = "# Made by `credits dashboards build`; edit dashboards/ instead.\n"
FOLDER = "Credits"


def all_dashboards() -> list[PanelJson]:
    """Every dashboard's JSON, Home first."""
    modules = (home, cluster, organization, project, user, rates, enforcement, exporter_health)
    return [module.dashboard() for module in modules]


def build(
    out: Path,
    *,
    exporter: str = "127.0.0.1:9470",
    enforcer: str = "127.0.0.1:9471",
    prometheus: str = "http://127.0.0.1:9090",
    dashboards_dir: str = "/var/lib/grafana/dashboards/credits",
    runbook: str = "docs/runbook.md",
) -> list[Path]:
    """Writes `out`/grafana and `out`/prometheus; the same arguments give the same bytes.

    `exporter` and `enforcer` are scraped (host:port), `prometheus` is the URL Grafana reaches it at,
    `dashboards_dir` is where the dashboards lie on Grafana's machine, and `runbook` is what alerts link to.

    Returns: the files written. Raises: OSError.
    """
    files = {f"grafana/dashboards/{made['uid']}.json": _json(made) for made in all_dashboards()}
    files["grafana/provisioning/datasources/credits.yaml"] = _yaml(_datasources(prometheus))
    files["grafana/provisioning/dashboards/credits.yaml"] = _yaml(_providers(dashboards_dir))
    files["prometheus/prometheus.yml"] = _yaml(_scraping(exporter, enforcer))
    files["prometheus/rules/credits-recording.yml"] = _yaml(recording_rules())
    files["prometheus/rules/credits-alerts.yml"] = _yaml(alert_rules(runbook))
    written = []
    for name, content in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        written.append(path)
    return written


def _json(made: PanelJson) -> str:
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _yaml(content: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(content, sort_keys=False, width=110, allow_unicode=True)
    return HEADER + text


def _datasources(url: str) -> dict[str, Any]:
    source = {
        "name": "Apolo Credits",
        "uid": "apolo-credits",
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "editable": False,
        "jsonData": {"httpMethod": "POST", "timeInterval": f"{SCRAPE_SECONDS}s", "prometheusType": "Prometheus"},
    }
    return {"apiVersion": 1, "datasources": [source]}


def _providers(path: str) -> dict[str, Any]:
    provider = {
        "name": "apolo-credits",
        "folder": FOLDER,
        "folderUid": "apolo-credits",
        "type": "file",
        "disableDeletion": True,
        "allowUiUpdates": False,
        "updateIntervalSeconds": 60,
        "options": {"path": path},
    }
    return {"apiVersion": 1, "providers": [provider]}


def _scraping(exporter: str, enforcer: str) -> dict[str, Any]:
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [target]}]}
        for job, target in ((EXPORTER_JOB, exporter), (ENFORCER_JOB, enforcer))
    ]
    return {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "1m"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": jobs,
    }
