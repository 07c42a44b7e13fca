"""The JSON that usage and statements are answered with; see `api.shapes`."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType, field

from api.types import Credits, Decimals, Name, Time


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
