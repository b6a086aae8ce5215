"""End points as exobus writes them: ZeroMQ's own, and behind a tcp one the public key of whoever listens there.

    tcp://192.168.1.10:41234#5f0c…      64 hex digits

So an end point names its node, and nothing can be dialled without knowing whom. No sockets here.
"""

from __future__ import annotations

from bus.net.keys import KEY_BYTES, node_id_of


def with_key(address: str, public: bytes) -> str:
    """The end point of a tcp address whose listener has the public key."""
    return f"{address}#{public.hex()}"


def address_of(endpoint: str) -> str:
    """What ZeroMQ dials."""
    return endpoint.partition("#")[0]


def key_of(endpoint: str) -> bytes:
    """The public key that an end point names. Raises ValueError where it names none."""
    _, _, digits = endpoint.partition("#")
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or digits != key.hex():
        raise ValueError(f"{endpoint!r} is no end point: it does not name its node's key")
    return key


def node_of(endpoint: str) -> str:
    """The id of the node that listens at a tcp end point. Raises ValueError where it names no key."""
    return node_id_of(key_of(endpoint))
