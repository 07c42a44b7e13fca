"""Whose address a request came from, also where it came through proxies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from aiohttp import web

from api.routes import Handler

Network = IPv4Network | IPv6Network
_HOPS_MAX = 20


def address_of(request: web.Request) -> str | None:
    """The caller's address, for the journal; None for a caller on a socket of this machine."""
    found = _parsed(request.remote or "")
    return None if found is None else str(found)


def behind(proxies: Sequence[Network]) -> Any:
    """A middleware after which `request.remote` is the address that these proxies forward for.

    What a proxy says of itself is believed, and what it says of another proxy; the first address from the right that
    is no proxy is the caller's. Without a header that makes sense it is the proxy's own.
    """

    @web.middleware
    async def resolve(request: web.Request, handler: Handler) -> web.StreamResponse:
        peer = _parsed(request.remote or "")
        if peer is None or not _is_among(peer, proxies):
            return await handler(request)
        found = peer
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")
        for hop in reversed(hops[-_HOPS_MAX:]):
            address = _parsed(hop.strip())
            if address is None:
                break
            found = address
            if not _is_among(address, proxies):
                break
        return await handler(request.clone(remote=str(found)))

    return resolve


def _is_among(address: IPv4Address | IPv6Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An address as proxies write it: with a port or without, an IPv6 one in brackets or not."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    with suppress(ValueError):
        found = ip_address(text.partition("%")[0])
        return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
    return None
