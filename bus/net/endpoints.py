"""Endpoints as exobus writes them: ZeroMQ's own and, for tcp, the public key of the listener behind it.

    tcp://192.168.1.10:41234#5f0c…      64 hex digits

So an endpoint identifies its node, and no tcp connection is made without knowing with which node.
"""

from __future__ import annotations

import os
from pathlib import Path

import zmq

from bus.net.keys import KEY_BYTES, node_id_of

LONGEST_NAME = "engine-999999.ring"  # of a socket in a run folder


class HubPaths:
    """The ipc endpoints of a hub, in the run folder of its node (mode 0700)."""

    def __init__(self, run_dir: Path) -> None:
        self.facts_in = f"ipc://{run_dir}/facts-in"
        self.facts_out = f"ipc://{run_dir}/facts-out"
        self.work = f"ipc://{run_dir}/work"


def fits_ipc(run_dir: Path) -> bool:
    """Return whether the path of each socket in a run folder is short enough for the system, and UTF-8."""
    path = os.fsencode(run_dir / LONGEST_NAME)
    try:
        return len(path) <= zmq.IPC_PATH_MAX_LEN and bool(path.decode())
    except UnicodeDecodeError:
        return False


def with_key(address: str, public: bytes) -> str:
    """Return the endpoint of a tcp address at which the listener has the public key."""
    return f"{address}#{public.hex()}"


def address_of(endpoint: str) -> str:
    """Return the address that ZeroMQ connects to, without the key."""
    return endpoint.partition("#")[0]


def port_of(endpoint: str) -> int:
    """Return the port number of a tcp endpoint, with or without a key; 0 for an empty one."""
    return int(address_of(endpoint).rpartition(":")[2] or 0)


def key_of(endpoint: str) -> bytes:
    """Return the public key in an endpoint. Raises ValueError if it has none."""
    _, _, digits = endpoint.partition("#")
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or digits != key.hex():
        raise ValueError(f"{endpoint!r} is no endpoint: it does not name its node's key")
    return key


def node_of(endpoint: str) -> str:
    """Return the id of the node that listens at a tcp endpoint. Raises ValueError if the endpoint has no key."""
    return node_id_of(key_of(endpoint))
