"""Labels of namespaces, asked of the API server as far as it lets us: what a pod says of itself its user wrote."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from config.sources import KubernetesSource
from enforcer.actions.base import ActionError
from enforcer.actions.kubernetes import rest_of
from enforcer.actions.rest import Rest

FRESH_SECONDS: Final = 60.0
_KEPT: Final = 10_000
_BREAK_SECONDS: Final = 5.0
"""After a question that got no answer nobody is kept waiting for another for so long."""
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
log = logging.getLogger(__name__)


class NamespaceLabels:
    """Whose the namespaces of one cluster are. Asks only where the settings or our own pod give access."""

    def __init__(self, settings: KubernetesSource, environ: Mapping[str, str] = os.environ) -> None:
        self._labels = settings.labels
        self._cluster = settings.cluster
        has_access = settings.url is not None or "KUBERNETES_SERVICE_HOST" in environ
        self._rest: Rest | None = rest_of(settings, environ) if has_access else None
        self._known: dict[str, tuple[float, tuple[str, str]]] = {}
        self._asking: dict[str, asyncio.Task[tuple[str, str]]] = {}
        self._not_before = 0.0
        self._told = ""

    async def place(self, namespace: str, seconds: float) -> tuple[str, str] | None:
        """(org, project) by its labels, "" where it has none; None where nobody says so within `seconds`.

        An answer counts for a minute, and for as long as there is no newer one.
        """
        if not _NAME.fullmatch(namespace):
            return None  # the API server has none of that name, and no other place of it is to be asked for
        known = self._known.get(namespace)
        now = time.monotonic()
        if known is not None and now - known[0] < FRESH_SECONDS:
            return known[1]
        if self._rest is None or now < self._not_before or seconds <= 0:
            return None if known is None else known[1]
        try:
            async with asyncio.timeout(seconds):
                found = await asyncio.shield(self._ask(self._rest, namespace))
        except (ActionError, TimeoutError) as error:
            self._not_before = time.monotonic() + _BREAK_SECONDS
            self._tell(str(error) or f"no answer within {seconds:.2g} s")
            return None if known is None else known[1]
        self._tell("")
        return found

    async def close(self) -> None:
        """Close the connections."""
        for task in list(self._asking.values()):
            task.cancel()
        if self._rest is not None:
            await self._rest.close()

    def _ask(self, rest: Rest, namespace: str) -> asyncio.Task[tuple[str, str]]:
        """Many pods may wait for the same answer: it is asked for once."""
        task = self._asking.get(namespace)
        if task is None:
            task = self._asking[namespace] = asyncio.create_task(self._read(rest, namespace))
            task.add_done_callback(lambda done: (self._asking.pop(namespace), done.cancelled() or done.exception()))
        return task

    async def _read(self, rest: Rest, namespace: str) -> tuple[str, str]:
        status, body, text = await rest.call("GET", f"api/v1/namespaces/{namespace}")
        if status in (401, 403):
            raise ActionError(f"{status} {text}; the account needs the rights that docs/kubernetes.md lists")
        if status == 404:
            return self._keep(namespace, ("", ""))  # made in this very moment, or elsewhere
        metadata: Any = body.get("metadata") if isinstance(body, dict) else None
        if status >= 300 or not isinstance(metadata, dict):
            raise ActionError(f"{status} {text}")
        labels = metadata.get("labels") or {}
        org = next((labels[name] for name in self._labels.org if labels.get(name)), "")
        project = next((labels[name] for name in self._labels.project if labels.get(name)), "")
        return self._keep(namespace, (org, project))

    def _keep(self, namespace: str, found: tuple[str, str]) -> tuple[str, str]:
        """Also what came too late for who asked first."""
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[namespace] = time.monotonic(), found
        return found

    def _tell(self, trouble: str) -> None:
        """Once, and again when it is another trouble, or over."""
        if trouble == self._told:
            return
        self._told = trouble
        if trouble:
            log.warning(
                "cluster %s: labels of namespaces cannot be read, so pods are taken for whose they say they are: %s",
                self._cluster, trouble,
            )  # fmt: skip
        else:
            log.info("cluster %s: labels of namespaces can be read again", self._cluster)
