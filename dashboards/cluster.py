"""Cluster: who spends, and on what."""

from __future__ import annotations

from dashboards import page as p
from dashboards.figures import apps, burning, resources, shares, spenders, spent, spent_bars
from dashboards.layout import Grid, PanelJson
from dashboards.panels import lines, ranking, stat
from dashboards.promql import gauge, named, total
from dashboards.recorded import BURN_BY_ORG, STORAGE_BY_CLASS, WORKLOADS_BY_RESOURCE
from dashboards.units import BURN, BYTES, COUNT, CREDITS
from exporter.metric_names import SPENT, STORAGE_BYTES, WORKLOADS


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    variables = [p.Variable("cluster", several=True)]
    scope = p.scope(variables)
    whose = "the chosen clusters"
    grid = Grid()
    grid.line(
        4,
        spent(scope, f"all on {whose}"),
        burning(scope, f"all on {whose}"),
        stat("Running", "Workloads that are billed now.", gauge(WORKLOADS, scope), COUNT, none="nothing runs"),
        stat("Stored", "Bytes that are billed now.", gauge(STORAGE_BYTES, scope), BYTES, none="nothing stored"),
        stat(
            "Orgs that spent",
            "How many orgs spent anything over the time range.",
            f"count({total(SPENT, scope, ['org'])} > 0)",
            COUNT,
            none="none",
        ),
        stat(
            "Storage cost",
            "Credits spent on storage over the time range.",
            total(SPENT, scope, (), 'kind="storage"'),
            CREDITS,
        ),
    )
    grid.line(9, (spent_bars(scope, "org", f"all on {whose}"), 14), (shares(scope, "org"), 10))
    grid.line(
        8,
        lines(
            "Burn rate by org",
            "What each org's work costs per hour at each moment.",
            [(gauge(BURN_BY_ORG, scope, ["org"]), "{{org}}")],
            BURN,
            stacked=True,
        ),
        lines(
            "Running workloads",
            "Workloads that are billed, by preset, app or storage class.",
            [(gauge(WORKLOADS_BY_RESOURCE, scope, ["kind", "resource"]), "{{kind}} {{resource}}")],
            COUNT,
            stacked=True,
        ),
        lines(
            "Storage",
            "Bytes that are billed, by storage class.",
            [(gauge(STORAGE_BY_CLASS, scope, ["storage_class"]), "{{storage_class}}")],
            BYTES,
            stacked=True,
        ),
    )
    grid.line(10, spenders(scope, "org", p.ORGANIZATION, ["cluster"]), resources(scope))
    top = named(f"topk(10, {total(SPENT, scope, ['org', 'project'])})", "project")
    grid.line(
        8,
        ranking(
            "Top projects",
            "The ten projects that spent most over the time range, as org / project.",
            top,
            "{{org}} / {{project}}",
            CREDITS,
        ),
        apps(scope),
    )
    return p.page(p.CLUSTER, "Credits / Cluster", "Who spends on a cluster, and on what.", variables, grid)
