"""The usage explorer: exact sums of any period, filtered and grouped as asked, as a table and as CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from aiohttp import web

from console import texts
from console.charts import label
from console.desk import Desk
from console.pages import headers
from console.periods import CUSTOM, PERIODS, Period, read_period
from ledger.clock import parse_time
from ledger.errors import InvalidRequest
from ledger.steps import STEPS
from ledger.store import Ledger
from ledger.usage import usage
from ledger.usage_reader import OrgReader
from ledger.usage_report import GROUPS, UsageQuery, UsageReport

FILTERS: Final = ("cluster", "project", "user", "kind")
KINDS: Final = ("job", "app", "storage")
_BY: Final = tuple(name for name in GROUPS if name != "org")
_AT_ONCE: Final = 100
_SUGGESTED: Final = 300
_FIELD: Final = re.compile(r"(from|to|period|step|timezone|group_by|cursor|kind|project|user|cluster)\b")
_TITLES: Final = {
    "at": "From", "cluster": "Cluster", "project": "Project", "user": "User", "kind": "Kind",
    "resource": "Preset or class", "app": "App", "workload": "Workload", "id": "Id", "started_at": "Started",
    "ended_at": "Ended", "credits": "Credits", "hours": "Hours", "refunded": "Given back",
}  # fmt: skip
NUMBERS: Final = frozenset({"credits", "hours", "refunded"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person chose, as text, so that it is kept where it cannot be used."""

    period: str
    first: str
    last: str
    step: str
    timezone: str
    group_by: tuple[str, ...]
    filters: Mapping[str, str]

    def parameters(self) -> list[tuple[str, str]]:
        """As parameters of an address."""
        found = [("period", self.period)]
        if self.period == CUSTOM:
            found += [("from", self.first), ("to", self.last)]
        found += [(name, value) for name, value in self.filters.items() if value]
        found += [("group_by", name) for name in self.group_by]
        if self.step:
            found.append(("step", self.step))
        return [*found, ("timezone", self.timezone)]


class UsagePages:
    """The explorer."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: web.Request) -> web.Response:
        """`format=csv` gives all rows as a file. Raises: UnknownOrg, LedgerUnavailable."""
        org, ledger = request.match_info["org"], self._desk.ledger
        asked = self._read(request)
        errors: dict[str, str] = {}
        report: UsageReport | None = None
        shape: dict[str, Any] = {}
        cursor = request.query.get("cursor")
        try:
            period = read_period(
                {"period": asked.period, "from": asked.first, "to": asked.last},
                texts.zone_or_utc(asked.timezone), ledger.clock(),
            )  # fmt: skip
            async with self._desk.turns:
                report = await usage(ledger, _query(org, period, asked))
            shape = report.shape(_AT_ONCE, cursor)
        except InvalidRequest as error:
            found = _FIELD.match(str(error))
            errors[found[1] if found else ""] = str(error)
        if report is not None and not errors and request.query.get("format") == "csv":
            return _file(report)
        first = urlencode(asked.parameters())
        after = shape.get("next")
        return self._desk.pages.render(
            request,
            "usage.html",
            status=422 if errors else 200,
            asked=asked,
            errors=errors,
            other_errors=[text for name, text in errors.items() if name in ("", "cursor", "group_by")],
            periods=[*PERIODS, (CUSTOM, "From – to")],
            steps=[("", "No steps"), *((step, f"By {step}") for step in STEPS)],
            kinds=[("", "All kinds"), *((kind, kind.capitalize()) for kind in KINDS)],
            groups=[(name, _TITLES[name]) for name in _BY],
            zones=texts.zones(),
            suggested=await suggested_names(ledger, org),
            is_custom=asked.period == CUSTOM,
            shape=shape,
            columns=[] if report is None else _columns(report),
            rows=[] if report is None or errors else _rows(report, shape),
            count=0 if report is None else len(report.rows),
            csv_url=f"?{first}&format=csv",
            first_page=f"?{first}" if cursor else None,
            next_page=f"?{first}&{urlencode({'cursor': after})}" if after else None,
        )

    def _read(self, request: web.Request) -> Asked:
        query = request.query
        first, last = query.get("from", "").strip(), query.get("to", "").strip()
        groups = [part.strip() for text in query.getall("group_by", []) for part in text.split(",")]
        return Asked(
            query.get("period") or (CUSTOM if first or last else "7d"), first, last, query.get("step", ""),
            query.get("timezone") or self._desk.pages.zone(request),
            tuple(dict.fromkeys(name for name in groups if name)) or ("project",),
            {name: query.get(name, "").strip() for name in FILTERS},
        )  # fmt: skip


async def suggested_names(ledger: Ledger, org: str) -> dict[str, list[str]]:
    """Clusters, projects and users of an org, to choose from."""
    reader = OrgReader(ledger, org)
    await reader.open()
    return {
        name: sorted({getattr(row, name) for row in reader.rows} - {""})[:_SUGGESTED]
        for name in ("cluster", "project", "user")
    }


def _query(org: str, period: Period, asked: Asked) -> UsageQuery:
    kind = asked.filters["kind"]
    if kind and kind not in KINDS:
        raise InvalidRequest(f"kind: {kind!r:.40} is none of {', '.join(KINDS)}")
    return UsageQuery(
        from_us=period.since_us,
        to_us=period.until_us,
        org=org,
        cluster=asked.filters["cluster"] or None,
        project=asked.filters["project"] or None,
        user=asked.filters["user"] or None,
        kind=kind or None,
        group_by=asked.group_by,
        step=asked.step or None,
        timezone=asked.timezone,
    )


def _columns(report: UsageReport) -> list[tuple[str, str, bool]]:
    """(name, title, whether it is a number): `workload` is in `id`, and `refunded` there only where something was."""
    has_refunds = "refunded" in report.totals()
    return [
        (name, _TITLES.get(name, name), name in NUMBERS)
        for name in report.columns()
        if name != "workload" and (name != "refunded" or has_refunds)
    ]


def _rows(report: UsageReport, shape: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The page's rows; `at` in words, and what each name is where there is none."""
    query = report.query
    rows = []
    for row in shape["rows"]:
        at = row.get("at")
        shown = {} if at is None else {"at": label(parse_time(at), query.step or "hour", query.timezone, full=True)}
        rows.append({**row, **shown})
    return rows


def _file(report: UsageReport) -> web.Response:
    about = {**headers(), "Content-Disposition": 'attachment; filename="usage.csv"'}
    return web.Response(text="".join(report.csv()), content_type="text/csv", charset="utf-8", headers=about)
