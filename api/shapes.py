"""The JSON that calls answer with. These types describe it; the ledger's `*_shape` functions write it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from api.types import Credits, Decimals, HoldId, Name, Period, Stage, Time, Weekday, Zone

Code = Literal["ok", "no_credits", "budget_exhausted", "unknown_org", "unpriced", "ledger_unavailable"]
Tier = Literal["org", "project", "user"]
Role = Literal["admin", "owner", "viewer", "scheduler"]


class Problem(Struct):
    """What is wrong (RFC 9457): `code` for programs, `detail` for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str


class Decision(Struct, forbid_unknown_fields=True):
    """The answer to an admission; a refusal is an answer like any other. `reason` is for the person who submitted."""

    allowed: bool
    code: Code
    reason: str
    tier: Tier | None
    available: Credits | None
    required: Credits
    hold_id: HoldId | None
    hold_expires_at: Time | None


class Quote(Struct, forbid_unknown_fields=True):
    """What work would cost, and how long the credits would last.

    `left`, and `available` (`left` less what is held), are of what such work may use, without grants for other work.
    """

    allowed: bool
    code: Code
    reason: str
    tier: Tier | None
    per_hour: Credits | None
    total: Credits | None
    required: Credits
    available: Credits | None
    left: Credits | None
    burn_rate: Credits | None
    lasts_hours: Decimals | None
    first_out: str | None


class Released(Struct, forbid_unknown_fields=True):
    """`released` false: the hold was over already."""

    hold_id: str
    released: bool


class Only(Struct, forbid_unknown_fields=True):
    """For which work a restricted grant pays; an empty list: any."""

    presets: list[Name]
    clusters: list[Name]


class Restricted(Only):
    """What is left of the grants that are restricted to the same."""

    left: Credits


class Balance(Struct, forbid_unknown_fields=True):
    """What an org has; `burn_rate` in credits an hour."""

    org: Name
    granted: Credits
    expired: Credits
    spent: Credits
    held: Credits
    available: Credits
    overdraft: Credits
    unlimited: bool
    burn_rate: Credits
    exhausted_at: Time | None
    stage: Stage
    credit_line: Credits | UnsetType = UNSET
    restricted: list[Restricted] | UnsetType = UNSET


class Org(Balance, kw_only=True):
    """An org's balance and what is set for it."""

    contact: str | None
    policy: dict[str, Any]
    credit_line: Credits


class OrgSettings(Struct, forbid_unknown_fields=True):
    """What is set for an org; `policy`: its own mode of admission, and the like."""

    org: Name
    unlimited: bool
    credit_line: Credits
    contact: str | None
    policy: dict[str, Any]


class Grant(Struct, forbid_unknown_fields=True):
    """A grant as it was acknowledged; `new_org`: nothing was known of the org before, so the name may be misspelled."""

    org: Name
    idempotency_key: str
    credits: Credits
    source: str
    reason: str | None
    purpose: str
    only: Only | None
    granted_at: Time
    effective_at: Time | None
    expires_at: Time | None
    new_org: bool | UnsetType = UNSET


class GrantState(Grant, kw_only=True):
    """A grant and what is left of it; `corrected`: by how much corrections changed it in all."""

    who: str
    remaining: Credits
    corrected: Credits
    state: Literal["not_yet", "in_force", "used_up", "expired"]


class Correction(Struct, forbid_unknown_fields=True):
    """A correction as it was acknowledged; `credits` below 0: taken back. `grant`: key of the grant it gave;
    `overdraft`: what of the credits taken back no grant covered."""

    org: Name
    idempotency_key: str
    credits: Credits
    corrects: str
    what: Literal["grant", "entry", "workload"]
    reason: str
    at: Time
    grant: str | None
    overdraft: Credits


class TransferPart(Struct, forbid_unknown_fields=True):
    """Credits that expire together."""

    credits: Credits
    expires_at: Time | None


class Transfer(Struct, forbid_unknown_fields=True):
    """A transfer, and what of it expires when."""

    idempotency_key: str
    from_: Name = field(name="from")
    to: Name
    credits: Credits
    reason: str
    at: Time
    state: Literal["done"]
    parts: list[TransferPart]


class Token(Struct, forbid_unknown_fields=True):
    """A token, without what it is used by; `last_used_at` to the minute."""

    id: str
    role: Role
    org: Name | None
    note: str
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None


class NewToken(Struct, forbid_unknown_fields=True):
    """A token as it is made; `token` is shown this once."""

    id: str
    role: Role
    org: Name | None
    token: str
    expires_at: Time | None


class Budget(Struct, forbid_unknown_fields=True):
    """A budget and what its current period has left; `user` null: of the whole project."""

    org: Name
    project: Name
    user: Name | None
    credits: Credits
    period: Period
    timezone: Zone
    week_start: Weekday
    spent: Credits
    held: Credits
    remaining: Credits
    starts_at: Time | None
    ends_at: Time | None


class JournalEntry(Struct):
    """One entry; the fields beside these depend on `type`."""

    id: str
    type: str
    at: Time


class UsageRow(Struct):
    """Sums of one group: a field for each name of `group_by`, `at` with a step, times and kind of a workload."""

    credits: Credits
    hours: Decimals
    at: Time | UnsetType = UNSET


class Usage(Struct, forbid_unknown_fields=True):
    """What was used in a period. Where hours were merged into days, `exact_from` and `exact_to` say what is summed."""

    from_: Time = field(name="from")
    to: Time
    exact_from: Time
    exact_to: Time
    exact: bool
    group_by: list[str]
    rows: list[UsageRow]
    total: Credits
    total_hours: Decimals
    next: str | None
    step: str | UnsetType = UNSET
    timezone: str | UnsetType = UNSET
    total_refunded: Credits | UnsetType = UNSET


class StatementEntry(Struct, forbid_unknown_fields=True):
    """Credits that came or went otherwise than by use."""

    type: str
    at: Time
    credits: Credits
    source: str | None
    reason: str | None


class StatementCharge(Struct, forbid_unknown_fields=True):
    """What was used of one resource."""

    project: str | None
    kind: str
    resource: str
    app: str | None
    credits: Credits
    hours: Decimals


class Statement(Struct, forbid_unknown_fields=True):
    """A month of an org: opening + granted + corrections + transferred - expired - charged = closing."""

    org: Name
    month: str
    timezone: str
    from_: Time = field(name="from")
    to: Time
    opening: Credits
    granted: Credits
    corrections: Credits
    transferred: Credits
    expired: Credits
    charged: Credits
    closing: Credits
    entries: list[StatementEntry]
    charges: list[StatementCharge]
    charged_until: Time | None


class Order(Struct, forbid_unknown_fields=True):
    """A purchase; `amount` in the currency, `returned`: credits taken back by refunds and disputes."""

    id: str
    org: Name
    credits: Credits
    amount: Decimals
    currency: str
    state: Literal["new", "open", "pending", "paid", "expired", "failed"]
    checkout_url: str | None
    expires_at: Time | None
    created_at: Time
    paid_at: Time | None
    payments: list[str]
    returned: Credits
    who: str


class Card(Struct, forbid_unknown_fields=True):
    """A card that its owner agreed to have charged again; `expires`: the last month, `2030-04`."""

    brand: str
    last4: str
    expires: str
    agreed_at: Time
    agreed_by: str


class AutoTopUp(Struct, forbid_unknown_fields=True):
    """Below `threshold` available credits, `credits` are bought. The terms are null where there are none.

    `order`: the one in flight. `ordered`: in the calendar month (UTC) `month`, of at most `monthly_cap`.
    """

    org: Name
    enabled: bool
    threshold: Credits | None
    credits: Credits | None
    monthly_cap: Credits | None
    cool_down_minutes: float | None
    state: Literal["off", "ready", "in_flight", "cooling", "capped", "no_card", "paused"]
    paused_reason: str | None
    declines: int
    order: str | None
    cools_until: Time | None
    month: str
    ordered: Credits
    card: Card | None


class Package(Struct, forbid_unknown_fields=True):
    """Credits that are sold together."""

    credits: Credits
    price: Decimals


class Offer(Struct, forbid_unknown_fields=True):
    """What is sold; prices are in the currency."""

    currency: str
    price_per_credit: Decimals
    minimum_credits: Credits
    maximum_credits: Credits
    packages: list[Package]


class NoticeHook(Struct, forbid_unknown_fields=True):
    """A webhook; the `secret` that signs is shown only in the answer to the call that made it."""

    url: str
    secret: str | None


class NoticePreferences(Struct, forbid_unknown_fields=True):
    """Whom an org has told of what; below `runway_hours` of credits it is told so."""

    org: Name
    email: list[str]
    kinds: list[Literal["stage", "runway", "budget", "purchase", "refund", "top_up"]]
    runway_hours: float
    webhook: NoticeHook | None


class NoticeTest(Struct, forbid_unknown_fields=True):
    """A test is on its way to these."""

    event: str
    email: list[str]
    webhook: str | None


class Received(Struct, forbid_unknown_fields=True):
    """News of payments were taken."""

    received: bool
    results: list[str]


class Health(Struct, forbid_unknown_fields=True):
    """The process answers."""

    status: Literal["ok"]


class Ready(Struct, forbid_unknown_fields=True):
    """`ledger` false: decisions are made without it, as `admission.on_ledger_down` says."""

    status: Literal["ok"]
    ledger: bool
