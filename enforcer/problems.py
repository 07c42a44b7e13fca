"""Errors as RFC 9457 problem documents, whatever went wrong."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from ledger.errors import CreditsError, IdempotencyConflict, InvalidRequest, LedgerUnavailable, UnknownOrg

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)

_FAULTS: tuple[tuple[type[CreditsError], int, str], ...] = (
    (UnknownOrg, 404, "unknown_org"),
    (InvalidRequest, 422, "invalid"),
    (IdempotencyConflict, 409, "idempotency_conflict"),
    (LedgerUnavailable, 503, "ledger_unavailable"),
)
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "not_json"}


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
    """Turns everything that is raised into a problem document."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem_response(problem.status, problem.code, problem.detail, problem.headers)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        headers = {name: value for name, value in error.headers.items() if name == "Allow"}
        return problem_response(error.status, _CODES.get(error.status, "error"), _detail(request, error), headers)
    except CreditsError as error:
        for kind, status, code in _FAULTS:
            if isinstance(error, kind):
                return problem_response(status, code, str(error), {"Retry-After": "1"} if status == 503 else None)
        log.exception("%s %s failed", request.method, request.path)
        return problem_response(500, "internal", "Something went wrong here; the log has the details.")
    except (ConnectionResetError, TimeoutError):
        return problem_response(503, "ledger_unavailable", "No answer in time; please try again.", {"Retry-After": "1"})
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return problem_response(500, "internal", "Something went wrong here; the log has the details.")


def _detail(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"There is no {request.path[:200]} here."
    if isinstance(error, web.HTTPMethodNotAllowed):
        return f"{request.method[:20]} is not possible here; {', '.join(sorted(error.allowed_methods))} is."
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return "The body is larger than what is accepted here."
    return error.text or error.reason
