"""A call of the console: what the enforcer's process serves for it, and for whom."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import NamedTuple

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Call(NamedTuple):
    """One call. `roles` None: open to everyone. `via`: how the caller proves who it is: `token` (bearer), or
    `session` (the cookie of somebody who signed in)."""

    method: str
    path: str
    handler: Handler
    roles: Collection[str] | None
    via: str = "token"
