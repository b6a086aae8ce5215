"""Peers named by hand with `--peer`. Parses what was typed; `discovery.candidates` decides when they are dialled."""

from __future__ import annotations

import re

from common.config import DEFAULT_JOIN_PORT

_PEER = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(%\w+)?\])(:(?P<port>[0-9]{1,5}))?", re.ASCII)


def peer_endpoint(text: str) -> str:
    """Return the join endpoint of `host`, `host:port` or `[v6]:port`. Raises ValueError with a sentence."""
    peer = _PEER.fullmatch(text.strip())
    port = int(peer["port"] or DEFAULT_JOIN_PORT) if peer else 0
    if peer is None or not 0 < port < 65536:
        raise ValueError(f"--peer {text!r} is not host:port, for example --peer 192.168.1.20:{DEFAULT_JOIN_PORT}")
    return f"tcp://{peer['host']}:{port}"
