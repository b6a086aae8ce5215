"""`bus.dataplane.transport` between nodes: CURVE keys, links that come and go, and sequence numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq

from bus.dataplane import inbound_connections
from bus.dataplane import transport as module
from bus.dataplane.access import LOCAL, Access
from bus.dataplane.frames import Flag, Frame, FrameError
from bus.dataplane.inbound_connections import InboundConnections, sender_of
from bus.dataplane.transport import PeerUnreachable, Received, Transport
from bus.net.endpoints import address_of, with_key
from bus.net.keys import new_key_pair
from tests.support.access import linked_nodes, new_access, peer, raw_dealer
from tests.support.bus import WITHIN_S, in_time, run_folder
from tests.support.relay import Relay

HIDDEN = Frame(0, 1, 2, position=5)
ROW = np.zeros((1, 8), np.float32)


@contextmanager
def transport(folder: Path, name: str, access: Access = LOCAL) -> Iterator[Transport]:
    made = Transport(folder, name, access)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as path:
        yield path


def received(receiver: Transport) -> Received:
    deadline = time.monotonic() + WITHIN_S
    while (came := receiver.receive(100)) is None:
        assert time.monotonic() < deadline, f"no frame came: {receiver.dropped}"
    return came


def nothing_but(receiver: Transport, dropped: dict[str, int]) -> bool:
    """Whether the transport has dropped this in time, and received nothing."""
    return in_time(lambda: receiver.receive() is None and receiver.dropped == dropped)


def test_sender_is_known_from_the_connections_key(folder: Path) -> None:
    here, there = linked_nodes(2)
    with transport(folder, "one", here) as one, transport(folder, "two", there) as two:
        for endpoint, sender in ((two.endpoints[1], here.pair.node_id), (two.endpoints[0], "")) * 2:
            one.send(endpoint, HIDDEN, ROW)
            assert received(two)[2] == sender
        assert two.endpoints[1].endswith(f"#{there.pair.public.hex()}")


def test_unlinked_key_cannot_connect(folder: Path) -> None:
    here, there = linked_nodes(2)
    stranger = new_key_pair()
    with transport(folder, "two", there) as two, transport(folder, "one", here) as one:
        with raw_dealer(stranger, two.endpoints[1]) as raw:
            raw.setsockopt(zmq.SNDTIMEO, 500)
            with pytest.raises(zmq.Again):
                raw.send(HIDDEN._replace(sequence=1).pack())
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert received(two)[2] == here.pair.node_id
        assert not two.dropped


def test_connection_without_keys_is_refused(folder: Path) -> None:
    (there,) = linked_nodes(1)
    with transport(folder, "two", there) as two, zmq.Context() as context, context.socket(zmq.DEALER) as plain:
        plain.setsockopt(zmq.LINGER, 0)
        plain.setsockopt(zmq.IMMEDIATE, 1)
        plain.setsockopt(zmq.SNDTIMEO, 500)
        plain.connect(address_of(two.endpoints[1]))
        with pytest.raises(zmq.Again):
            plain.send(HIDDEN._replace(sequence=1).pack())
        assert nothing_but(two, {})


def test_open_connection_of_an_unlinked_node_is_ignored(folder: Path) -> None:
    here, there = linked_nodes(2)
    with transport(folder, "one", here) as one, transport(folder, "two", there) as two:
        one.send(two.endpoints[1], HIDDEN, ROW)
        received(two)
        there.allowlist.remove(here.pair.node_id)
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert nothing_but(two, {"not linked": 1})
        there.allowlist.add([peer(here.pair)])
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert received(two)[0].sequence == 3


def test_nothing_is_sent_to_an_unlinked_node(folder: Path) -> None:
    here, there = linked_nodes(2)
    with transport(folder, "one", here) as one, transport(folder, "two", there) as two:
        one.send(two.endpoints[1], HIDDEN, ROW)
        received(two)
        here.allowlist.remove(there.pair.node_id)
        for _ in range(2):
            with pytest.raises(PeerUnreachable, match="not linked"):
                one.send(two.endpoints[1], HIDDEN, ROW)
        here.allowlist.add([peer(there.pair)])
        one.send(two.endpoints[1], HIDDEN, ROW)
        assert received(two)[0].sequence == 1, "the old connection was still used"


def test_unlinked_node_cannot_be_connected_to(folder: Path) -> None:
    (here,) = linked_nodes(1)
    with transport(folder, "one", here) as one, pytest.raises(ValueError, match="not linked"):
        one.connect(with_key("tcp://127.0.0.1:1", new_key_pair().public))


def test_listener_with_another_key_receives_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_TIMEOUT_MS", 400)
    here, there, impostor = linked_nodes(3)
    with transport(folder, "one", here) as one, transport(folder, "three", impostor) as three:
        claimed = with_key(address_of(three.endpoints[1]), there.pair.public)
        with pytest.raises(PeerUnreachable, match="accepted no frame"):
            one.send(claimed, HIDDEN, ROW)
        assert nothing_but(three, {})


def test_refused_connection_is_dialed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEND_TIMEOUT_MS", 400)
    monkeypatch.setattr(module, "RETRY_AFTER_S", 0.2)
    pairs = new_key_pair(), new_key_pair()
    here, there = new_access(*pairs), new_access(pairs[1])  # the other end has no link yet
    with transport(folder, "one", here) as one, transport(folder, "two", there) as two:
        with pytest.raises(PeerUnreachable):
            one.send(two.endpoints[1], HIDDEN, ROW)
        there.allowlist.add([peer(pairs[0])])
        assert in_time(lambda: sent(one, two.endpoints[1]))
        assert received(two)[2] == pairs[0].node_id


def sent(one: Transport, endpoint: str) -> bool:
    try:
        one.send(endpoint, HIDDEN, ROW)
    except PeerUnreachable:
        return False
    return True


def test_standalone_transport_listens_on_ipc_only(folder: Path) -> None:
    (there,) = linked_nodes(1)
    with transport(folder, "one") as one, transport(folder, "two", there) as two:
        assert one.endpoints == (f"ipc://{folder}/one.ring",)
        assert one.own_id == ""
        with pytest.raises(PeerUnreachable, match="stands alone"):
            one.send(two.endpoints[1], HIDDEN, ROW)
        one.send(two.endpoints[0], HIDDEN, ROW)
        assert received(two)[2] == ""


# -- sequences


@pytest.mark.parametrize("over", ["ipc", "tcp"])
def test_replayed_frame_is_dropped_and_counted(folder: Path, over: str) -> None:
    here, there = linked_nodes(2)
    with transport(folder, "two", there) as two:
        with raw_dealer(here.pair, two.endpoints[over == "tcp"]) as raw:
            for sequence in (1, 2, 2, 1, 3, 3, 0, 7, 6, 8):
                raw.send(HIDDEN._replace(sequence=sequence, position=sequence).pack())
            came = [received(two)[0].sequence for _ in range(5)]
        assert came == [1, 2, 3, 7, 8]
        assert two.dropped == {"replayed": 5, "lost before this frame": 1}


def test_each_connection_has_its_own_numbers(folder: Path) -> None:
    here, there, third = linked_nodes(3)
    with (
        transport(folder, "two", there) as two,
        raw_dealer(here.pair, two.endpoints[1]) as one,
        raw_dealer(third.pair, two.endpoints[1]) as other,
    ):
        for sequence in (1, 2):
            for raw in (one, other):
                raw.send(HIDDEN._replace(sequence=sequence).pack())
        came = sorted(received(two)[::2] for _ in range(4))
        assert sorted({sender for _, sender in came}) == sorted({here.pair.node_id, third.pair.node_id})
        assert not two.dropped


def test_sequence_numbers_wrap_around(folder: Path) -> None:
    with transport(folder, "one") as one, transport(folder, "two") as two:
        one.send(two.endpoints[0], HIDDEN, ROW)
        received(two)
        near = 2**31
        while near < 2**32 - 1:  # in steps that are no replay
            one._connections.get(two.endpoints[0]).sequence = near - 1
            one.send(two.endpoints[0], HIDDEN, ROW)
            assert received(two)[0].sequence == near
            near = min(near + 2**30, 2**32 - 1)
        one._connections.get(two.endpoints[0]).sequence = near - 1
        assert [sent(one, two.endpoints[0]) and received(two)[0].sequence for _ in range(3)] == [2**32 - 1, 0, 1]
        assert "replayed" not in two.dropped


def test_least_recently_used_senders_are_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound_connections, "MAX_INBOUND", 4)
    with transport(folder, "two") as two:
        for _ in range(8):
            with raw_dealer(new_key_pair(), two.endpoints[0]) as raw:
                raw.send(HIDDEN._replace(sequence=1).pack())
                received(two)
        assert len(two._inbound._known) <= 4
        assert not two.dropped


def test_tcp_connection_without_a_key_has_no_node() -> None:
    """No port of ours has one; it would be a fault of the factory."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, int(WITHIN_S * 1000))
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        dealer.send(b"x")
        source, part = router.recv_multipart(copy=False)
        assert sender_of(part) == inbound_connections.UNKNOWN_NODE
        (access,) = linked_nodes(1)
        known = InboundConnections(access)
        known.add(source.bytes, part)
        with pytest.raises(FrameError, match="not linked"):
            known.sender(source.bytes)


def test_prompt_is_encrypted_between_machines(folder: Path) -> None:
    secret = b"a prompt that must not be readable" * 8
    here, there = linked_nodes(2)
    relay = Relay(keep=True)
    try:
        with transport(folder, "one", here) as one, transport(folder, "two", there) as two:
            one.send(relay.before(two.endpoints[1]), HIDDEN._replace(flags=Flag.OPEN), secret)
            assert received(two)[1].tobytes() == secret
    finally:
        relay.close()
    assert len(relay.seen) > len(secret)
    assert not [at for at in range(34) if secret[at : at + 8] in relay.seen]
