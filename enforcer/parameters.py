"""The parameters of a call's address: only those that it has, each once. One that is misspelled would do nothing."""

from __future__ import annotations

from difflib import get_close_matches

import msgspec
from aiohttp import web

from api.routes import Handler, Route
from api.types import Paging
from enforcer.problems import Problem

_OF_LISTS = frozenset(field.encode_name for field in msgspec.structs.fields(Paging))


def checked(route: Route) -> Handler:
    """The route's handler, of a call that says which parameters it takes, or that changes something and takes none.

    Those of lists are never refused to a GET: callers send them to all that is a list. Schedulers' calls take none,
    and are not looked at: their bodies say it all, and they are to cost little.
    """
    handler, about = route.handler, route.about
    is_free = route.method == "GET" or "scheduler" in (route.roles or ())
    if about is None or (about.query is None and is_free):
        return handler
    names = [] if about.query is None else [field.encode_name for field in msgspec.structs.fields(about.query)]
    known = f"known are {', '.join(names)}" if names else "all is in the body" if about.body else "it has none"
    taken = {*names, *(_OF_LISTS if route.method == "GET" else ())}

    async def check(request: web.Request) -> web.StreamResponse:
        query = request.query
        for name in query:
            if name not in taken:
                near = get_close_matches(name[:80], names, 1)
                hint = f"did you mean {near[0]!r}?" if near else known
                raise Problem(422, "invalid", f"{name[:80]!r} is no parameter of this; {hint}")
            if len(query.getall(name)) > 1:
                raise Problem(422, "invalid", f"{name}: said twice; expected once")
        return await handler(request)

    return check
