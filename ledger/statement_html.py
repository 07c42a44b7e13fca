"""A statement as one page of HTML: no script, nothing from elsewhere, made to be printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from html import escape
from typing import Final
from zoneinfo import ZoneInfo

from ledger.clock import from_us
from ledger.money import MICRO, format_hours
from ledger.statement import Statement

_STYLE: Final = """
:root { color-scheme: light }
body { font: 11pt/1.45 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 48rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin: 0 0 .2rem } h2 { font-size: 1.05rem; margin: 1.8rem 0 .4rem }
p { margin: .2rem 0; color: #57606a }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #d0d7de; vertical-align: top; overflow-wrap: anywhere }
th { font-weight: 600 } th:last-child, td:last-child, .n { text-align: right; padding-right: 0; white-space: nowrap }
.n { padding-right: .6rem } tr.sum td, tr.sum th { font-weight: 600; border-bottom: 2px solid #1b1f24 }
thead { display: table-header-group } tr { break-inside: avoid }
@media print { body { margin: 0; max-width: none; font-size: 9.5pt } @page { margin: 18mm } }
"""  # noqa: E501


def statement_html(found: Statement) -> str:
    """The whole document; whatever is in a name is shown as text."""
    zone = ZoneInfo(found.timezone)
    first = from_us(found.from_us).astimezone(zone)
    summary = [
        ("Opening balance", found.opening_micro),
        ("Grants", found.sum_of("grant")),
        ("Corrections", found.sum_of("correction")),
        ("Transfers", found.sum_of("transfer")),
        ("Expired", -found.sum_of("expired")),
        ("Charges", -found.charged_micro),
    ]
    moved = [
        (_when(entry.at_us, zone), entry.what, entry.source, entry.reason, _credits(_sign(entry.what) * entry.micro))
        for entry in found.entries
    ]
    charges = [
        (c.project or "-", c.kind, c.resource + (f" ({c.app})" if c.app and c.app != c.resource else ""),
         format_hours(c.us), _credits(c.micro))
        for c in found.charges
    ]  # fmt: skip
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(found.org)}: {escape(found.month)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(found.org)}</h1>",
        f"<p>Statement of credits, {first:%B %Y}, by the clocks of {escape(found.timezone)}</p>",
        f"<p>{_when(found.from_us, zone)} to {_when(found.to_us, zone)}{_until(found, zone)}</p>",
        "<h2>Balance</h2><table><tbody>",
        *(f"<tr><th>{name}</th><td>{_credits(micro)}</td></tr>" for name, micro in summary),
        f'<tr class="sum"><th>Closing balance</th><td>{_credits(found.closing_micro)}</td></tr></tbody></table>',
        *_table("Grants, corrections, transfers, expiries", ("When", "What", "Source", "Reason", "Credits"), moved, ()),
        *_table(
            "Charges", ("Project", "Kind", "Preset or class", "Hours", "Credits"), charges, (3,), found.charged_micro
        ),
        "</body></html>",
    ]
    return "\n".join(parts)


def _table(
    title: str,
    columns: Iterable[str],
    rows: Sequence[tuple[str, ...]],
    numbers: tuple[int, ...],
    total: int | None = None,
) -> Iterable[str]:
    yield f"<h2>{title}</h2>"
    if not rows:
        yield "<p>None.</p>"
        return
    heads = [f'<th class="n">{c}</th>' if n in numbers else f"<th>{c}</th>" for n, c in enumerate(columns)]
    yield f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>"
    for row in rows:
        cells = [
            f'<td class="n">{escape(c)}</td>' if n in numbers else f"<td>{escape(c)}</td>" for n, c in enumerate(row)
        ]
        yield f"<tr>{''.join(cells)}</tr>"
    if total is not None:
        yield f'<tr class="sum"><th colspan="{len(heads) - 1}">Total</th><td>{_credits(total)}</td></tr>'
    yield "</tbody></table>"


def _sign(what: str) -> int:
    return -1 if what == "expired" else 1


def _credits(micro: int) -> str:
    """With thousands set apart, as many digits as there are, two at least."""
    amount = Decimal(micro) / MICRO
    text = f"{amount:,.6f}".rstrip("0")
    whole, _, part = text.partition(".")
    return f"{whole}.{part:0<2}".replace("-", "−")  # a true minus sign


def _when(us: int, zone: ZoneInfo) -> str:
    moment: datetime = from_us(us).astimezone(zone)
    return f"{moment:%Y-%m-%d %H:%M}"


def _until(found: Statement, zone: ZoneInfo) -> str:
    if found.charged_until_us is None or found.charged_until_us >= found.to_us:
        return ""
    return f"; charged up to {_when(found.charged_until_us, zone)} so far"
