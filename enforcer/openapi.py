"""`/openapi.json`: an OpenAPI 3.1 document, out of what is declared beside the routes."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from importlib import metadata
from typing import Any, Final

import msgspec
from aiohttp import web

from api.routes import PART, Operation, Route, names_of
from api.shapes import Problem
from api.types import Name
from enforcer.docs_page import render

VERSION: Final = "3.1.0"
TAGS: Final = {
    "admission": "Asked before work starts: may it, and what would it cost?",
    "orgs": "Orgs, their credits, and what became of them.",
    "budgets": "Caps on what a project, or a user in it, may spend in a period.",
    "usage": "What was used, out of the ledger.",
    "payments": "Credits bought by card.",
    "tokens": "Who may call.",
    "notices": "Whom an org has told of what, by e-mail and by webhook.",
    "service": "The service itself.",
}
_REF: Final = "#/components/schemas/{name}"
_HEADERS: Final = {
    401: {"WWW-Authenticate": "Bearer"},
    405: {"Allow": "The methods that are possible."},
    429: {"Retry-After": "Seconds to wait."},
    503: {"Retry-After": "Seconds to wait."},
}
_MEANS: Final = {
    400: "The request or its body cannot be read, or a header is missing.",
    401: "There is no token, or it is unknown, expired or revoked.",
    403: "A token of this role, or of another org, may not do this.",
    404: "There is no such thing.",
    409: "It is in the way of what is there: another body under the same key, say.",
    412: "It was changed since it was read (If-Match).",
    413: "The body is too large.",
    422: "A value makes no sense; the text names it.",
    428: "If-Match is needed here.",
    429: "Too many unknown tokens came from this address. A valid token is never refused for this.",
    501: "This is not set up here.",
    502: "The payment provider cannot be reached. Nothing was paid; try again with the same key.",
    503: "The ledger cannot be reached, or answers too late; try again.",
}


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """An OpenAPI document of the routes that programs call: those of the console are pages for people."""
    calls = [route for route in routes if route.via == "token" and not route.path.startswith("/console")]
    types = {_name(kind): kind for route in calls for kind in _types(route.about) if kind is not None}
    schemas = msgspec.json.schema_components([Problem, *types.values()], ref_template=_REF)[1]
    paths: dict[str, dict[str, Any]] = {}
    for route in calls:
        paths.setdefault(PART.sub(r"{\1}", route.path), {})[route.method.lower()] = _operation(route)
    used = {operation["tags"][0] for methods in paths.values() for operation in methods.values()}
    return {
        "openapi": VERSION,
        "info": {
            "title": "Apolo Credits",
            "version": metadata.version("apolo-credits"),
            "description": "Amounts are decimal strings of credits, times RFC 3339 in UTC. Errors are "
            "`application/problem+json`. `x-roles` names the roles whose tokens may make a call.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": said} for name, said in TAGS.items() if name in used],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`act_...`, as `credits token` makes it"}
            },
        },
    }


def description_routes(routes: list[Route]) -> list[Route]:
    """The routes that serve the document of all these and themselves: for programs, and as a page."""
    made: list[asyncio.Task[tuple[bytes, str, dict[str, str]]]] = []

    def make() -> tuple[bytes, str, dict[str, str]]:
        document = describe([*routes, *own])
        return msgspec.json.encode(document), *render(document)

    async def description() -> tuple[bytes, str, dict[str, str]]:
        if not made:  # aside, for it takes longer than an admission may wait
            made.append(asyncio.get_running_loop().create_task(asyncio.to_thread(make)))
        return await asyncio.shield(made[0])

    async def for_programs(request: web.Request) -> web.Response:
        """This document."""
        document, _, _ = await description()
        return web.Response(body=document, content_type="application/json")

    async def for_people(request: web.Request) -> web.Response:
        """This document as a page."""
        _, page, headers = await description()
        return web.Response(text=page, content_type="text/html", headers=headers)

    own = [
        Route("GET", "/openapi.json", for_programs, None, about=Operation("service", dict[str, Any])),
        Route("GET", "/docs", for_people, None, about=Operation("service", media={"text/html": "A page to read."})),
    ]
    return own


def parameters_of(kind: Any) -> dict[str, tuple[bool, dict[str, Any]]]:
    """name -> (whether it is needed, schema) of a Struct's fields."""
    if kind is None:
        return {}
    _, found = msgspec.json.schema_components([kind], ref_template=_REF)
    schema = found[kind.__name__]
    return {name: (name in schema["required"], _given(one)) for name, one in schema["properties"].items()}


def _operation(route: Route) -> dict[str, Any]:
    about = route.about or Operation("service")
    summary, _, more = (about.summary or inspect.getdoc(route.handler) or route.path).partition("\n\n")
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": _schema(about.path.get(name, Name))}
        for name in PART.findall(route.path)
    ]
    for place, kind in (("query", about.query), ("header", about.headers)):
        for name, (is_needed, schema) in parameters_of(kind).items():
            parameters.append({"name": name, "in": place, "required": is_needed, "schema": schema})
            if route.method == "GET" and place == "query" and not is_needed:
                parameters[-1]["allowEmptyValue"] = True  # as left out
    operation: dict[str, Any] = {
        "operationId": PART.sub(r"\1", f"{route.method.lower()}{route.path}").replace("/", "_").strip("_"),
        "tags": [about.tag],
        "summary": " ".join(summary.split()),
        "parameters": parameters,
        "responses": {str(status): _answer(route.method, about, status) for status in about.statuses}
        | {str(status): _problem(status) for status in problems_of(route)},
        "security": [] if route.roles is None else [{"token": []}],
    }
    if more:
        operation["description"] = " ".join(more.split())
    if route.roles is not None:
        operation["x-roles"] = sorted(route.roles)
    if about.body is not None:
        content: dict[str, Any] = {"schema": _schema(about.body)}
        if about.example is not None:
            content["example"] = about.example
        operation["requestBody"] = {
            "description": f"At most {about.body_max} bytes.",
            "required": True,
            "content": {"application/json": content},
        }
    return operation


def problems_of(route: Route) -> list[int]:
    """The statuses of errors that a call may answer with: those that follow from what it takes, and its own."""
    about = route.about or Operation("service")
    found = set(about.problems)
    if route.roles is not None:
        found |= {401, 403, 429, 503}
    if about.query is not None or about.headers is not None or names_of(route):
        found |= {422}
    if about.body is not None:
        found |= {400, 413, 422}
    if names_of(route):
        found |= {400}
    if "{" in route.path:
        found |= {404}
    return sorted(found)


def _answer(method: str, about: Operation, status: int) -> dict[str, Any]:
    said: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    content: dict[str, Any] = {media: {"schema": {"type": "string"}} for media in about.media}
    if about.answer is not None and status != HTTPStatus.NO_CONTENT:
        content = {"application/json": {"schema": _schema(about.answer)}} | content
    if content:
        said["content"] = content
    if about.gives:
        said["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in about.gives.items()
        }
    return said


def _problem(status: int) -> dict[str, Any]:
    said: dict[str, Any] = {
        "description": _MEANS.get(status, HTTPStatus(status).phrase),
        "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}},
    }
    if status in _HEADERS:
        said["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS[status].items()
        }
    return said


def _types(about: Operation | None) -> tuple[Any, ...]:
    return () if about is None else (about.body, about.answer)


def _name(kind: Any) -> str:
    return str(kind)


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return dict(schema)


def _given(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter that is left out has no value: it is not null."""
    options = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if not options:
        return dict(schema)
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**options[0], **rest} if len(options) == 1 else {"anyOf": options, **rest}
