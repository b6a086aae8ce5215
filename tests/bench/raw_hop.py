"""What a hop costs with nothing but libzmq: the floor of every hop that is measured here."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import zmq

PINGS = 2000
PAUSED_S = 3.0
WITHIN_MS = 5000


def raw_hop_us(payload_bytes: int, pause_ms: float = 0.0) -> float:
    """Half a round trip of a header and a row between two processes, blocking sockets over ipc; the median.

    With a pause before each, as a step's computing is one, both sides have been asleep and their caches are cold.
    """
    pings = round(PAUSED_S * 1000 / pause_ms) if pause_ms else PINGS
    child = subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True)
    context = zmq.Context()
    try:
        assert child.stdout is not None
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVTIMEO, WITHIN_MS)
        dealer.connect(child.stdout.readline().strip())
        message = bytes(64 + payload_bytes)
        return median(_round_trip_ns(dealer, message, pause_ms) for _ in range(pings)) / 2000
    finally:
        child.kill()
        child.wait()
        context.destroy(linger=0)


def _round_trip_ns(dealer: zmq.Socket[bytes], message: bytes, pause_ms: float) -> int:
    time.sleep(pause_ms / 1000)
    begun = time.perf_counter_ns()
    dealer.send(message)
    dealer.recv()
    return time.perf_counter_ns() - begun


_ECHO = """
import tempfile, zmq
router = zmq.Context().socket(zmq.ROUTER)
with tempfile.TemporaryDirectory() as folder:
    endpoint = f"ipc://{folder}/echo"
    router.bind(endpoint)
    print(endpoint, flush=True)
    while True:
        router.send_multipart(router.recv_multipart())
"""
