"""Counts wrong keys by client address, so that nobody can try many. Pure; times in seconds, monotonic."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict, deque

MOST_FAILURES = 10
WITHIN_S = 60.0
MOST_ADDRESSES = 4096  # remembered; of more, those that failed longest ago are forgotten


class AuthThrottle:
    """Who failed how often of late."""

    def __init__(self, most: int = MOST_FAILURES, within_s: float = WITHIN_S, addresses: int = MOST_ADDRESSES) -> None:
        self._most = most
        self._within_s = within_s
        self._addresses = addresses
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_s(self, address: str, now: float) -> int:
        """In how many whole seconds this address may try again; 0: at once."""
        times = self._failures.get(group(address))
        if times is None or len(times) < self._most:
            return 0
        return max(0, math.ceil(times[0] + self._within_s - now))

    def failed(self, address: str, now: float) -> None:
        """A wrong key came from there."""
        key = group(address)
        self._failures.setdefault(key, deque(maxlen=self._most)).append(now)
        self._failures.move_to_end(key)
        if len(self._failures) > self._addresses:
            self._failures.popitem(last=False)

    def __len__(self) -> int:
        """How many addresses are remembered."""
        return len(self._failures)


def group(address: str) -> str:
    """What counts as one client: an address; of IPv6 the /64, as one machine has all of it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((int(parsed), 64), strict=False))
