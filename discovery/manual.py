"""Peers named by hand as `host:port`. It only checks and completes what was written; no sockets here."""

from __future__ import annotations

from bus.config import DEFAULT_BUS_PORT


def peer_endpoint(text: str) -> str:
    """`host`, `host:port` or `[v6]:port` as a bus end point. Raises ValueError with a sentence."""
    host, separator, port = text.strip().rpartition(":")
    if not separator or "]" in port:
        host, port = text.strip(), str(DEFAULT_BUS_PORT)
    if not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise ValueError(f"--peer {text!r} is not host:port, for example --peer 192.168.1.20:{DEFAULT_BUS_PORT}")
    return f"tcp://{host}:{port}"
