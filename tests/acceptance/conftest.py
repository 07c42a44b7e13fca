"""Real clusters for the acceptance tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes_lab import KubernetesLab
from tests.slurm_lab import SlurmLab, missing_for_lab


@pytest.fixture(scope="session")
def slurm_base() -> Iterator[Path]:
    """A short path that every user may enter: sockets have short names, and jobs run as others."""
    base = Path(tempfile.mkdtemp(prefix="slurm-"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm_lab(slurm_base: Path) -> Iterator[SlurmLab]:
    """A Slurm with accounting that forgets finished jobs as soon as it can (within about 10 s)."""
    if reason := missing_for_lab():
        pytest.skip(reason)
    lab = SlurmLab(slurm_base / "accounting", min_job_age=2).start()
    yield lab
    lab.stop()


@pytest.fixture(scope="session")
def kubernetes_base() -> Iterator[Path]:
    """A short path, for sockets."""
    base = Path(tempfile.mkdtemp(prefix="kubernetes-"))
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def kubernetes_lab(kubernetes_base: Path) -> Iterator[KubernetesLab]:
    """A Kubernetes without nodes, in which nobody asks for credits yet."""
    lab = KubernetesLab(kubernetes_base / "lab")
    try:
        yield lab.start()
    finally:
        lab.stop()
