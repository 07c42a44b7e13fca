"""What all tests share: real servers, hypothesis profiles, and a loud word on what cannot be tested here."""

from __future__ import annotations

import os
import shutil
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from ledger.connect import Client, connect
from tests.kubernetes_programs import missing_programs
from tests.servers import ServerProcess

hypothesis.settings.register_profile("default", max_examples=20, deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", max_examples=150, deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "quick", max_examples=60, deadline=None, print_blob=True, phases=[hypothesis.Phase.generate]
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# What the tests of a marker run; deploy/test-packages.sh installs all of it.
NEEDS = {
    "slurm": [
        "munged",
        "slurmctld",
        "slurmd",
        "sbatch",
        "scontrol",
        "squeue",
        "slurmdbd",
        "sacctmgr",
        "sacct",
        "mariadbd",
    ],
    "prometheus": ["prometheus", "promtool"],
    "browser": ["chromium"],
    "redis_server": ["redis-server"],
}


def _missing(marker: str) -> str:
    """What keeps this machine from running the tests of a marker; nothing where it can."""
    absent = [program for program in NEEDS[marker] if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if marker == "slurm" and os.geteuid() != 0:
        return "a real Slurm starts as root only"
    return ""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "redis_server: needs the system's redis-server, started by the test")
    # Daemons live in directories that are not on everybody's PATH.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {marker: _missing(marker) for marker in NEEDS} | {"kubernetes": missing_programs()}
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker) is None:
                continue
            if reason:
                item.add_marker(pytest.mark.skip(reason=f"needs {marker}: {reason}"))
            if marker in ("slurm", "kubernetes"):
                # One worker runs them all, so that what they start is shared and never twice on two cores.
                item.add_marker(pytest.mark.xdist_group(marker))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        skipped[reason.removeprefix("Skipped: ")].append(report.nodeid)
    if skipped:
        terminalreporter.section("NOT TESTED HERE", sep="!", red=True, bold=True)
        for reason, tests in sorted(skipped.items()):
            terminalreporter.line(f"{len(tests)} tests, {reason}", red=True)
            for test in sorted(tests):
                terminalreporter.line(f"    {test}")


@pytest.fixture(autouse=True)
def _answers_are_as_described() -> Iterator[None]:
    """Whatever a test asks of the API is answered as the OpenAPI document says."""
    app = sys.modules.get("enforcer.app")
    if app is None:
        yield
        return
    from tests.described import watching

    with watching(app) as found:
        yield
    assert not found, "answers that are not as described:\n" + "\n".join(found[:10])


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Valkey for the whole session (one in each worker of pytest-xdist). Do not kill it: see `make_server`."""
    # What waits for the disk would wait for up to a second with everysec.
    server = ServerProcess(tmp_path_factory.mktemp("valkey"), appendfsync="always").start()
    yield server
    server.kill9()


@pytest.fixture(scope="session")
def valkey_url(valkey: ServerProcess) -> str:
    return valkey.url


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Client]:
    """A client of the session's Valkey, which is empty."""
    async with connect(valkey_url, None) as client:
        await client.flushall()
        yield client


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.redis_server)])
async def any_client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A client of an empty server, once of Valkey and once of Debian's Redis 7.0: for tests of every backend."""
    url = request.getfixturevalue(f"{request.param}_url")
    async with connect(url, None) as client:
        await client.flushall()
        yield client


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = ServerProcess(tmp_path_factory.mktemp("redis"), "redis").start()
    yield server.url
    server.kill9()


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Makes started servers of the test's own, to be killed and cut: `make_server(binary=, appendfsync=)`."""
    servers: list[ServerProcess] = []

    def make(**arguments: Any) -> ServerProcess:
        server = ServerProcess(tmp_path / f"server-{len(servers)}", **arguments)
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.kill9()
