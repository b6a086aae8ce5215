"""A beacon: one datagram in which a node says who it is and where its join port is, under the cluster's beacon key.

    "exob"             4 bytes
    version            1 byte, of the protocol
    length of name     1 byte
    cluster's name     1 to 32 bytes, in clear
    cluster's id       8 bytes, in clear
    body               MessagePack
    seal               16 bytes: HMAC-SHA256 over all that comes before, cut short

Who lacks the key can neither make a beacon nor have its body decoded. Pure; no sockets, no clock.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from cluster.join_code import ClusterKeys

MAGIC = b"exob"
VERSION = 3  # the same as of the bus's messages
LONGEST = 256
SEAL_BYTES = 16
_SHORTEST = 32  # with a name of one letter and a body of one byte
_JOIN_ENDPOINT = re.compile(r"tcp://(?P<host>[0-9.]{7,15}):(?P<port>[1-9][0-9]{0,4})", re.ASCII)

_Number = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class Beacon(msgspec.Struct, frozen=True):
    """Who a node is and where its join port listens. `counter` rises with each beacon; `leaving` is its good-bye."""

    node_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")]
    incarnation: _Number
    counter: _Number
    join_endpoint: Annotated[str, Meta(max_length=32, description="tcp://host:port, without a key")]
    leaving: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Beacon).decode


class BeaconError(Exception):
    """A datagram that is no beacon of this cluster; `reason` is a short stable text for counting."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WrongJoinCodeError(BeaconError):
    """A beacon of a cluster that has our name and another secret: one of the two has a wrong or an old join code."""


def seal(beacon: Beacon, keys: ClusterKeys) -> bytes:
    """The datagram of a beacon, of at most LONGEST bytes."""
    signed = _named(keys) + bytes.fromhex(keys.id) + _encode(beacon)
    return signed + _mac(signed, keys)


def unseal(datagram: bytes, keys: ClusterKeys) -> Beacon:
    """The beacon of a datagram. Raises BeaconError; nothing of it is parsed before the seal is found right."""
    _check_form(datagram)
    named = _named(keys)
    begin = len(named) + len(keys.id) // 2
    if datagram[len(named) : begin].hex() != keys.id or not datagram.startswith(named):
        raise WrongJoinCodeError("wrong code") if datagram.startswith(named) else BeaconError("another cluster")
    signed, mac = datagram[:-SEAL_BYTES], datagram[-SEAL_BYTES:]
    if not hmac.compare_digest(mac, _mac(signed, keys)):
        raise BeaconError("forged")
    try:
        return _decode(signed[begin:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BeaconError("body") from None


def is_join_endpoint_at(join_endpoint: str, source: str) -> bool:
    """Whether `join port` is a tcp address at the IPv4 address `source`; all loopback addresses are one host."""
    written = _JOIN_ENDPOINT.fullmatch(join_endpoint)
    if written is None or int(written["port"]) > 65535:
        return False
    return written["host"] == source or (_is_loopback(written["host"]) and _is_loopback(source))


def _check_form(datagram: bytes) -> None:
    if not _SHORTEST <= len(datagram) <= LONGEST:
        raise BeaconError("size")
    if not datagram.startswith(MAGIC):
        raise BeaconError("magic")
    if datagram[len(MAGIC)] != VERSION:
        raise BeaconError("version")


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
