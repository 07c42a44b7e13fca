"""Imports go one way, and nothing of the machine it was written on is in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a package may import of the project, besides itself: packages or single modules.
DOMAIN = {"ledger.model", "ledger.money", "ledger.clock", "ledger.errors"}
ALLOWED = {
    "api": set(),
    "ledger": set(),
    "config": DOMAIN,
    "exporter": {"ledger", "config"},
    "enforcer": {"api", "ledger", "config"},
    "console": {"api", "ledger", "config"},
    "dashboards": {"exporter.metric_names"},
    "cli": {"api", "ledger", "config", "exporter", "enforcer", "console", "dashboards"},
}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imports(module: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{source}.{alias.name}"


def is_within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(allowed + ".")


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} may not import {name}"
        for module, path in modules(package)
        for line, name in imports(module, path)
        if name.split(".")[0] in {*ALLOWED, "tests", "bench"} - {package}
        and not any(is_within(name, allowed) for allowed in ALLOWED[package])
    ]
    assert not wrong, "\n".join(wrong)


def test_the_domain_model_knows_no_server_and_no_file_format() -> None:
    for module in DOMAIN:
        path = ROOT / (module.replace(".", "/") + ".py")
        names = {name.split(".")[0] for _, name in imports(module, path)}
        assert not names & {"redis", "hiredis", "yaml", "aiohttp", "prometheus_client"}, module


def test_every_package_of_the_project_is_shipped() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    packages = {".".join(p.parent.relative_to(ROOT).parts) for name in ALLOWED for p in (ROOT / name).rglob("*.py")}
    assert [name for name in sorted(packages) if f'"{name}"' not in text] == []


def tracked_text() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of what belongs to the repository")
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            yield name, path.read_text(errors="replace")


def test_no_file_names_a_directory_of_the_machine_it_was_written_on() -> None:
    private = re.compile(r"(?<![\w.])/(?:root|work|Users/\w+|home/(?!user\b)\w+)(?=[/\s\"'`:)]|$)", re.MULTILINE)
    here = "tests/unit/test_layers.py"
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for name, text in tracked_text()
        if name != here
        for match in private.finditer(text)
    ]
    assert not found, "\n".join(found)
