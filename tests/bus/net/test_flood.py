"""A socket that is flooded by somebody who then vanishes: the process that reads it has to live on."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import zmq

from bus.net.sockets import bind_ipc, connect, connect_ipc, open_socket
from tests.support.bus import KEYS, ROOT, WITHIN_S, new_node, run_folder

READER = """
import sys, time, zmq
from bus.net.sockets import bind_ipc, open_socket
with zmq.Context() as context, open_socket(context, zmq.ROUTER) as router:
    bind_ipc(router, sys.argv[1])
    print("bound", flush=True)
    sys.stdin.readline()
    heard = 0
    while router.poll(1000):
        router.recv_multipart()
        heard += 1
print(heard)
"""
HEARTBEATS_S = 1.0  # longer than two are ever apart


def test_a_reader_survives_a_flood_whose_sender_vanishes_before_it_reads() -> None:
    """libzmq would end it at its next heartbeat, if it sent any."""
    with run_folder() as folder:
        endpoint = f"ipc://{folder}/reader"
        command = [sys.executable, "-c", READER, endpoint]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdin
            assert reader.stdout
            assert reader.stdout.readline() == "bound\n"
            sent = _flood(endpoint)
            with suppress(subprocess.TimeoutExpired):
                reader.wait(HEARTBEATS_S)
            output, _ = reader.communicate("now\n", timeout=WITHIN_S)
    assert reader.returncode == 0
    assert 0 < int(output) <= sent


def _flood(endpoint: str) -> int:
    """Send until nothing more goes out, and vanish."""
    sent = 0
    with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        connect_ipc(dealer, endpoint)
        dealer.setsockopt(zmq.SNDTIMEO, 300)
        try:
            while True:
                dealer.send(b"x" * 1000)
                sent += 1
        except zmq.Again:
            return sent


def test_only_who_dials_over_tcp_sends_heartbeats() -> None:
    node = new_node()
    with zmq.Context() as context, run_folder() as folder:
        for kind in (zmq.ROUTER, zmq.XPUB, zmq.XSUB, zmq.PUB, zmq.SUB):
            with open_socket(context, kind) as listener:
                assert listener.getsockopt(zmq.HEARTBEAT_IVL) == 0
        with open_socket(context, zmq.ROUTER) as router, open_socket(context, zmq.DEALER) as dealer:
            bind_ipc(router, f"ipc://{folder}/x")
            connect_ipc(dealer, f"ipc://{folder}/x")
            assert dealer.getsockopt(zmq.HEARTBEAT_IVL) == 0
        with open_socket(context, zmq.DEALER) as dealer:
            connect(dealer, f"tcp://127.0.0.1:1#{KEYS[node].public.hex()}", KEYS[node])
            assert dealer.getsockopt(zmq.HEARTBEAT_IVL) == 500
            assert dealer.getsockopt(zmq.HEARTBEAT_TTL) == 1500
