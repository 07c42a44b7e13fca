"""Where the real Kubernetes of the tests is: what deploy/test-kubernetes.sh has built."""

from __future__ import annotations

import os
from pathlib import Path

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")


def programs() -> Path:
    """Their folder: CREDITS_TEST_KUBERNETES, else where the script puts them."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("CREDITS_TEST_KUBERNETES") or cache / "apolo-credits" / "kubernetes")


def missing_programs() -> str:
    """Why no Kubernetes can be started here, in words for a skipped test; nothing where one can."""
    absent = [name for name in PROGRAMS if not os.access(programs() / name, os.X_OK)]
    return f"no {', '.join(absent)} in {programs()}; `make test-kubernetes` builds them, in minutes" if absent else ""
