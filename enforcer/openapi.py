"""`/openapi.json`: the calls there are, out of the routes and of the types that read their bodies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any, Final

import msgspec
from aiohttp import web

from enforcer.access import Route
from enforcer.admission.http import AdmissionBody
from enforcer.bodies import answer
from enforcer.orgs import BudgetBody, GrantBody, OrgBody

_BODIES: Final[Mapping[tuple[str, str], type[msgspec.Struct]]] = {
    ("POST", "/v1/admission"): AdmissionBody,
    ("POST", "/v1/quote"): AdmissionBody,
    ("PUT", "/v1/orgs/{org}"): OrgBody,
    ("POST", "/v1/orgs/{org}/grants"): GrantBody,
    ("PUT", "/v1/orgs/{org}/budgets/{project}"): BudgetBody,
    ("PUT", "/v1/orgs/{org}/budgets/{project}/{user}"): BudgetBody,
}
_QUERIES: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/orgs": ("limit", "cursor"),
    "/v1/orgs/{org}/journal": ("limit", "cursor"),
    "/v1/usage": ("from", "to", "cluster", "org", "project", "user", "kind", "group_by", "step"),
}
_AMOUNT: Final = {"type": ["string", "null"], "description": "credits, a decimal"}
_TIME: Final = {"type": ["string", "null"], "format": "date-time"}
_TEXT: Final = {"type": ["string", "null"]}
_DECISION: Final = {
    "allowed": {"type": "boolean"},
    "code": {"enum": ["ok", "no_credits", "budget_exhausted", "unknown_org", "unpriced", "ledger_unavailable"]},
    "reason": {"type": "string", "description": "for the person who submitted"},
    "tier": {"enum": ["org", "project", "user", None]},
    "available": _AMOUNT,
    "required": _AMOUNT,
}
_BALANCE: Final = {
    "org": {"type": "string"},
    **dict.fromkeys(("granted", "expired", "spent", "held", "available", "overdraft", "burn_rate"), _AMOUNT),
    "unlimited": {"type": "boolean"},
    "exhausted_at": _TIME,
    "stage": {"enum": ["ok", "warn", "block", "grace", "suspend", "stop"]},
}
_BUDGET: Final = {
    **dict.fromkeys(("org", "project", "user", "period", "timezone", "week_start"), _TEXT),
    **dict.fromkeys(("credits", "spent", "held", "remaining"), _AMOUNT),
    **dict.fromkeys(("starts_at", "ends_at"), _TIME),
}
_QUOTED: Final = ("per_hour", "total", "left", "burn_rate", "lasts_hours")
_ANSWERS: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    ("POST", "/v1/admission"): {**_DECISION, "hold_id": _TEXT, "hold_expires_at": _TIME},
    ("POST", "/v1/admission/slurm"): {**_DECISION, "hold_id": _TEXT, "hold_expires_at": _TIME},
    ("POST", "/v1/quote"): {**_DECISION, **dict.fromkeys(_QUOTED, _AMOUNT), "first_out": _TEXT},
    ("GET", "/v1/orgs/{org}/balance"): _BALANCE,
    ("PUT", "/v1/orgs/{org}"): _BALANCE,
    ("PUT", "/v1/orgs/{org}/budgets/{project}"): _BUDGET,
    ("PUT", "/v1/orgs/{org}/budgets/{project}/{user}"): _BUDGET,
}
_PROBLEM: Final = {
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in ("type", "title", "code", "detail")},
        "status": {"type": "integer"},
    },
}
_PART: Final = re.compile(r"\{(\w+)[^}]*\}")


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of these routes."""
    _, schemas = msgspec.json.schema_components(
        list(dict.fromkeys(_BODIES.values())), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.path.startswith("/console"):
            continue  # pages for people
        path = _PART.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Apolo Credits", "version": metadata.version("apolo-credits")},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def openapi_route(routes: list[Route]) -> Route:
    """The route that serves the document of all these, itself among them."""
    text: list[dict[str, Any]] = []

    async def serve(request: web.Request) -> web.Response:
        """This document."""
        if not text:
            text.append(describe([*routes, route]))
        return answer(text[0])

    route = Route("GET", "/openapi.json", serve, None)
    return route


def _operation(route: Route, path: str) -> dict[str, Any]:
    said = inspect.getdoc(route.handler) or route.path
    names = [{"name": name, "in": "path", "required": True} for name in _PART.findall(route.path)]
    asked = [{"name": name, "in": "query", "required": False} for name in _QUERIES.get(path, ())]
    if path.endswith("/grants"):
        asked.append({"name": "Idempotency-Key", "in": "header", "required": True})
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    schema = {"type": "object", "properties": dict(_ANSWERS.get((route.method, path), {}))}
    operation: dict[str, Any] = {
        "summary": " ".join(said.split("\n\n")[0].split()),
        "parameters": [{**one, "schema": {"type": "string"}} for one in (*names, *asked)],
        "responses": {
            "2XX": {"description": "done", "content": {"application/json": {"schema": schema}}},
            "default": {"description": "what is wrong", "content": problem},
        },
        "security": [] if route.roles is None else [{"token": []}],
    }
    if route.roles is not None:
        operation["x-roles"] = sorted(route.roles)
    body = _BODIES.get((route.method, path))
    if body is not None:
        reference = {"$ref": f"#/components/schemas/{body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    return operation
