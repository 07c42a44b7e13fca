"""The table of calls in a page, out of the OpenAPI document: `python -m cli.calls_table docs/http-api.md`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cli.access_table import every_route
from enforcer.openapi import describe

BEGIN: Final = "<!-- calls: made by `python -m cli.calls_table docs/http-api.md` -->\n"
_EVERYWHERE: Final = ("400", "401", "403", "413", "422", "429", "503")
"""What any call may answer that takes a token, a name or a body."""
END: Final = "<!-- end of calls -->\n"


def render(page: str, document: Mapping[str, Any]) -> str:
    """The page with its table made anew."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    parts = [
        f"### {tag['name']}\n\n{tag['description']}\n\n{_table(document, tag['name'])}\n" for tag in document["tags"]
    ]
    return f"{before}{BEGIN}\n{''.join(parts)}{END}{after}"


def _table(document: Mapping[str, Any], tag: str) -> str:
    rows = ["| call | does | takes | answers |", "|---|---|---|---|"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if operation["tags"] == [tag]:
                answers = ", ".join(status for status in operation["responses"] if status not in _EVERYWHERE)
                rows.append(f"| `{method.upper()} {path}` | {operation['summary']} | {_takes(operation)} | {answers} |")
    return "\n".join([*rows, ""])


def _takes(operation: Mapping[str, Any]) -> str:
    """Parameters and body; what is needed is set in bold."""
    given = [one for one in operation["parameters"] if one["in"] != "path"]
    words = [f"**`{one['name']}`**" if one["required"] else f"`{one['name']}`" for one in given]
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    words += [f"body `{content['schema'].get('$ref', 'JSON').rpartition('/')[2]}`" for content in bodies]
    return ", ".join(words)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(encoding="utf-8"), describe(every_route())), encoding="utf-8")
