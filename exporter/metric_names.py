"""Names and labels of every metric, in one place: dashboards and rules import them, never retype them."""

from __future__ import annotations

from typing import Final, NamedTuple


class Metric(NamedTuple):
    """One metric: full name, type for the exposition, labels in order, and its help line."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str


SPENT: Final = Metric(
    "credits_spent_total",
    "counter",
    ("cluster", "org", "project", "user", "kind", "resource", "app"),
    "Credits spent. The resource is a preset, an app or a storage class.",
)
GRANTED: Final = Metric(
    "credits_granted_total", "counter", ("org", "source"), "Credits granted, by source of the grant."
)
GRANTED_IN_USE: Final = Metric(
    "credits_granted_in_use",
    "gauge",
    ("org",),
    "Credits that the grants in force gave of which something is left; absent where credits are unlimited.",
)
AVAILABLE: Final = Metric(
    "credits_available", "gauge", ("org",), "Credits granted - expired - spent - held; absent where they are unlimited."
)
HELD: Final = Metric("credits_held", "gauge", ("org",), "Credits set aside for admitted and running work.")
OVERDRAFT: Final = Metric("credits_overdraft", "gauge", ("org",), "Credits spent beyond what was granted.")
CREDIT_LINE: Final = Metric(
    "credits_credit_line", "gauge", ("org",), "Credits by which what is available may be below zero."
)
BUDGET_LIMIT: Final = Metric(
    "credits_budget_limit",
    "gauge",
    ("org", "project", "user", "period"),
    "What a budget allows in its current period.",
)
BUDGET_REMAINING: Final = Metric(
    "credits_budget_remaining",
    "gauge",
    ("org", "project", "user", "period"),
    "What is left of a budget in its current period.",
)
BURN_RATE: Final = Metric(
    "credits_burn_rate", "gauge", ("cluster", "org", "project"), "Credits per hour that what runs now costs."
)
EXHAUSTION: Final = Metric(
    "credits_exhaustion_timestamp_seconds",
    "gauge",
    ("org",),
    "When something that runs now can no longer be paid for, at the present burn rate; absent while nothing burns.",
)
RATE: Final = Metric(
    "credits_rate",
    "gauge",
    ("cluster", "kind", "resource"),
    "Rates in force: credits per hour, of storage per GB-hour.",
)
WORKLOADS: Final = Metric(
    "credits_workloads",
    "gauge",
    ("cluster", "org", "project", "kind", "resource"),
    "Workloads that are billed now.",
)
STORAGE_BYTES: Final = Metric(
    "credits_storage_bytes",
    "gauge",
    ("cluster", "org", "project", "storage_class"),
    "Bytes stored that are billed now.",
)
SOURCE_UP: Final = Metric(
    "credits_source_up", "gauge", ("source",), "1 if the source gave a usable snapshot when last asked."
)
SOURCE_LAST_SUCCESS: Final = Metric(
    "credits_source_last_success_timestamp_seconds",
    "gauge",
    ("source",),
    "When the source last gave a usable snapshot.",
)
SOURCE_DURATION: Final = Metric(
    "credits_source_duration_seconds", "gauge", ("source",), "How long the last fetch of the source took."
)
SOURCE_FAILURES: Final = Metric(
    "credits_source_failed_rounds",
    "gauge",
    ("source",),
    "Rounds of the source that failed in a row; 0 if the last one succeeded.",
)
METER_LAG: Final = Metric(
    "credits_meter_lag_seconds",
    "gauge",
    ("source",),
    "Age of the instant up to which the source's workloads are charged.",
)
ROUND_DURATION: Final = Metric(
    "credits_meter_round_duration_seconds",
    "gauge",
    ("source",),
    "How long the last metering round took, fetch to commit.",
)
UNBILLABLE: Final = Metric(
    "credits_unbillable_workloads_total",
    "counter",
    ("source", "reason"),
    "Workloads that could not be charged, or not as they are labelled, by reason.",
)
CHARGE_BACK_PENDING: Final = Metric(
    "credits_charge_back_pending",
    "gauge",
    ("source", "of"),
    "Credits charged in full hours that the platform's balances of orgs (or users) do not show yet.",
)
CHARGE_BACK_REFUNDED: Final = Metric(
    "credits_charge_back_refunded",
    "gauge",
    ("source",),
    "Credits that corrections gave back here since charging back began; the platform is not told of them.",
)
RELOAD_OK: Final = Metric(
    "credits_config_last_reload_successful",
    "gauge",
    (),
    "1 if the configuration on disk is the one in force.",
)
RELOAD_TIME: Final = Metric(
    "credits_config_last_reload_success_timestamp_seconds",
    "gauge",
    (),
    "When the configuration was last read successfully.",
)
ADMISSIONS: Final = Metric(
    "credits_admissions_total",
    "counter",
    ("decision", "reason"),
    "Admission decisions, by decision and code.",
)
AUTH_FAILURES: Final = Metric(
    "credits_auth_failures_total",
    "counter",
    ("outcome",),
    "Tokens that were none, refused or only told to come back later; an enforcer that starts counts anew.",
)
ADMISSION_DURATION: Final = Metric(
    "credits_admission_duration_seconds", "histogram", (), "How long an admission decision took."
)
PAYMENTS_REFUSED: Final = Metric(
    "credits_payments_refused_total",
    "counter",
    ("reason",),
    "News of payments that could not be credited: money moved, or may have, and no credits did.",
)

LEDGER_UP: Final = Metric("credits_ledger_up", "gauge", (), "1 if the ledger's server answered when last asked.")
ENFORCER_LEDGER_UP: Final = Metric(
    "credits_enforcer_ledger_up", "gauge", (), "1 if the ledger answers, 0 while decisions are made without it."
)
LEDGER_EPOCH: Final = Metric(
    "credits_ledger_epoch_timestamp_seconds",
    "gauge",
    (),
    "Instant from which the ledger charges; nothing before it was spent.",
)
LEDGER_DRIFT: Final = Metric(
    "credits_ledger_drift",
    "gauge",
    (),
    "Credits by which totals and their parts differed at the last check; 0 where all is well.",
)
LEDGER_VERIFIED: Final = Metric(
    "credits_ledger_verified_timestamp_seconds",
    "gauge",
    (),
    "When the ledger's totals were last checked against their parts.",
)
EXPIRED: Final = Metric("credits_expired_total", "counter", ("org",), "Credits of grants that expired unspent.")
WITHDRAWN: Final = Metric(
    "credits_withdrawn_total",
    "counter",
    ("org",),
    "Credits that were taken back: by refunds and disputes of payments, corrections, and transfers to other orgs.",
)
RESTORED: Final = Metric(
    "credits_restored_total",
    "counter",
    ("org",),
    "Credits of payments that were taken back and given again, as when a dispute is won; no source granted them twice.",
)
HOLDS: Final = Metric("credits_holds", "gauge", ("org",), "Holds of admitted work that has not been charged yet.")
ORPHAN_HOLDS: Final = Metric(
    "credits_orphan_holds",
    "gauge",
    ("org",),
    "Holds of work that is metered already, so that credits are set aside twice; 0 where all is well.",
)
STAGE: Final = Metric(
    "credits_exhaustion_stage",
    "gauge",
    ("org",),
    "How far an org's exhaustion went: 0 none, 1 warn, 2 block, 3 grace, 4 suspend or stop.",
)
UNPRICED: Final = Metric(
    "credits_unpriced_workloads",
    "gauge",
    ("cluster", "kind", "resource"),
    "Workloads that run now on a resource without a rate.",
)

STAGES: Final = ("none", "warn", "block", "grace", "suspend or stop")
"""Names of the values of `credits_exhaustion_stage`."""
ALLOWED: Final = "allow"
DENIED: Final = "deny"
SHADOWED: Final = "shadow"
EXCEPTED: Final = "exception"
"""Values of the label `decision` of `credits_admissions_total`; `shadow`: would be denied, was let through;
`exception`: let through all the same, while the ledger was away, or as it was admitted before."""
