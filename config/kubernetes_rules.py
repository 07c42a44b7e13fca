"""Whose a pod of a Kubernetes cluster is: the same for who asks before it starts as for who charges it."""

from __future__ import annotations

import re

_SEPARATORS = re.compile(r"[\s_:/\\]+")


def place(pod: str, namespace: str) -> tuple[str, bool]:
    """(whose it is, whether the labels contradict each other), of a pod's label and its namespace's.

    Whoever makes pods can label them; namespaces are the platform's. But those carry normalised names, so
    where the pod's own is the same name in full, it is the one.
    """
    if not namespace or pod == namespace:
        return pod or namespace, False
    if _SEPARATORS.sub("-", pod).lower() == namespace:
        return pod, False
    return namespace, bool(pod)
