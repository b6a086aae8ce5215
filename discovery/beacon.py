"""A beacon: one datagram with a node's identity and join port, authenticated with the cluster's beacon key.

    "exob"             4 bytes
    version            1 byte, of the protocol
    length of name     1 byte
    cluster's name     1 to 32 bytes, in clear
    cluster's id       8 bytes, in clear
    body               MessagePack
    seal               16 bytes: HMAC-SHA256 over everything before it, truncated

A sender without the key cannot make a beacon, nor have its body decoded.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.join_code import ClusterKeys
from common.limits import UNREADABLE

MAGIC = b"exob"
VERSION = 4  # that of the bus messages
MAX_BYTES = 256
MIN_BYTES = 32  # with a name of one letter and a body of one byte
SEAL_BYTES = 16
_JOIN_ENDPOINT = re.compile(r"tcp://(?P<host>[0-9.]{7,15}):(?P<port>[1-9][0-9]{0,4})", re.ASCII)

_Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Beacon(msgspec.Struct, frozen=True):
    """A node's identity and the endpoint of its join port.

    `incarnation` rises with each start of the node and `counter` with each beacon since. `leaving` marks the last one.
    """

    node_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")]
    incarnation: _Number
    counter: _Number
    join_endpoint: Annotated[str, Meta(max_length=32, description="tcp://host:port, without a key")]
    leaving: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Beacon).decode


class BeaconError(Exception):
    """A datagram is not a beacon of this cluster; `reason` is a short stable text for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongJoinCodeError(BeaconError):
    """A beacon is of a cluster with our name and another secret: one of the two nodes has a wrong or old join code."""


def seal(beacon: Beacon, keys: ClusterKeys) -> bytes:
    """Return the datagram of a beacon, of at most MAX_BYTES bytes."""
    signed = _named(keys) + bytes.fromhex(keys.id) + _encode(beacon)
    return signed + _mac(signed, keys)


def unseal(datagram: bytes, keys: ClusterKeys) -> Beacon:
    """Return the beacon of a datagram. Raises BeaconError; the body is parsed only if the seal is right."""
    if not MIN_BYTES <= len(datagram) <= MAX_BYTES:
        raise BeaconError("size")
    if not datagram.startswith(MAGIC):
        raise BeaconError("magic")
    if datagram[len(MAGIC)] != VERSION:
        raise BeaconError("version")
    named = _named(keys)
    if not datagram.startswith(named):
        raise BeaconError("another cluster")
    begin = len(named) + len(keys.id) // 2
    if datagram[len(named) : begin].hex() != keys.id:
        raise WrongJoinCodeError("wrong code")
    signed, mac = datagram[:-SEAL_BYTES], datagram[-SEAL_BYTES:]
    if not hmac.compare_digest(mac, _mac(signed, keys)):
        raise BeaconError("forged")
    try:
        return _decode(signed[begin:])
    except UNREADABLE:
        raise BeaconError("body") from None


def is_join_endpoint_at(join_endpoint: str, source: str) -> bool:
    """Return whether an endpoint is a tcp port at the IPv4 address `source`. All loopback addresses are one host.

    So a node can only announce a join port of its own address, and beacons cannot direct dials at others.
    """
    endpoint = _JOIN_ENDPOINT.fullmatch(join_endpoint)
    if endpoint is None or int(endpoint["port"]) > 65535:
        return False
    return endpoint["host"] == source or (_is_loopback(endpoint["host"]) and _is_loopback(source))


def _named(keys: ClusterKeys) -> bytes:
    name = keys.name.encode()
    return MAGIC + bytes((VERSION, len(name))) + name


def _mac(signed: bytes, keys: ClusterKeys) -> bytes:
    return hmac.digest(keys.beacon, signed, "sha256")[:SEAL_BYTES]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False
