"""The page a buyer comes back to, in the console's look; nobody needs to be signed in to see it."""

from __future__ import annotations

import hmac
import html
from urllib.parse import quote

from aiohttp import web

from console.pages import headers, org_url
from ledger.purchase_step import Order


def receipt_path(order: Order) -> str:
    """Where the page of an order is, with what only the buyer's address has."""
    path = f"/console/payments/{quote(order.org, safe='')}/{order.id}"
    return f"{path}?key={order.page}" if order.page else path


def is_for(order: Order, key: str) -> bool:
    """Whether somebody came by the address of that order's page."""
    return hmac.compare_digest(order.page.encode(), key.encode(errors="replace"))


def receipt(
    said: str, status: int = 200, *, org: str | None = None, pay_url: str = "", waits: bool = False
) -> web.Response:
    """What became of an order. `pay_url`: where it can be paid; `waits`: the page looks again by itself."""
    again = '<meta http-equiv="refresh" content="3">' if waits else ""
    pay = f'<a class="button" href="{html.escape(pay_url)}">Pay now</a>' if pay_url else ""
    way = html.escape("/console" if org is None else org_url(org))
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Payment · Apolo Credits</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark">{again}'
        # Of no version: such a file is asked for anew each time.
        '<link rel="stylesheet" href="/console/static/latest/console.css"></head><body>'
        '<header class="top"><a class="brand" href="/console">'
        '<img src="/console/static/latest/mark.svg" alt="" width="26" height="26">'
        "<span>Apolo Credits</span></a></header>"
        '<div class="frame"><main><section class="card narrow-page"><h1>Payment</h1>'
        f'<p role="status">{html.escape(said)}</p>'
        f'<p class="actions">{pay}<a class="button second" href="{way}">To the balance</a></p>'
        "</section></main></div></body></html>"
    )
    return web.Response(text=text, status=status, content_type="text/html", headers=headers())
