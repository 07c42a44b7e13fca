"""Errors as RFC 9457 problem documents, whatever went wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

from api.routes import Handler
from ledger.errors import (
    Changed,
    CreditsError,
    IdempotencyConflict,
    Insufficient,
    InvalidRequest,
    LastAdmin,
    LedgerUnavailable,
    UnknownOrg,
)

ErrorPage = Callable[[web.Request, int, str], web.Response]
"""(request, status, text for people) -> a page."""
ERROR_PAGE: Final[web.AppKey[ErrorPage]] = web.AppKey("error_page")
"""How errors look below /console; without it they are problem documents there too."""
log = logging.getLogger(__name__)

_FAULTS: tuple[tuple[type[CreditsError], int, str], ...] = (
    (UnknownOrg, 404, "unknown_org"),
    (InvalidRequest, 422, "invalid"),
    (IdempotencyConflict, 409, "idempotency_conflict"),
    (Insufficient, 409, "insufficient"),
    (LastAdmin, 409, "last_admin"),
    (Changed, 412, "changed"),
    (LedgerUnavailable, 503, "ledger_unavailable"),
)
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    412: "changed",
    413: "too_large",
    415: "not_json",
    422: "invalid",
    501: "not_set_up",
    502: "provider_unavailable",
}


class Problem(Exception):
    """Answered with its status; `code` is for programs, the text for people."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers


def problem_response(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """`type` names the kind of problem, `title` is the status in words, `detail` says what is wrong here."""
    body: dict[str, Any] = {
        "type": f"urn:apolo-credits:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail,
    }
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/problem+json", headers=headers
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns everything that is raised into a problem document, or into a page of the console."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        problem = _of_http(request, error)
    except Exception as error:
        problem = _problem(request, error)
    if request.path.startswith("/console") and ERROR_PAGE in request.app:
        page = request.app[ERROR_PAGE](request, problem.status, problem.detail)
        page.headers.update(problem.headers or {})
        return page
    return problem_response(problem.status, problem.code, problem.detail, problem.headers)


def _problem(request: web.Request, error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    for kind, status, code in _FAULTS:
        if isinstance(error, kind):
            return Problem(status, code, str(error), {"Retry-After": "1"} if status == 503 else None)
    if isinstance(error, (ConnectionResetError, TimeoutError)):
        return Problem(503, "ledger_unavailable", "No answer in time; please try again.", {"Retry-After": "1"})
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return Problem(500, "internal", "Something went wrong here; the log has the details.")


def _of_http(request: web.Request, error: web.HTTPException) -> Problem:
    headers = {name: value for name, value in error.headers.items() if name == "Allow"}
    return Problem(error.status, _CODES.get(error.status, "error"), _detail(request, error), headers)


def _detail(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 404 and error.text == f"404: {error.reason}":  # nobody said more
        return f"There is no {request.path[:200]} here."
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.method[:20]} is not possible here; {', '.join(sorted(error.allowed_methods))} is."
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return "The body is larger than what is accepted here."
    return error.text or error.reason
