"""A month of an org on one page: what it had, got, used and has left, adding up to the micro-credit.

Charges count when the work ran, grants when they came into force, what was left of them when they expired, and
corrections when they were made (of a grant that was not in force then: when it begins, or when it ended); what is yet
to come does not count. So a statement changes while charges of its month
still come in late.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from ledger import csv_text, keys
from ledger.accounts import GrantRecord
from ledger.clock import format_time, from_us, parse_time
from ledger.connect import again
from ledger.errors import InvalidRequest, UnknownOrg
from ledger.lua import text
from ledger.money import HOUR_US, format_hours, format_micro, parse_credits
from ledger.steps import check_zone, step_bounds
from ledger.store import Ledger
from ledger.transfers import SOURCE
from ledger.usage import usage
from ledger.usage_reader import read_horizon
from ledger.usage_report import UsageQuery, UsageReport

_MONTH: Final = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")
_GROUPS: Final = ("project", "kind", "resource", "app")


@dataclass(frozen=True, slots=True)
class Entry:
    """Credits that came or went at an instant; `what`: grant, correction, transfer or expired. What a refund of a
    payment took back is a correction below 0, what went to another org is a transfer below 0."""

    what: str
    at_us: int
    micro: int
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class Charge:
    """What a project used of a preset, an app or a storage class."""

    project: str
    kind: str
    resource: str
    app: str
    micro: int
    us: int


@dataclass(frozen=True, slots=True)
class Statement:
    """closing = opening + granted + corrections + transferred - expired - charged, always.

    `charged_until_us`: instant of the last snapshot that was charged, None before the first.
    """

    org: str
    month: str
    timezone: str
    from_us: int
    to_us: int
    opening_micro: int
    closing_micro: int
    entries: tuple[Entry, ...]
    charges: tuple[Charge, ...]
    charged_until_us: int | None

    def sum_of(self, what: str) -> int:
        """Micro-credits of all entries of one sort."""
        return sum(entry.micro for entry in self.entries if entry.what == what)

    @property
    def charged_micro(self) -> int:
        return sum(charge.micro for charge in self.charges)

    def shape(self) -> dict[str, Any]:
        """As `--json` and HTTP give it."""
        return {
            "org": self.org,
            "month": self.month,
            "timezone": self.timezone,
            "from": format_time(self.from_us),
            "to": format_time(self.to_us),
            "opening": format_micro(self.opening_micro),
            "granted": format_micro(self.sum_of("grant")),
            "corrections": format_micro(self.sum_of("correction")),
            "transferred": format_micro(self.sum_of("transfer")),
            "expired": format_micro(self.sum_of("expired")),
            "charged": format_micro(self.charged_micro),
            "closing": format_micro(self.closing_micro),
            "entries": [
                {
                    "type": entry.what,
                    "at": format_time(entry.at_us),
                    "credits": format_micro(entry.micro),
                    "source": entry.source,
                    "reason": entry.reason or None,
                }
                for entry in self.entries
            ],
            "charges": [
                {
                    "project": charge.project or None,
                    "kind": charge.kind,
                    "resource": charge.resource,
                    "app": charge.app or None,
                    "credits": format_micro(charge.micro),
                    "hours": format_hours(charge.us),
                }
                for charge in self.charges
            ],
            "charged_until": None if self.charged_until_us is None else format_time(self.charged_until_us),
        }

    def csv(self) -> Iterator[str]:
        """Lines of CSV: the credits of all lines but the last add up to the last one's."""
        columns = ["entry", "at", "project", "kind", "resource", "app", "hours", "source", "reason", "credits"]
        rows: list[Mapping[str, Any]] = [
            {"entry": "opening balance", "at": format_time(self.from_us), "credits": format_micro(self.opening_micro)}
        ]
        rows += [
            {
                "entry": entry.what,
                "at": format_time(entry.at_us),
                "source": entry.source,
                "reason": entry.reason,
                "credits": format_micro(-entry.micro if entry.what == "expired" else entry.micro),
            }
            for entry in self.entries
        ]
        rows += [
            {
                "entry": "charge",
                "project": charge.project,
                "kind": charge.kind,
                "resource": charge.resource,
                "app": charge.app,
                "hours": format_hours(charge.us),
                "credits": format_micro(-charge.micro),
            }
            for charge in self.charges
        ]
        rows.append(
            {"entry": "closing balance", "at": format_time(self.to_us), "credits": format_micro(self.closing_micro)}
        )
        return csv_text.lines(columns, rows)


async def statement(ledger: Ledger, org: str, month: str, timezone: str = "UTC") -> Statement:
    """The statement of a month like `2026-11`, by the clocks of a time zone.

    Raises: InvalidRequest, UnknownOrg, LedgerUnavailable.
    """
    since, until = month_bounds(month, timezone)
    if org not in await ledger.accounts.orgs():
        raise UnknownOrg(org)
    entries = await entries_of(ledger, org)
    marks = await ledger.charging.source_marks()
    # Where hours are not kept any more, the days that are; cut alike at both ends, so that no day is in two months.
    horizon = await read_horizon(ledger)
    since, until = horizon.settle(since, up=True), horizon.settle(until, up=True)
    used = await usage(ledger, UsageQuery(from_us=since, to_us=until, org=org, group_by=_GROUPS))
    since, until = used.from_us, used.to_us
    before = await _charged_before(ledger, org, since)
    within = tuple(entry for entry in entries if since <= entry.at_us < until)
    opening = sum(_signed(entry) for entry in entries if entry.at_us < since) - before
    found = Statement(
        org=org,
        month=month,
        timezone=timezone,
        from_us=since,
        to_us=until,
        opening_micro=opening,
        closing_micro=opening + sum(map(_signed, within)) - used.total_micro,
        entries=within,
        charges=tuple(_charges(used)),
        charged_until_us=max(marks.values(), default=None),
    )
    assert found.closing_micro == (
        found.opening_micro
        + found.sum_of("grant")
        + found.sum_of("correction")
        + found.sum_of("transfer")
        - found.sum_of("expired")
        - found.charged_micro
    )
    return found


def month_bounds(month: str, timezone: str) -> tuple[int, int]:
    """[start, end) of a month like `2026-11` in a time zone. Raises: InvalidRequest."""
    if _MONTH.fullmatch(month) is None or not "1971" <= month[:4] <= "9998":
        raise InvalidRequest(f"month {month[:40]!r}: expected one like 2026-11")
    # Noon of its second day (UTC) is in the month everywhere.
    return step_bounds("month", check_zone(timezone), parse_time(f"{month}-02T12:00:00Z"))


async def _charged_before(ledger: Ledger, org: str, us: int) -> int:
    first = ledger.epoch_us - ledger.epoch_us % HOUR_US
    if us <= first:
        return 0
    return (await usage(ledger, UsageQuery(from_us=first, to_us=us, org=org, group_by=()))).total_micro


def last_month(now_us: int, timezone: str) -> str:
    """The last month that is over, like `2026-10`. Raises: InvalidRequest for a time zone that is none."""
    start, _ = step_bounds("month", check_zone(timezone), now_us)
    return f"{from_us(start - 1).astimezone(ZoneInfo(timezone)):%Y-%m}"


async def entries_of(ledger: Ledger, org: str) -> list[Entry]:
    """All that came to an org and went but its charges, by time, up to now."""
    client: Any = ledger.client
    purse = {text(k): v for k, v in (await again(partial(client.hgetall, keys.of_org(org).purse))).items()}
    entries = []
    for record in await ledger.accounts.grants(org):
        micro = parse_credits(record.credits)
        what = "transfer" if record.source == SOURCE else "correction" if is_correction(record) else "grant"
        entries.append(Entry(what, parse_time(record.effective_at), micro, record.source, record.reason))
        if record.expires_at is not None and record.key in purse:
            # What is left after the end is never spent any more, but by late charges of the time before it.
            left = int(purse[record.key].split(b"|")[2])
            entries.append(Entry("expired", parse_time(record.expires_at), left, record.source, record.reason))
    for taken in await taken_back(ledger, org):
        # What was taken of a grant that was not in force is gone when it begins, or was gone when it ended: until then,
        # or since then, it is no part of any balance.
        for at_us, micro in ((taken.apart_us, -taken.apart_micro), (taken.at_us, taken.micro + taken.apart_micro)):
            if micro:
                entries.append(Entry(taken.what, at_us, micro, taken.source, taken.reason))
    now = ledger.clock()
    return sorted((e for e in entries if e.at_us <= now), key=lambda entry: (entry.at_us, entry.what))


@dataclass(frozen=True, slots=True)
class Taken:
    """Credits that were taken back (micro < 0), or given again: a correction or a transfer.

    `apart_micro`: what of those taken back a grant gave that was not in force, which counts at `apart_us`.
    """

    what: str
    at_us: int
    micro: int
    apart_micro: int
    apart_us: int
    source: str
    reason: str


async def taken_back(ledger: Ledger, org: str) -> list[Taken]:
    """All that was ever taken back of an org or given again, in no order."""
    client: Any = ledger.client
    found = []
    for entry in map(msgspec.json.decode, await again(partial(client.hvals, keys.of_org(org).withdrawals))):
        micro = parse_credits(entry["credits"])
        found.append(
            Taken(
                "transfer" if entry["type"] == "transfer" else "correction",
                parse_time(entry["at"]),
                -micro if entry["type"] == "withdrawal" else micro,
                parse_credits(entry.get("apart", "0")),
                int(entry.get("apart_us", 0)),
                entry.get("source", "purchase"),
                entry["reason"],
            )
        )
    return found


def is_correction(record: GrantRecord) -> bool:
    """Whether a grant gives back what was charged and then taken back; nobody asked for it, so it has no digest."""
    return not record.digest


def _signed(entry: Entry) -> int:
    return -entry.micro if entry.what == "expired" else entry.micro


def _charges(report: UsageReport) -> Iterator[Charge]:
    for row in report.rows:
        yield Charge(**row.names, micro=row.micro, us=row.us)
