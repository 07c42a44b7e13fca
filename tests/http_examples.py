"""The examples of docs/http-api.md, run against a live API: `python -m tests.http_examples docs/http-api.md` writes
what they print into the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.api_lab import LiveApi, live_api

BLOCK = re.compile(r"```console\n(.*?)```\n", re.DOTALL)
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), "TIME"),
    (re.compile(r"\b\d{13}-\d+"), "ID"),
    (re.compile(r'"hold_id":"[^"]+"'), "HOLD"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "HEX"),
    (re.compile(r"act_[\w-]+"), "TOKEN"),
)


def run(page: str, api: LiveApi) -> str:
    """The page with what its commands print now, in the order in which they stand."""
    environment = {
        "PATH": os.environ["PATH"], "URL": api.url, "ADMIN": f"Authorization: Bearer {api.tokens['admin']}",
        "OWNER": f"Authorization: Bearer {api.tokens['owner']}",
    }  # fmt: skip

    def ran(block: re.Match[str]) -> str:
        parts = []
        for command in commands(block[1]):
            plain = "\n".join(line[2:] for line in command.splitlines())
            done = subprocess.run(["bash", "-c", plain], env=environment, capture_output=True, text=True, check=True)
            assert not done.stderr, f"{plain}: {done.stderr}"
            parts.append(f"{command}\n{done.stdout}" + ("" if done.stdout.endswith("\n") or not done.stdout else "\n"))
        return f"```console\n{''.join(parts)}```\n"

    return BLOCK.sub(ran, page)


def commands(block: str) -> list[str]:
    """Lines that begin with `$ ` and those that go on with `> `, without what they printed."""
    found: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append(line)
        elif line.startswith("> ") and found:
            found[-1] += "\n" + line
    return found


def settled(page: str) -> str:
    """Without what is another each time."""
    for pattern, word in _VARYING:
        page = pattern.sub(word, page)
    return page


if __name__ == "__main__":
    path = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory, live_api(Path(directory)) as live:
        path.write_text(run(path.read_text(encoding="utf-8"), live), encoding="utf-8")
