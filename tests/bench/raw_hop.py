"""What a hop costs with nothing but libzmq: the floor of every hop that is measured here."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import zmq

PINGS = 2000
WITHIN_MS = 5000


def raw_hop_us(payload_bytes: int) -> float:
    """Half a round trip of a header and a row between two processes, blocking sockets over ipc; the median."""
    child = subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True)
    context = zmq.Context()
    try:
        assert child.stdout is not None
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVTIMEO, WITHIN_MS)
        dealer.connect(child.stdout.readline().strip())
        return median(_round_trip_ns(dealer, bytes(64 + payload_bytes)) for _ in range(PINGS)) / 2000
    finally:
        child.kill()
        child.wait()
        context.destroy(linger=0)


def _round_trip_ns(dealer: zmq.Socket[bytes], message: bytes) -> int:
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
