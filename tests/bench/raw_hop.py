"""The cost of a hop with nothing but libzmq: the floor of every hop that is measured here."""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

import zmq

from bus.net.keys import KeyPair, new_key_pair
from tests.support.ring.synthetic_ring import Over

PINGS = 2000
PAUSED_S = 3.0
WITHIN_MS = 5000


def raw_hop_us(payload_bytes: int, pause_ms: float = 0.0, over: Over = "ipc") -> float:
    """Measure half a round trip of a header and a row between two processes with blocking sockets: the median.

    With a pause before each, such as a step's computing, both sides have been asleep and their caches are cold.
    """
    pair = new_key_pair()
    pings = round(PAUSED_S * 1000 / pause_ms) if pause_ms else PINGS
    command = [sys.executable, "-c", _ECHO, over, pair.secret.hex()]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    context = zmq.Context()
    try:
        assert child.stdout is not None
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVTIMEO, WITHIN_MS)
        if over == "curve":
            _use_keys(dealer, pair)
        dealer.connect(child.stdout.readline().strip())
        message = bytes(64 + payload_bytes)
        return median(_round_trip_ns(dealer, message, pause_ms) for _ in range(pings)) / 2000
    finally:
        child.kill()
        child.wait()
        context.destroy(linger=0)


def _use_keys(dealer: zmq.Socket[bytes], pair: KeyPair) -> None:
    """Give both sides the same pair, which costs as much as two."""
    dealer.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    dealer.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    dealer.setsockopt(zmq.CURVE_SERVERKEY, pair.public)


def _round_trip_ns(dealer: zmq.Socket[bytes], message: bytes, pause_ms: float) -> int:
    time.sleep(pause_ms / 1000)
    begun = time.perf_counter_ns()
    dealer.send(message)
    dealer.recv()
    return time.perf_counter_ns() - begun


_ECHO = """
import sys, tempfile, zmq
router = zmq.Context().socket(zmq.ROUTER)
if sys.argv[1] == "curve":
    router.curve_secretkey = bytes.fromhex(sys.argv[2])
    router.curve_server = True
with tempfile.TemporaryDirectory() as folder:
    router.bind(f"ipc://{folder}/echo" if sys.argv[1] == "ipc" else "tcp://127.0.0.1:*")
    print(router.last_endpoint.decode().rstrip("\\0"), flush=True)
    while True:
        router.send_multipart(router.recv_multipart())
"""
