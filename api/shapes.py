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


class Health(Struct, forbid_unknown_fields=True):
    """The process answers."""

    status: Literal["ok"]


class Ready(Struct, forbid_unknown_fields=True):
    """`ledger` false: decisions are made without it, as `admission.on_ledger_down` says."""

    status: Literal["ok"]
    ledger: bool
