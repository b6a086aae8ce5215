"""Counts wrong API keys by client address, and makes an address that sends too many wait.

It is never asked about a right key. Times are monotonic seconds, given by the caller.
"""

from __future__ import annotations

import ipaddress
import math
from collections import deque

from cachetools import LRUCache

MAX_FAILURES = 10
WINDOW_S = 60.0
MAX_ADDRESSES = 4096


class AuthThrottle:
    """At most `most` failures of an address in any `window_s` seconds.

    Remembers the failures of `addresses` addresses; of more, it forgets those that were quiet the longest.
    """

    def __init__(self, most: int = MAX_FAILURES, window_s: float = WINDOW_S, addresses: int = MAX_ADDRESSES) -> None:
        self._most = most
        self._window_s = window_s
        self._failures: LRUCache[str, deque[float]] = LRUCache(addresses)

    def wait_s(self, address: str, now: float) -> int:
        """Return the whole seconds until this address may try another key; 0 if it may now."""
        times = self._failures.get(client_of(address))
        if times is None or len(times) < self._most:
            return 0
        return max(0, math.ceil(times[0] + self._window_s - now))

    def record_failure(self, address: str, now: float) -> None:
        """Record a wrong key from this address."""
        client = client_of(address)
        if client not in self._failures:
            self._failures[client] = deque(maxlen=self._most)
        self._failures[client].append(now)

    def __len__(self) -> int:
        return len(self._failures)


def client_of(address: str) -> str:
    """Return what counts as one client: an address, or the /64 of an IPv6 address, all of which one machine can use."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((int(parsed), 64), strict=False))
