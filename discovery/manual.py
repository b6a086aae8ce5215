"""Peers named by hand as `host:port`. It only checks and completes what was written; no sockets here."""

from __future__ import annotations

import re

from common.config import DEFAULT_JOIN_PORT

_PEER = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(%\w+)?\])(:(?P<port>[0-9]{1,5}))?", re.ASCII)


def peer_endpoint(text: str) -> str:
    """`host`, `host:port` or `[v6]:port` as the address of a join port. Raises ValueError with a sentence."""
    written = _PEER.fullmatch(text.strip())
    port = int(written["port"] or DEFAULT_JOIN_PORT) if written else 0
    if written is None or not 0 < port < 65536:
        raise ValueError(f"--peer {text!r} is not host:port, for example --peer 192.168.1.20:{DEFAULT_JOIN_PORT}")
    return f"tcp://{written['host']}:{port}"
