"""A real hub under fire: damaged frames of its own actors, of a member and an observer, and bytes that are no ZMTP.

It answers all the while, takes no more memory, and logs no exception.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle, islice

import msgspec
import psutil
import pytest
import zmq

from bus.client import HubPaths
from bus.messages import MESSAGES, VERSION, Header, HubState, JoinRequest, LinkProbe, Status
from bus.net.endpoints import address_of, with_key
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
    heard,
    hub_config,
    hub_process,
    new_node,
    run_folder,
)
from tests.support.messages import example

A, MEMBER, OBSERVER = new_node(), new_node(), new_node()
ROLES = {MEMBER: Role.MEMBER, OBSERVER: Role.OBSERVER}
FRAMES = 200_000
CONNECTIONS = 2_000
MOST_GROWTH = 0.05
KINDS = sorted(MESSAGES)

Sent = Iterator[list[bytes]]


@contextmanager
def hub_that_knows_both() -> Iterator[HubProcess]:
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
    """Headers that pass for the sender's and rise, mostly, and bodies that are damaged, mostly."""
    chance = random.Random(seed)
    bodies = damaged([body for _, body in MESSAGE_FRAMES], seed)
    heads = damaged([head for head, _ in MESSAGE_FRAMES], seed)
    wholes = cycle(zip(KINDS, (body for _, body in MESSAGE_FRAMES), strict=True))
    for sequence, (kind, whole) in enumerate(wholes, 1):
        header = Header(VERSION, kind, f"{sequence:016x}", sender, sequence, life=1)
        to = chance.choice((f"{A}/hub", "/hub", f"{A}/asker", f"{A}/nobody", f"{MEMBER}/x", kind, "\x01", "x" * 300))
        head = next(heads) if chance.random() < 0.1 else msgspec.msgpack.encode(header)
        body = whole if chance.random() < 0.1 else next(bodies)
        frames = [to.encode(), head, body, b"one too many"]
        yield frames[: 3 if chance.random() < 0.95 else chance.randrange(5)] or [b""]


def fire(dealer: zmq.Socket[bytes], sent: Sent, count: int) -> None:
    for frames in islice(sent, count):
        dealer.send_multipart(frames)


async def all_is_heard(hub: HubProcess, dealer: zmq.Socket[bytes], sender: str, sequence: int) -> None:
    """What was sent on a DEALER is dealt with: what comes last, work for an actor, has come through."""
    async with client(hub.config.run_path, A, "witness") as witness:
        header = Header(VERSION, "link.probe", f"the last of {sequence}", sender, sequence, life=2)
        dealer.send_multipart(encode(witness.address, header, LinkProbe()))
        while (await heard(witness, LinkProbe))[1].header.id != header.id:
            pass


def growth_under_fire(hub: HubProcess, send: Callable[[int], None]) -> float:
    """The share by which the hub's memory grows, once a fifth has been sent. `send` ends when all is dealt with."""
    send(FRAMES // 5)
    before = resident(hub)
    send(FRAMES - FRAMES // 5)
    return resident(hub) / before - 1


def nonsense_of(hub: HubProcess, dealer: zmq.Socket[bytes], sender: str) -> Callable[[int], None]:
    """Sends so many damaged messages, and waits until they are dealt with."""
    sent = hostile(sender, seed=20_260)

    def send(count: int) -> None:
        fire(dealer, sent, count)
        asyncio.run(all_is_heard(hub, dealer, sender, count))

    return send


@pytest.mark.parametrize("node", ROLES, ids=ROLES.values())
def test_a_linked_node_that_sends_nonsense_costs_no_memory(node: str, capfd: pytest.CaptureFixture[str]) -> None:
    with hub_that_knows_both() as hub:
        endpoint = asyncio.run(state_of(hub)).endpoint
        with dealer_of(node, endpoint) as dealer:
            growth = growth_under_fire(hub, nonsense_of(hub, dealer, f"{node}/x"))
        dropped = {name.removeprefix("dropped: ") for name in asyncio.run(state_of(hub)).counters}
    assert {"frames", "size", "header", "body", "sender", "misdirected", "not allowed", "undeliverable"} <= dropped
    assert growth < MOST_GROWTH, f"memory grew by {growth:.1%}"
    assert "Traceback" not in capfd.readouterr().err


def test_an_actor_that_sends_nonsense_costs_no_memory(capfd: pytest.CaptureFixture[str]) -> None:
    with hub_that_knows_both() as hub:
        with dealer_of(A, HubPaths(hub.config.run_path).work) as dealer:
            growth = growth_under_fire(hub, nonsense_of(hub, dealer, f"{A}/x"))
        dropped = {name.removeprefix("dropped: ") for name in asyncio.run(state_of(hub)).counters}
    assert {"frames", "size", "header", "body", "undeliverable"} <= dropped
    assert growth < MOST_GROWTH, f"memory grew by {growth:.1%}"
    assert "Traceback" not in capfd.readouterr().err


def test_a_holder_of_the_code_that_knocks_with_nonsense_costs_no_memory(capfd: pytest.CaptureFixture[str]) -> None:
    with hub_that_knows_both() as hub, zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        join_endpoint = key_pair_of(code_of("home").keys().join_secret)
        dealer.setsockopt(zmq.SNDTIMEO, round(WITHIN_S * 1000))
        connect(dealer, with_key(asyncio.run(state_of(hub)).join_endpoint, join_endpoint.public), new_key_pair())
        sent = (frames for frames in hostile("stranger/hub", seed=20_260) if max(map(len, frames)) < JOIN_BYTES // 2)
        growth = growth_under_fire(hub, lambda count: knock(dealer, sent, count))
        dropped = {name.removeprefix("dropped: ") for name in asyncio.run(state_of(hub)).counters}
    assert {"frames", "header", "body", "at the join port"} <= dropped
    assert growth < MOST_GROWTH, f"memory grew by {growth:.1%}"
    assert "Traceback" not in capfd.readouterr().err


def knock(dealer: zmq.Socket[bytes], sent: Sent, count: int) -> None:
    """All is heard once the last, a whole knock, is answered. Answers are taken in, or the join port would drop
    them.
    """
    for frames in islice(sent, count):
        dealer.send_multipart(frames)
        while dealer.poll(0):
            dealer.recv_multipart()
    knock = example(JoinRequest)
    header = Header(VERSION, "join.request", f"the last of {count}", "stranger/hub", 1, life=1)
    dealer.send_multipart(encode("/hub", header, knock))
    while dealer.poll(round(WITHIN_S * 1000)):
        if decode(dealer.recv_multipart()).header.cause == header.id:
            return
    raise AssertionError("the join port does not answer")


def garbage(chance: random.Random) -> bytes:
    """Nothing of ZMTP, its greeting with damage, or its greeting and nonsense behind it."""
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


def throw_garbage(endpoint: str, count: int, chance: random.Random) -> None:
    """One connection each, closed again at once."""
    host, _, port = address_of(endpoint).removeprefix("tcp://").rpartition(":")
    for _ in range(count):
        with socket.create_connection((host, int(port)), timeout=WITHIN_S) as connection:
            connection.sendall(garbage(chance))


def test_bytes_that_are_no_zmtp_cost_no_memory(capfd: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(20_260)
    with hub_that_knows_both() as hub:
        state = asyncio.run(state_of(hub))
        for count in (CONNECTIONS // 5, CONNECTIONS):
            before = resident(hub)
            for endpoint in (state.endpoint, state.join_endpoint):
                throw_garbage(endpoint, count, chance)
            state = asyncio.run(state_of(hub))
        growth = resident(hub) / before - 1
        with dealer_of(MEMBER, state.endpoint) as dealer:
            asyncio.run(all_is_heard(hub, dealer, f"{MEMBER}/x", 1))
    assert growth < MOST_GROWTH, f"memory grew by {growth:.1%}"
    assert "Traceback" not in capfd.readouterr().err


def test_a_name_that_is_no_address_does_not_end_the_hub(capfd: pytest.CaptureFixture[str]) -> None:
    """What its role may not send is answered, and the answer must not be what ends the hub."""
    with hub_that_knows_both() as hub:
        with dealer_of(OBSERVER, asyncio.run(state_of(hub)).endpoint) as dealer:
            header = Header(VERSION, "status", "id", f"{OBSERVER}/" + "é" * 100, 1, life=1)
            dealer.send_multipart(encode("status", header, Status("m", "text")))
            asyncio.run(all_is_heard(hub, dealer, f"{OBSERVER}/x", 1))
        assert asyncio.run(state_of(hub)).counters["dropped: header"] == 1
    assert "Traceback" not in capfd.readouterr().err
