"""`/docs`: the OpenAPI document as a page for people. It needs no script and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

_CODE: Final = re.compile(r"`([^`]+)`")
_LIMITS: Final = {"minLength": "at least {} characters", "maxLength": "at most {} characters", "minimum": "from {}",
                  "exclusiveMinimum": "more than {}", "maximum": "to {}", "default": "else `{}`"}  # fmt: skip


def render(document: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """(page, headers that go with it): a policy under which nothing is loaded or run, but this page's own style."""
    pages = Environment(
        loader=PackageLoader("enforcer"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"code": _code, "breaks": _breaks}
    style = resources.files("enforcer").joinpath("templates/docs.css").read_text(encoding="utf-8")
    groups = [{**tag, "calls": _calls(document, tag["name"])} for tag in document["tags"]]
    text = pages.get_template("docs.html").render(
        info=document["info"], groups=groups, shapes=_shapes(document), style=style
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return text, {
        "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def curl(document: Mapping[str, Any], path: str, method: str) -> str:
    """A call as one would type it, with the examples of the document."""
    operation = document["paths"][path][method]
    url, query, lines = path, [], []
    if operation["security"]:
        lines.append('-H "Authorization: Bearer $TOKEN"')
    for parameter in operation["parameters"]:
        example = str(parameter["schema"].get("examples", [parameter["name"]])[0])
        if parameter["in"] == "path":
            url = url.replace("{" + parameter["name"] + "}", quote(example, safe=""))
        elif parameter["required"] and parameter["in"] == "query":
            query.append(f"{parameter['name']}={quote(example, safe='')}")
        elif parameter["required"]:
            lines.append(f"-H '{parameter['name']}: {example}'")
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if content:
        lines.append("-H 'Content-Type: application/json'")
        lines.append(f"-d '{json.dumps(content.get('example', {}))}'")
    first = f'curl "$URL{url}{"?" + "&".join(query) if query else ""}"'
    if method != "get" and not (method == "post" and content):
        first = first.replace("curl ", f"curl -X {method.upper()} ", 1)
    return " \\\n  ".join([first, *lines])


def _calls(document: Mapping[str, Any], tag: str) -> list[dict[str, Any]]:
    return [
        {
            "id": operation["operationId"],
            "method": method.upper(),
            "path": path,
            "summary": operation["summary"],
            "description": operation.get("description"),
            "roles": operation.get("x-roles"),
            "parameters": [
                _field(one["name"], one["schema"], one["required"], place=one["in"]) for one in operation["parameters"]
            ],
            "body": _body(operation),
            "answers": [_answer(status, said) for status, said in operation["responses"].items()],
            "curl": curl(document, path, method),
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if operation["tags"] == [tag]
    ]


def _body(operation: Mapping[str, Any]) -> dict[str, Any] | None:
    content = operation.get("requestBody", {}).get("content", {})
    return next(({"name": _link(one["schema"]), "type": type_of(one["schema"])} for one in content.values()), None)


def _answer(status: str, said: Mapping[str, Any]) -> dict[str, Any]:
    media = [{"kind": kind, "name": _link(one["schema"])} for kind, one in said.get("content", {}).items()]
    headers = [f"Header `{name}`: {one['description']}" for name, one in said.get("headers", {}).items()]
    texts = [text if text.endswith(".") else f"{text}." for text in (said["description"], *headers)]
    return {"status": status, "media": media, "says": " ".join(texts)}


def _shapes(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    bodies = {body["name"] for body in map(_body, operations) if body is not None}
    return [
        {
            "name": name,
            "says": schema.get("description", ""),
            "always": "needed" if name in bodies else "always",
            "fields": [
                _field(field, one, field in schema.get("required", ()))
                for field, one in schema.get("properties", {}).items()
            ],
        }
        for name, schema in sorted(document["components"]["schemas"].items())
    ]


def _field(name: str, schema: Mapping[str, Any], is_needed: bool, place: str = "") -> dict[str, Any]:
    inner = next((one for one in schema.get("anyOf", ()) if one != {"type": "null"}), schema)
    items = inner.get("items", {})
    limits = {**inner, **schema}
    said = [text.format(limits[key]) for key, text in _LIMITS.items() if limits.get(key) not in (None, "")]
    said = ["not empty" if one == "at least 1 characters" else one for one in said]
    if "examples" in limits:
        said.append(f"such as `{limits['examples'][0]}`")
    sentence = ", ".join(said)
    says = " ".join(part for part in (limits.get("description", ""), sentence and f"{sentence}.".capitalize()) if part)
    return {
        "name": name, "is_needed": is_needed, "place": place, "type": type_of(schema), "says": says,
        "link": _link(inner) or _link(items),
    }  # fmt: skip


def type_of(schema: Mapping[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return _link(schema)
    if "anyOf" in schema:
        return " or ".join(type_of(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    kinds = schema.get("type", "any JSON")
    kind = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    return f"{kind} ({schema['format']})" if "format" in schema else kind


def _link(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _code(text: str) -> Markup:
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704  escaped before


def _breaks(path: str) -> Markup:
    """A path that may be broken into lines at its slashes."""
    return Markup("/<wbr>").join(path.split("/"))
