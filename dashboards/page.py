"""What all dashboards share: variables that narrow each other down, links that keep them, and the frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafanalib.core import Annotations, Dashboard, DashboardLink, Template, Templating, Time

from dashboards.layout import Grid, PanelJson
from dashboards.panels import DATASOURCE, plain
from dashboards.promql import Scope
from exporter.metric_names import AVAILABLE, BUDGET_LIMIT, RATE, SPENT, Metric

TAG = "apolo-credits"
SCHEMA_VERSION = 39
ALL = ".*"

HOME, CLUSTER, ORGANIZATION, PROJECT, USER, RATES, ENFORCEMENT, EXPORTER = (
    f"credits-{name}"
    for name in ("home", "cluster", "organization", "project", "user", "rates", "enforcement", "exporter-health")
)


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: a label's values, narrowed by the choices before it."""

    label: str
    several: bool = False
    """Several may be chosen, and all are to begin with."""

    @property
    def matcher(self) -> str:
        """The PromQL matcher of the choice."""
        return f'{self.label}=~"${self.label}"' if self.several else f'{self.label}="${self.label}"'


def scope(variables: Sequence[Variable]) -> Scope:
    """What the choices leave to look at."""
    return Scope({variable.label: variable.matcher for variable in variables})


_NAMED_BY: dict[str, tuple[Metric, ...]] = {
    "cluster": (SPENT, RATE),
    "org": (SPENT, AVAILABLE),
    "project": (SPENT, BUDGET_LIMIT),
    "user": (SPENT, BUDGET_LIMIT),
}
"""Metrics whose labels give a variable its values; the second brings those that have not spent yet."""


def _template(variable: Variable, before: Sequence[Variable]) -> PanelJson:
    metrics = _NAMED_BY[variable.label]
    matchers = [f'__name__=~"{"|".join(metric.name for metric in metrics)}"']
    for earlier in before:
        shared = all(earlier.label in metric.labels for metric in metrics)
        # A metric without the earlier label passes: its values cannot be narrowed down by it.
        matchers.append(earlier.matcher if shared else f'{earlier.label}=~"${earlier.label}|"')
    query = f"label_values({{{','.join(matchers)}}}, {variable.label})"
    made: PanelJson = plain(
        Template(
            name=variable.label,
            label=variable.label.capitalize(),
            query=query,
            dataSource=DATASOURCE,
            includeAll=variable.several,
            multi=variable.several,
            allValue=ALL if variable.several else None,
            refresh=2,
        )
    )
    made["query"] = {"query": query, "refId": f"variable-{variable.label}", "qryType": 1}
    if variable.several:
        return {**_current_keys(made), "current": {"selected": True, "text": ["All"], "value": ["$__all"]}}
    return _current_keys(made)


def _datasource() -> PanelJson:
    made: PanelJson = plain(
        Template(name="datasource", label="Data source", query="prometheus", type="datasource", refresh=1)
    )
    return _current_keys(made)


def _current_keys(template: PanelJson) -> PanelJson:
    """Without the keys of older Grafanas, and without a choice: Grafana makes the first one."""
    for key in ("current", "useTags", "tagsQuery", "tagValuesQuery", "auto", "auto_count", "auto_min"):
        template.pop(key, None)
    return {**template, "skipUrlSync": False, "regex": ""}


def drill(title: str, uid: str, label: str, kept: Sequence[str]) -> PanelJson:
    """A link from a value of a label to that value's dashboard; keeps the time range and the `kept` choices."""
    choices = "".join(f"&${{{name}:queryparam}}" for name in kept)
    url = f"/d/{uid}?${{__url_time_range}}&${{datasource:queryparam}}{choices}&var-{label}=${{__value.raw}}"
    return {"title": title, "url": url, "targetBlank": False}


def to_dashboard(title: str, uid: str, kept: Sequence[str] = ()) -> PanelJson:
    """A link from a panel to another dashboard as it is; keeps the time range and the `kept` choices."""
    choices = "".join(f"&${{{name}:queryparam}}" for name in kept)
    return {
        "title": title,
        "url": f"/d/{uid}?${{__url_time_range}}&${{datasource:queryparam}}{choices}",
        "targetBlank": False,
    }


def changes(name: str, description: str, expr: str, colour: str, text: str) -> PanelJson:
    """Marks on the time axis wherever an expression has a value."""
    target = {
        "expr": expr,
        "refId": "Anno",
        "interval": "1m",
        "datasource": DATASOURCE,
        "range": True,
        "instant": False,
    }
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "step": "1m",
        "titleFormat": description,
        "textFormat": text,
        "target": target,
    }


def page(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[Variable],
    grid: Grid,
    annotations: Sequence[PanelJson] = (),
    period: str = "now-7d",
) -> PanelJson:
    """A whole dashboard as JSON, ready for Grafana."""
    templates = [_datasource(), *(_template(v, variables[:i]) for i, v in enumerate(variables))]
    link = DashboardLink(
        title="Credits", tags=[TAG], asDropdown=True, includeVars=True, keepTime=True, icon="external link"
    )
    made: dict[str, Any] = plain(
        Dashboard(
            title=title,
            uid=uid,
            description=description,
            tags=[TAG],
            timezone="browser",
            schemaVersion=SCHEMA_VERSION,
            refresh="1m",
            time=Time(period, "now"),
            editable=False,
            graphTooltip=1,
            panels=grid.panels,
            links=[link],
            annotations=Annotations(list=list(annotations)),
            templating=Templating(list=templates),
            version=1,
        )
    )
    for key in ("__inputs", "hideControls", "rows", "sharedCrosshair", "style", "gnetId"):
        made.pop(key, None)
    made["timepicker"] = {}
    return made
