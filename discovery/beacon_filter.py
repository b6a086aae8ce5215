"""Which datagrams are heard: the seal, where it came from, whether it is new, how many come. Pure; clock handed in.

The cheap checks that need no key or only a constant one come first, and the rate last: were it asked earlier, forged
or repeated beacons under a node's address would use up what that node may send.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cluster.join_code import ClusterKeys
from common.rate_limit import TokenBuckets
from discovery.beacon import Beacon, BeaconError, WrongJoinCodeError, is_join_endpoint_at, unseal

A_SECOND = 20.0  # beacons from one source
MOST_SOURCES = 256
MAX_NODES = 1024
SURE_AFTER_S = 2.0
TELL_EVERY_S = 60.0
_SILENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class WrongJoinCode:
    """Somebody at the IPv4 address `source` has another join code for the cluster of this name."""

    cluster: str
    source: str

    @property
    def sentence(self) -> str:
        """For the owner of either node."""
        return (
            f"wrong join code for cluster {self.cluster}: this node and one at {self.source} have different ones; "
            "get the present code with `exobus cluster invite` where it is right, and start the other node with it"
        )


class BeaconFilter:
    """Judges datagrams, one after the other. `dropped` counts what was not believed, by reason."""

    def __init__(self, keys: ClusterKeys) -> None:
        self.dropped: Counter[str] = Counter()
        self._keys = keys
        self._latest = _Latest()
        self._rates = TokenBuckets(A_SECOND, MOST_SOURCES)
        self._wrong_codes = _WrongCodes()

    def use(self, keys: ClusterKeys) -> None:
        """The join code is another now."""
        self._keys = keys

    def take(self, datagram: bytes, source: str, now: float) -> Beacon | WrongJoinCode | None:
        """The beacon, if it is to be believed; or now and then that somebody has another join code."""
        try:
            beacon = unseal(datagram, self._keys)
            self._check(beacon, source, now)
        except BeaconError as error:
            self.dropped[error.reason] += 1
            told = isinstance(error, WrongJoinCodeError) and self._wrong_codes.tell(now)
            return WrongJoinCode(self._keys.name, source) if told else None
        return beacon

    def _check(self, beacon: Beacon, source: str, now: float) -> None:
        if not is_join_endpoint_at(beacon.join_endpoint, source):
            raise BeaconError("reflected")
        if not self._latest.rises(beacon):
            raise BeaconError("replayed")
        if not self._rates.allow(source, now):
            raise BeaconError("too many")


class _Latest:
    """The last beacon of each node, by incarnation and counter."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}  # who was heard last stands last

    def rises(self, beacon: Beacon) -> bool:
        """Whether this one is newer than all before it, and remember it."""
        number = (beacon.incarnation, beacon.counter)
        if number <= self._seen.get(beacon.node_id, (-1, -1)):
            return False
        self._seen.pop(beacon.node_id, None)
        self._seen[beacon.node_id] = number
        if len(self._seen) > MAX_NODES:
            del self._seen[next(iter(self._seen))]
        return True


class _WrongCodes:
    """When to tell of them. While a new code goes round, nodes differ for a moment: that is nothing to tell."""

    def __init__(self) -> None:
        self._since = self._last = self._told = float("-inf")

    def tell(self, now: float) -> bool:
        """One was heard: whether to say so."""
        if now - self._last > _SILENCE_S:
            self._since = now
        self._last = now
        if now - self._since < SURE_AFTER_S or now - self._told < TELL_EVERY_S:
            return False
        self._told = now
        return True
