"""Answers held against the OpenAPI document: status, media type, body and headers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web
from jsonschema import Draft202012Validator, FormatChecker
from multidict import CIMultiDict

from api.routes import Handler
from enforcer.answers import Answer
from enforcer.openapi import describe


class Described:
    """The calls of a document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    def check(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """`path` as the document has it. Raises: AssertionError for an answer that is not described."""
        operation = self.document["paths"].get(path, {}).get(method.lower())
        if operation is None:
            return
        where = f"{method} {path} -> {status} {body[:300]!r}"
        assert str(status) in operation["responses"], f"{where}: this status is not described"
        said = operation["responses"][str(status)]
        given = CIMultiDict(headers)
        if status >= 400:
            missing = [name for name in said.get("headers", {}) if name not in given]
            assert not missing, f"{where}: headers {missing} are missing"
        if not said.get("content"):
            assert body == b"", f"{where}: no body is described"
            return
        media = given.get("Content-Type", "").partition(";")[0]
        assert media in said["content"], f"{where}: {media} is not described"
        if media.endswith("json"):
            self.validate(said["content"][media]["schema"], json.loads(body), where)

    def validate(self, schema: Mapping[str, Any], value: Any, where: str) -> None:
        """Raises: AssertionError naming what of the value is not as the schema says."""
        whole = {**schema, "components": self.document["components"]}
        errors = [
            f"{error.json_path}: {error.message}"
            for error in Draft202012Validator(whole, format_checker=FormatChecker()).iter_errors(value)
        ]
        assert not errors, f"{where}: {'; '.join(errors[:3])}"


@contextmanager
def watching(app_module: ModuleType) -> Iterator[list[str]]:
    """Every answer of applications that `enforcer.app` builds meanwhile is held against their document; gives what
    was not as described."""
    found: list[str] = []
    known: dict[web.Application, Described] = {}
    inner = app_module.problems

    @web.middleware
    async def watched(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse = await inner(request, handler)
        if request._match_info is None:  # served directly: the route is not known
            return response
        resource = request.match_info.route.resource
        if resource is None or response.status == 500 or not isinstance(response, (web.Response, Answer)):
            return response
        app = request.app
        if app not in known:
            known[app] = Described(describe(app[app_module.ROUTES]))
        body = response.body if isinstance(response.body, bytes) else b""
        try:
            known[app].check(request.method, resource.canonical, response.status, response.headers, body)
        except AssertionError as error:
            found.append(str(error))
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_module, "problems", watched)
        yield found
