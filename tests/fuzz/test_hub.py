"""A hub that gets damaged frames, from an actor, a member, an observer and a joining node, and bytes other than ZMTP.

It goes on to reply, takes no more memory, and logs no exception.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle, islice

import msgspec
import psutil
import pytest
import zmq

from bus.messages import MESSAGES, VERSION, Header, HubState, JoinRequest, LinkProbe, Status
from bus.net.endpoints import HubPaths, address_of, with_key
from bus.net.keys import key_pair_of, new_key_pair
from bus.net.sockets import connect, open_socket
from bus.peering.join_client import JOIN_BYTES
from bus.peering.member_store import write_members
from bus.wire import decode, encode
from cluster.membership import Member, Membership, MemberStatus
from cluster.roles import Role
from tests.fuzz.mutations import damaged
from tests.fuzz.samples import MESSAGE_FRAMES
from tests.support.bus import (
    KEYS,
    WITHIN_S,
    HubProcess,
    client,
    code_of,
    dealer_of,
    described,
    hub_config,
    hub_process,
    new_node,
    next_message,
    run_folder,
)
from tests.support.network.messages import example

A, MEMBER, OBSERVER = new_node(), new_node(), new_node()
ROLES = {MEMBER: Role.MEMBER, OBSERVER: Role.OBSERVER}
FRAMES = 200_000
CONNECTIONS = 2_000
MAX_GROWTH = 0.05
AT_A_TIME = 800  # below the mark of the hub's queue: see `wait_until_handled`
AGAIN_S = 3.0
KINDS = sorted(MESSAGES)

Sent = Iterator[list[bytes]]


@contextmanager
def hub_with_both_members() -> Iterator[HubProcess]:
    with run_folder() as folder:
        known = {
            n: Member(n, f"name of {n}", KEYS[n].public.hex(), role, MemberStatus.APPROVED) for n, role in ROLES.items()
        }
        write_members(folder, Membership("home", by_id=known))
        with hub_process(hub_config(folder, A)) as process:
            yield process


async def state_of(hub: HubProcess) -> HubState:
    async with client(hub.config.run_path, A, "asker") as asker:
        return await described(asker, lambda state: bool(state.node_id))


def resident(hub: HubProcess) -> int:
    return int(psutil.Process(hub.process.pid).memory_info().rss)


def hostile(sender: str, seed: int) -> Sent:
    """Yield frames, most with a valid header of the sender and a damaged body."""
    chance = random.Random(seed)
    bodies = damaged([body for _, body in MESSAGE_FRAMES], seed)
    heads = damaged([head for head, _ in MESSAGE_FRAMES], seed)
    wholes = cycle(zip(KINDS, (body for _, body in MESSAGE_FRAMES), strict=True))
    for sequence, (kind, whole) in enumerate(wholes, 1):
        header = Header(VERSION, kind, f"{sequence:016x}", sender, sequence, life=1)
        to = chance.choice((f"{A}/hub", "/hub", f"{A}/asker", f"{A}/missing", f"{MEMBER}/x", kind, "\x01", "x" * 300))
        head = next(heads) if chance.random() < 0.1 else msgspec.msgpack.encode(header)
        body = whole if chance.random() < 0.1 else next(bodies)
        frames = [to.encode(), head, body, b"one too many"]
        yield frames[: 3 if chance.random() < 0.95 else chance.randrange(5)] or [b""]


def send_some(dealer: zmq.Socket[bytes], sent: Sent, count: int) -> None:
    for frames in islice(sent, count):
        dealer.send_multipart(frames)


async def wait_until_handled(hub: HubProcess, dealer: zmq.Socket[bytes], sender: str, sequences: Iterator[int]) -> None:
    """Wait until all that was sent on a DEALER is handled: work for an actor, sent last, has arrived.

    It is sent again if it does not arrive soon: if the machine stands still for 1.5 s, the connection is given up for
    its missing heartbeats, and what is on it is lost. If the hub's queue is full then, libzmq may end its process.
    """
    last = f"the last before {next(sequences)}"
    async with client(hub.config.run_path, A, "receiver") as receiver, asyncio.timeout(WITHIN_S):
        arrived = ""
        while arrived != last:
            header = Header(VERSION, "link.probe", last, sender, next(sequences), life=2)
            dealer.send_multipart(encode(receiver.address, header, LinkProbe()))
            with suppress(TimeoutError):
                arrived = (await next_message(receiver, LinkProbe, AGAIN_S))[1].header.id


def growth_of_memory(hub: HubProcess, send: Callable[[int], None]) -> float:
    """Return the relative growth of the hub's memory after the first fifth. `send` returns when all is handled."""
    for _ in range(0, FRAMES // 5, AT_A_TIME):
        send(AT_A_TIME)
    before = resident(hub)
    for _ in range(FRAMES // 5, FRAMES, AT_A_TIME):
        send(AT_A_TIME)
    return resident(hub) / before - 1


def sender_of_damage(hub: HubProcess, dealer: zmq.Socket[bytes], sender: str) -> Callable[[int], None]:
    """Return a function that sends so many damaged messages and waits until they are handled."""
    sent, sequences = hostile(sender, seed=20_260), itertools.count(FRAMES)

    def send(count: int) -> None:
        send_some(dealer, sent, count)
        asyncio.run(wait_until_handled(hub, dealer, sender, sequences))

    return send


@pytest.mark.parametrize("node", ROLES, ids=ROLES.values())
def test_damaged_frames_of_a_node_cost_no_memory(node: str, capfd: pytest.CaptureFixture[str]) -> None:
    with hub_with_both_members() as hub:
        endpoint = asyncio.run(state_of(hub)).endpoint
        with dealer_of(node, endpoint) as dealer:
            growth = growth_of_memory(hub, sender_of_damage(hub, dealer, f"{node}/x"))
        dropped = {name.removeprefix("dropped: ") for name in asyncio.run(state_of(hub)).counters}
    assert {"frames", "size", "header", "body", "sender", "misdirected", "not allowed", "undeliverable"} <= dropped
    assert growth < MAX_GROWTH, f"memory grew by {growth:.1%}"
    assert "Traceback" not in capfd.readouterr().err


def test_damaged_frames_of_an_actor_cost_no_memory(capfd: pytest.CaptureFixture[str]) -> None:
    with hub_with_both_members() as hub:
        with dealer_of(A, HubPaths(hub.config.run_path).work) as dealer:
            growth = growth_of_memory(hub, sender_of_damage(hub, dealer, f"{A}/x"))
        dropped = {name.removeprefix("dropped: ") for name in asyncio.run(state_of(hub)).counters}
    assert {"frames", "size", "header", "body", "undeliverable"} <= dropped
    assert growth < MAX_GROWTH, f"memory grew by {growth:.1%}"
    assert "Traceback" not in capfd.readouterr().err


def test_damaged_join_requests_cost_no_memory(capfd: pytest.CaptureFixture[str]) -> None:
    with hub_with_both_members() as hub, zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        port_key = key_pair_of(code_of("home").keys().join_secret).public
        dealer.setsockopt(zmq.SNDTIMEO, round(WITHIN_S * 1000))
        connect(dealer, with_key(asyncio.run(state_of(hub)).join_endpoint, port_key), new_key_pair())
        sent = (frames for frames in hostile("joiner/hub", seed=20_260) if max(map(len, frames)) < JOIN_BYTES // 2)
        growth = growth_of_memory(hub, lambda count: send_requests(dealer, sent, count))
        dropped = {name.removeprefix("dropped: ") for name in asyncio.run(state_of(hub)).counters}
    assert {"frames", "header", "body", "no join request"} <= dropped
    assert growth < MAX_GROWTH, f"memory grew by {growth:.1%}"
    assert "Traceback" not in capfd.readouterr().err


def send_requests(dealer: zmq.Socket[bytes], sent: Sent, count: int) -> None:
    """Send, and wait for the reply to a last, valid request. Reads all replies, or the port would drop some."""
    for frames in islice(sent, count):
        dealer.send_multipart(frames)
        while dealer.poll(0):
            dealer.recv_multipart()
    header = Header(VERSION, "join.request", f"the last of {count}", "joiner/hub", 1, life=1)
    dealer.send_multipart(encode("/hub", header, example(JoinRequest)))
    while dealer.poll(round(WITHIN_S * 1000)):
        if decode(dealer.recv_multipart()).header.cause == header.id:
            return
    raise AssertionError("the join port does not reply")


def other_bytes(chance: random.Random) -> bytes:
    """Return random bytes, a damaged greeting of ZMTP, or a greeting with random bytes after it."""
    greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
    at = chance.randrange(len(greeting))
    return chance.choice(
        (
            chance.randbytes(chance.randrange(1, 300)),
            greeting[:at] + chance.randbytes(8) + greeting[at:],
            greeting + chance.randbytes(200),
            greeting + b"\x04" + chance.randbytes(1) + b"\x05HELLO" + chance.randbytes(194),
            greeting + b"\x06" + b"\x7f" * 8 + chance.randbytes(64),
        )
    )


def send_other_bytes(endpoint: str, count: int, chance: random.Random) -> None:
    """Send on `count` connections, and close each at once."""
    host, _, port = address_of(endpoint).removeprefix("tcp://").rpartition(":")
    for _ in range(count):
        with socket.create_connection((host, int(port)), timeout=WITHIN_S) as connection:
            connection.sendall(other_bytes(chance))


def test_other_bytes_cost_no_memory(capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(20_260)
    with hub_with_both_members() as hub:
        state = asyncio.run(state_of(hub))
        for count in (CONNECTIONS // 5, CONNECTIONS):
            before = resident(hub)
            for endpoint in (state.endpoint, state.join_endpoint):
                send_other_bytes(endpoint, count, chance)
            state = asyncio.run(state_of(hub))
        growth = resident(hub) / before - 1
        with dealer_of(MEMBER, state.endpoint) as dealer:
            asyncio.run(wait_until_handled(hub, dealer, f"{MEMBER}/x", itertools.count(1)))
    assert growth < MAX_GROWTH, f"memory grew by {growth:.1%}"
    assert "Traceback" not in capfd.readouterr().err


def test_sender_without_ascii_name_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    """The hub would reply that the role may not send it, and the reply must not end the hub."""
    with hub_with_both_members() as hub:
        with dealer_of(OBSERVER, asyncio.run(state_of(hub)).endpoint) as dealer:
            header = Header(VERSION, "status", "id", f"{OBSERVER}/" + "é" * 100, 1, life=1)
            dealer.send_multipart(encode("status", header, Status("m", "text")))
            asyncio.run(wait_until_handled(hub, dealer, f"{OBSERVER}/x", itertools.count(1)))
        assert asyncio.run(state_of(hub)).counters["dropped: header"] == 1
    assert "Traceback" not in capfd.readouterr().err
