"""Beacons and join codes for tests, and forged beacons."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import msgspec

from cluster.join_code import ClusterKeys, JoinCode
from cluster.roles import Role
from discovery.beacon import SEAL_BYTES, Beacon, seal
from discovery.udp import UdpDiscovery

CODE = JoinCode("home", Role.MEMBER, bytes(range(32)))
KEYS = CODE.keys()
ROTATED = JoinCode("home", Role.MEMBER, bytes(32)).keys()
FOREIGN = JoinCode("office", Role.MEMBER, bytes(32)).keys()
SOURCE = "192.0.2.7"
JOIN = f"tcp://{SOURCE}:52414"
WITHIN_S = 10.0


def node_id(number: int) -> str:
    """Return the id of node number `number`."""
    return f"{number:016x}"


def beacon(number: int = 1, join_endpoint: str = JOIN, **changes: object) -> Beacon:
    """Make a beacon of a node, by default the first one of its first incarnation."""
    plain = Beacon(node_id(number), f"node-{number}", 1, 1, join_endpoint)
    return msgspec.structs.replace(plain, **changes)


def datagram(number: int = 1, join_endpoint: str = JOIN, keys: ClusterKeys = KEYS, **changes: object) -> bytes:
    """Make the datagram of a beacon."""
    return seal(beacon(number, join_endpoint, **changes), keys)


def forgeries(count: int) -> Iterator[bytes]:
    """Make different datagrams, as a sender can that has received a beacon but lacks the key."""
    genuine = datagram()
    at = genuine.index(bytes.fromhex(KEYS.id))
    for number in range(count):
        noise = os.urandom(SEAL_BYTES)
        yield (
            genuine[:-SEAL_BYTES] + noise,  # another seal
            genuine[:at] + noise[:8] + genuine[at + 8 :],  # another id
            genuine[:-40] + noise[:8] + genuine[-32:],  # another body
            noise * (number % 17),  # only noise
            genuine,  # a replay
        )[number % 5]


async def next_beacon(discovery: UdpDiscovery, wanted: Callable[[Beacon], bool]) -> Beacon:
    """Return the next beacon received that is `wanted`, and skip others. Raises TimeoutError."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found = await discovery.receive()
            if isinstance(found, Beacon) and wanted(found):
                return found
