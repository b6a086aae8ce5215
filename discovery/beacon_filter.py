"""Which datagrams are accepted as beacons: the seal, the source address, replay, and the rate. The time is passed in.

Cheap checks come first, and the rate last: if it came earlier, forged or replayed beacons under a node's address would
use up what that node may send.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cachetools import LRUCache

from cluster.join_code import ClusterKeys
from common.limits import MAX_NODES
from common.rate_limit import RateLimit, TokenBuckets
from discovery.beacon import Beacon, BeaconError, WrongJoinCodeError, is_join_endpoint_at, unseal

BEACONS_PER_S = 20.0  # of one source address
MAX_SOURCES = 256
REPORT_AFTER_S = 2.0
REPORT_EVERY_S = 60.0
_PAUSE_S = 10.0  # without any wrong code ends an episode of them


@dataclass(frozen=True, slots=True)
class WrongJoinCode:
    """A node at the IPv4 address `source` has another join code for the cluster of this name."""

    cluster: str
    source: str

    @property
    def sentence(self) -> str:
        """The report for the owner of either node."""
        return (
            f"wrong join code for cluster {self.cluster}: this node and one at {self.source} have different ones; "
            "run `exobus cluster invite` on the node with the right code, and start the other node with it"
        )


class BeaconFilter:
    """Checks datagrams, one after the other. `dropped` counts those that were not accepted, by reason."""

    def __init__(self, keys: ClusterKeys) -> None:
        self.dropped: Counter[str] = Counter()
        self._keys = keys
        self._latest: LRUCache[str, tuple[int, int]] = LRUCache(MAX_NODES)  # incarnation and counter, by node
        self._rates = TokenBuckets(BEACONS_PER_S, MAX_SOURCES)
        self._wrong_codes = _WrongCodeReports()

    def use_keys(self, keys: ClusterKeys) -> None:
        """Accept beacons under the keys of a new join code from now on."""
        self._keys = keys

    def accept(self, datagram: bytes, source: str, now: float) -> Beacon | WrongJoinCode | None:
        """Return the beacon if it is genuine and new; now and then that `source` has another join code; else None."""
        try:
            beacon = unseal(datagram, self._keys)
            self._check(beacon, source, now)
        except BeaconError as error:
            self.dropped[error.reason] += 1
            report = isinstance(error, WrongJoinCodeError) and self._wrong_codes.is_due(now)
            return WrongJoinCode(self._keys.name, source) if report else None
        return beacon

    def _check(self, beacon: Beacon, source: str, now: float) -> None:
        if not is_join_endpoint_at(beacon.join_endpoint, source):
            raise BeaconError("reflected")
        number = (beacon.incarnation, beacon.counter)
        if number <= self._latest.get(beacon.node_id, (-1, -1)):
            raise BeaconError("replayed")
        self._latest[beacon.node_id] = number
        if not self._rates.allow(source, now):
            raise BeaconError("too many")


class _WrongCodeReports:
    """When to report wrong join codes: if they persist, because nodes differ for a moment while a code is rotated."""

    def __init__(self) -> None:
        self._since = self._last = float("-inf")
        self._reports = RateLimit(REPORT_EVERY_S)

    def is_due(self, now: float) -> bool:
        """Note that a beacon under a wrong code came. Returns whether to report it."""
        if now - self._last > _PAUSE_S:
            self._since = now
        self._last = now
        return now - self._since >= REPORT_AFTER_S and self._reports.pass_on("", now) is not None
