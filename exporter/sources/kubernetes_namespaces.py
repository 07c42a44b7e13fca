"""Whose the namespaces of a cluster are."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from config.kubernetes_rules import place as place
from config.sources import Labels
from exporter.sources.kubernetes_records import BROKEN, labelled


class _NamespaceMeta(msgspec.Struct):
    name: str
    labels: dict[str, str] | None = None


class _Namespace(msgspec.Struct):
    metadata: _NamespaceMeta


_namespace = msgspec.json.Decoder(_Namespace)
_Place = tuple[str, str]


class Namespaces:
    """Whose namespaces are, by their labels. `moved` is called with the name of one that changes hands."""

    def __init__(self, labels: Labels, moved: Callable[[str], None]) -> None:
        self._labels = labels
        self._moved = moved
        self._places: dict[str, _Place] = {}
        self._seen: set[str] = set()

    def place(self, namespace: str) -> _Place:
        return self._places.get(namespace, ("", ""))

    def begin(self) -> None:
        self._seen = set()

    def add(self, raw: bytes | msgspec.Raw, now_us: int) -> None:
        """A namespace as it is now."""
        try:
            meta = _namespace.decode(raw).metadata
        except BROKEN:
            return  # then its pods are placed by their own labels
        labels = meta.labels or {}
        found = labelled(labels, self._labels.org) or "", labelled(labels, self._labels.project) or ""
        self._seen.add(meta.name)
        if self.place(meta.name) != found:
            self._places[meta.name] = found
            self._moved(meta.name)

    def remove(self, raw: bytes | msgspec.Raw, now_us: int) -> None:
        """A deleted namespace: nothing can be in it any more, and what was there keeps its place."""

    def finish(self, last_us: int | None, now_us: int) -> None:
        """The list is whole."""
        for name in self._places.keys() - self._seen:
            del self._places[name]
