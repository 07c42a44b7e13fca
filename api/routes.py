"""One declaration of a call: from it come the guard, the table of who may do what, and the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PART: Final = re.compile(r"\{(\w+)[^}]*\}")
"""A part of a path that the caller fills in."""
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class Operation(NamedTuple):
    """What a call takes and gives. Types are any that msgspec describes; those of parameters are Structs.

    The first paragraph of the handler's docstring is the summary, unless one is given.
    """

    tag: str
    answer: Any = None
    """The type of the JSON body; None: no body."""
    body: Any = None
    query: Any = None
    """A Struct with one field for each parameter; one without a default is required."""
    headers: Any = None
    """The same for request headers; a field's `name=` is the header's name."""
    path: Mapping[str, Any] = _NONE
    """Types of parts of the path that are not names."""
    statuses: Collection[int] = (200,)
    problems: Collection[int] = ()
    """Statuses of errors that do not follow from the rest: 404 unless a path part implies it, 409, 412, 502..."""
    gives: Mapping[str, str] = _NONE
    """Headers of the answer, and what they say."""
    media: Mapping[str, str] = _NONE
    """Other media types that the caller may ask for, and what they hold."""
    example: Any = None
    """A body as somebody would send it."""
    summary: str = ""
    body_max: int = 64 * 1024


class Route(NamedTuple):
    """One call. `roles` None: open to everyone, or checked by the handler itself. `via`: how callers prove who they
    are: `token` (bearer), or `session` (the cookie of somebody who signed in to the console)."""

    method: str
    path: str
    handler: Handler
    roles: Collection[str] | None
    via: str = "token"
    about: Operation | None = None


def names_of(route: Route) -> tuple[str, ...]:
    """The parts of its path that are names of orgs, projects, ...; others are what `Operation.path` says."""
    others = () if route.about is None else route.about.path
    return tuple(part for part in PART.findall(route.path) if part not in others)
