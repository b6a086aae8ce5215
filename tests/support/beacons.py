"""Beacons and join codes for tests, and forgeries of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec

from cluster.join_code import ClusterKeys, JoinCode
from cluster.roles import Role
from discovery.beacon import SEAL_BYTES, Beacon, seal

CODE = JoinCode("home", Role.MEMBER, bytes(range(32)))
KEYS = CODE.keys()
ROTATED = JoinCode("home", Role.MEMBER, bytes(32)).keys()
FOREIGN = JoinCode("office", Role.MEMBER, bytes(32)).keys()
SOURCE = "192.0.2.7"
JOIN = f"tcp://{SOURCE}:52414"


def node_id(number: int) -> str:
    """The id of some node."""
    return f"{number:016x}"


def beacon(number: int = 1, join_endpoint: str = JOIN, **changes: object) -> Beacon:
    """A beacon of some node, by default of its first life and the first of it."""
    plain = Beacon(node_id(number), f"node-{number}", 1, 1, join_endpoint)
    return msgspec.structs.replace(plain, **changes)


def datagram(number: int = 1, join_endpoint: str = JOIN, keys: ClusterKeys = KEYS, **changes: object) -> bytes:
    """The same, sealed."""
    return seal(beacon(number, join_endpoint, **changes), keys)


def forgeries(count: int) -> Iterator[bytes]:
    """Datagrams, no two alike, of somebody who has heard a beacon but lacks the key."""
    heard = datagram()
    at = heard.index(bytes.fromhex(KEYS.id))
    for number in range(count):
        wild = os.urandom(SEAL_BYTES)
        yield (
            heard[:-SEAL_BYTES] + wild,  # another seal
            heard[:at] + wild[:8] + heard[at + 8 :],  # another id
            heard[:-40] + wild[:8] + heard[-32:],  # another body
            wild * (number % 17),  # noise
            heard,  # as it was heard
        )[number % 5]
