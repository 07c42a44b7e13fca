"""How often an address may show a token that is none."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Final

from enforcer.problems import Problem

REFUSED, LIMITED = "refused", "limited"
"""What became of a failure: told so, or only told to come back later."""
_ADDRESSES_MAX: Final = 10_000


class Failures:
    """Counts failures to say who one is, by address, in windows that begin with an address's first failure.

    An IPv6 address counts by its /64, for that is what one machine has. The table is bounded: of too many
    addresses the one whose window began first is forgotten.
    """

    def __init__(
        self, most: int = 20, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}  # in the order in which they began
        self.counts: Counter[str] = Counter()

    def check(self, address: str | None) -> int:
        """Whole seconds that this address has to wait; 0 where it may try."""
        began, failed = self._windows.get(_network(address), (0.0, 0))
        left = began + self._seconds - self._clock()
        if failed < self._most or left <= 0:
            return 0
        self.counts[LIMITED] += 1
        return int(left) + 1

    def failed(self, address: str | None) -> None:
        """One more failure of this address."""
        self.counts[REFUSED] += 1
        network, now = _network(address), self._clock()
        began, failed = self._windows.get(network, (now, 0))
        if now - began >= self._seconds:
            del self._windows[network]
            began, failed = now, 0
        elif network not in self._windows and len(self._windows) >= _ADDRESSES_MAX:
            del self._windows[next(iter(self._windows))]
        self._windows[network] = began, failed + 1

    def refuse(self, address: str | None) -> None:
        """Counts a token that is none; what asks for it then says so.

        Raises: Problem 429 where too many came from this address.
        """
        wait = self.check(address)
        if wait:
            said = "Too many tokens from this address were none. Check the token, then try again later."
            raise Problem(429, "too_many_failures", said, {"Retry-After": str(wait)})
        self.failed(address)

    @property
    def size(self) -> int:
        return len(self._windows)


def _network(address: str | None) -> str:
    """What counts as one address; "" for a peer that has none (a socket of this machine)."""
    try:
        parsed = ip_address((address or "").partition("%")[0])
    except ValueError:
        return ""
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or parsed.exploded[:19])
