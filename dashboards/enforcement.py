"""Enforcement: what was let in and what was refused, why, and how far exhaustion went."""

from __future__ import annotations

from dashboards import page as p
from dashboards.figures import EXACT
from dashboards.layout import Grid, PanelJson
from dashboards.panels import bars, lines, stat, timeline
from dashboards.promql import Scope, each, gauge, total, trend
from dashboards.recorded import RUNWAY
from dashboards.tables import Column, counted, table
from dashboards.units import (
    ANY_IS_BAD,
    ANY_IS_ODD,
    COUNT,
    CREDITS,
    DECISION,
    FREQUENCY,
    LATENCY,
    NEUTRAL,
    SECONDS,
    named_values,
)
from dashboards.units import RUNWAY as RUNWAY_STEPS
from dashboards.units import (
    STAGE as STAGE_STEPS,
)
from exporter.metric_names import (
    ADMISSION_DURATION,
    ADMISSIONS,
    ALLOWED,
    AUTH_FAILURES,
    AVAILABLE,
    DENIED,
    EXCEPTED,
    HELD,
    HOLDS,
    ORPHAN_HOLDS,
    SHADOWED,
    STAGE,
    STAGES,
)

REFUSED, EXCEPTIONS, SHADOW = (f'decision="{value}"' for value in (DENIED, EXCEPTED, SHADOWED))
UNCHECKED = 'reason="ledger_unavailable"'


def _quantile(share: float) -> str:
    buckets = f"sum by (le) (rate({ADMISSION_DURATION.name}_bucket[$__rate_interval]))"
    return f"histogram_quantile({share}, {buckets})"


def dashboard() -> PanelJson:
    """The dashboard's JSON."""
    scope = Scope()
    grid = Grid()
    grid.line(
        4,
        stat("Decisions", f"Admission requests answered in the time range. {EXACT}", total(ADMISSIONS, scope), COUNT),
        stat(
            "Refused",
            f"Requests that were refused. A refusal is a decision, not an error. {EXACT}",
            total(ADMISSIONS, scope, (), REFUSED),
            COUNT,
        ),
        stat(
            "Would be refused",
            f"Requests let through because enforcement only watches (shadow mode). {EXACT}",
            total(ADMISSIONS, scope, (), SHADOW),
            COUNT,
        ),
        stat(
            "Let in unchecked",
            f"Requests allowed because the ledger did not answer. An alert fires on each. {EXACT}",
            total(ADMISSIONS, scope, (), EXCEPTIONS, UNCHECKED),
            COUNT,
            ANY_IS_BAD,
        ),
        stat("Open holds", "Admitted work not yet charged.", gauge(HOLDS, scope), COUNT, none="none"),
        stat(
            "Orphan holds",
            "Holds that outlive their work and keep credits back; there should be none.",
            gauge(ORPHAN_HOLDS, scope),
            COUNT,
            ANY_IS_ODD,
            none="none",
        ),
    )
    decisions = [(trend(ADMISSIONS, scope, ["decision"]), "{{decision}}")]
    reasons = [(trend(ADMISSIONS, scope, ["reason"], f'decision!="{ALLOWED}"'), "{{reason}}")]
    grid.line(
        9,
        bars("Decisions by outcome", "Admission requests answered in each interval, by decision.", decisions, COUNT),
        bars("Refusals by reason", "Requests refused, or that would be in shadow mode, by reason.", reasons, COUNT),
        lines(
            "Time to decide",
            "How long half of the decisions, and 99 of 100, took at most. The line is the whole budget of a decision.",
            [(_quantile(0.5), "half"), (_quantile(0.99), "99 of 100")],
            LATENCY,
            DECISION,
        ),
    )
    grid.line(
        8,
        timeline(
            "Stages",
            "How far each org's exhaustion went at each moment: none, warn, block new work, grace, suspend or stop.",
            each(STAGE, scope),
            "{{org}}",
            COUNT,
            STAGE_STEPS,
            named_values(STAGES),
        ),
        lines(
            "Credits held",
            "Credits set aside for admitted and running work, by org.",
            [(gauge(HELD, scope, ["org"]), "{{org}}")],
            CREDITS,
            stacked=True,
        ),
        lines(
            "Failed sign-ins a minute",
            "Tokens that are unknown, expired or revoked, also in sign-ins: refused, or only told to come back later.",
            [(f"60 * sum by (outcome) (rate({AUTH_FAILURES.name}[$__rate_interval]))", "{{outcome}}")],
            FREQUENCY,
        ),
    )
    late = f"({each(STAGE, scope)} > 0)"
    orgs = [
        Column("Stage", late, COUNT, STAGE_STEPS, mappings=named_values(STAGES)),
        Column("Available", f"{each(AVAILABLE, scope)} and on (org) {late}", CREDITS),
        Column("Runway", f"{each(RUNWAY, scope)} and on (org) {late}", SECONDS, RUNWAY_STEPS),
    ]
    holds = [
        counted("Open", gauge(HOLDS, scope, ["org"])),
        counted("Orphans", gauge(ORPHAN_HOLDS, scope, ["org"])),
        Column("Held", gauge(HELD, scope, ["org"]), CREDITS, NEUTRAL),
    ]
    link = {"org": p.drill("Open this org", p.ORGANIZATION, "org", [])}
    by_reason = total(ADMISSIONS, scope, ["decision", "reason"])
    grid.line(
        9,
        table("Orgs running out", "Orgs in any stage of exhaustion now.", ["org"], orgs, links=link),
        table("Holds", "Holds of each org now. Orphans outlive their work.", ["org"], holds, links=link),
        table(
            "Reasons",
            f"Admission requests in the time range, by decision and reason. {EXACT}",
            ["decision", "reason"],
            [counted("Requests", by_reason)],
        ),
    )
    about = "What was let in and what was refused, why, and how far exhaustion went."
    return p.page(p.ENFORCEMENT, "Credits / Enforcement", about, [], grid)
