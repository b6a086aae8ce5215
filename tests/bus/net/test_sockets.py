"""The limits and keys of all sockets, which one factory makes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from bus.net.endpoints import with_key
from bus.net.keys import new_key_pair
from bus.net.sockets import (
    CONTROL_BYTES,
    CONTROL_MARK,
    DATA_BYTES,
    CurveServer,
    bind_ipc,
    bind_tcp,
    connect,
    connect_ipc,
    open_async_socket,
    open_socket,
)
from bus.net.zap import ZapHandler
from tests.support.bus import KEYS, ROOT, WITHIN_S, new_node, run_folder

KINDS = [zmq.ROUTER, zmq.DEALER, zmq.PUB, zmq.SUB, zmq.XPUB, zmq.XSUB]
LIMITS = {
    zmq.LINGER: 0,
    zmq.MAXMSGSIZE: CONTROL_BYTES,
    zmq.SNDHWM: CONTROL_MARK,
    zmq.RCVHWM: CONTROL_MARK,
    zmq.HANDSHAKE_IVL: 3000,
    zmq.HEARTBEAT_IVL: 0,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.BACKLOG: 1024,
    zmq.ROUTING_ID: b"",
}

READER = """
import sys, time, zmq
from bus.net.sockets import bind_ipc, open_socket
with zmq.Context() as context, open_socket(context, zmq.ROUTER) as router:
    bind_ipc(router, sys.argv[1])
    print("bound", flush=True)
    sys.stdin.readline()
    count = 0
    while router.poll(1000):
        router.recv_multipart()
        count += 1
print(count)
"""
HEARTBEATS_S = 1.0  # longer than the interval of heartbeats


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.mark.parametrize("kind", KINDS)
def test_all_sockets_have_all_limits(kind: int, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    with open_socket(context, kind) as socket:
        assert {option: socket.getsockopt(option) for option in LIMITS} == LIMITS


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "ipc:///tmp/missing"])
def test_sending_socket_has_heartbeats(endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    options = (zmq.HEARTBEAT_IVL, zmq.HEARTBEAT_TIMEOUT, zmq.HEARTBEAT_TTL)
    with open_socket(context, zmq.DEALER) as dealer:
        if endpoint.startswith("ipc"):
            connect_ipc(dealer, endpoint, only_sends=True)
        else:
            connect(dealer, with_key(endpoint, new_key_pair().public), new_key_pair())
        assert [dealer.getsockopt(option) for option in options] == [500, 1500, 1500]


def test_async_socket_has_all_limits() -> None:
    context = zmq.asyncio.Context()
    socket = open_async_socket(context, zmq.DEALER)
    assert {option: socket.getsockopt(option) for option in LIMITS} == LIMITS
    context.destroy(linger=0)


def test_frames_are_at_most_a_mebibyte() -> None:
    assert max(CONTROL_BYTES, DATA_BYTES) <= 1 << 20


def test_tcp_port_enforces_curve_and_domain(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    options = (zmq.CURVE_SERVER, zmq.MECHANISM, zmq.ZAP_DOMAIN, zmq.ZAP_ENFORCE_DOMAIN)
    with open_socket(context, zmq.ROUTER) as router:
        bind_tcp(router, "127.0.0.1", 0, CurveServer(new_key_pair(), "test"))
        assert [router.getsockopt(option) for option in options] == [1, zmq.CURVE, b"test", 1]


def test_second_client_with_a_routing_id_gets_nothing(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """With handover, a client that names a victim's routing id would get the victim's replies."""
    handler = ZapHandler(context, lambda domain, key: "user")
    with ExitStack() as stack:
        stack.callback(handler.close)
        router, victim, impostor = (
            stack.enter_context(open_socket(context, kind)) for kind in (zmq.ROUTER, zmq.DEALER, zmq.DEALER)
        )
        endpoint = bind_tcp(router, "127.0.0.1", 0, CurveServer(new_key_pair(), "test"))
        for dealer, sent in ((victim, b"first"), (impostor, b"second")):
            dealer.setsockopt(zmq.ROUTING_ID, b"victim")
            dealer.setsockopt(zmq.IMMEDIATE, 0)
            connect(dealer, endpoint, new_key_pair())
            dealer.send(sent)
            assert bool(router.poll(3000 if dealer is victim else 500)) is (dealer is victim)
            if dealer is victim:
                assert router.recv_multipart() == [b"victim", b"first"]
        router.send_multipart([b"victim", b"reply"])
        assert victim.poll(3000)
        assert not impostor.poll(200)


def test_routing_ids_come_from_zeromq() -> None:
    """The only exception is the waker of the data plane, over inproc, to which no other process can connect."""
    named = {
        (file.relative_to(ROOT).as_posix(), node.attr)
        for package in ("actors", "bus", "cli", "gateway")
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(Path(file).read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("ROUTING_ID", "IDENTITY", "ROUTER_HANDOVER")
    }
    assert named <= {("bus/dataplane/transport.py", "ROUTING_ID")}


def test_reader_survives_a_flood_of_a_lost_sender() -> None:
    """libzmq would abort it at its next heartbeat, if it sent any."""
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
    """Send until the pipes are full, and close. Returns the number of messages."""
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


def test_listeners_and_ipc_sockets_send_no_heartbeats() -> None:
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
