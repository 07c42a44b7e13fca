"""Answers held against the OpenAPI document: status, media type, body and headers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker
from multidict import CIMultiDict


class Described:
    """The calls of a document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self._paths = [
            (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]*", re.escape(path))), methods)
            for path, methods in sorted(document["paths"].items(), key=lambda item: item[0].count("{"))
        ]

    def operation(self, method: str, path: str) -> Mapping[str, Any] | None:
        """The call that a path (escaped, with or without a query) is, None for one that is none."""
        path = path.partition("?")[0]
        for pattern, methods in self._paths:
            if pattern.fullmatch(path) and method.lower() in methods:
                found: Mapping[str, Any] = methods[method.lower()]
                return found
        return None

    def check(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Raises: AssertionError for an answer that is not described."""
        operation = self.operation(method, path)
        if operation is None:
            return
        where = f"{method} {path} -> {status} {body[:300]!r}"
        assert str(status) in operation["responses"], f"{where}: this status is not described"
        said = operation["responses"][str(status)]
        for name in said.get("headers", {}):
            if status >= 400:
                assert name in CIMultiDict(headers), f"{where}: header {name} is missing"
        media = CIMultiDict(headers).get("Content-Type", "").partition(";")[0]
        if not said.get("content"):
            assert body == b"", f"{where}: no body is described"
            return
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
